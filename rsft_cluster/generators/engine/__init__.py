"""Continuous sampling with an unmodified Hugging Face model: rows, blocks of keys and values, shared prompts.

blocks.py      the key-value store: blocks of tokens, a prompt's shared by its candidates, a row's its own
attention.py   attention over blocks, and how transformers comes to call it
batches.py     what one forward works on: prompts to prefill, or one new token a row
rows.py        the rows that are being decoded, host side
queue.py       prompts and their candidates: waiting, prefilled, finished
engine.py      the loop: admit, prefill, decode, finish, make room
probe.py       does this model go through our attention, and what shape are its keys and values
packing.py     weights packed for the CPU's matrix products; int8 weights
"""

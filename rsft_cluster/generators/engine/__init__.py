"""Continuous sampling with an unmodified Hugging Face model: rows, blocks of keys and values, shared prompts.

engine.py      sessions over one store, smaller ones where memory runs out
session.py     the loop: admit, prefill, decode, finish, make room
groups.py      prompts and their candidates: waiting, prefilled, finished
rows.py        the rows that are being decoded, host side
blocks.py      the store of keys and values: a prompt's blocks shared by its candidates, a row's its own
batches.py     what one forward works on: prompts to prefill, or one new token a row
attention.py   attention over blocks, and how transformers comes to call it
compiled.py    one new token a row on a CPU, for attention that numba compiles
cpu_kernels.py that attention, RMS norms and gates
vectors.py     the vectors that these are made of
layers.py      norms and gated MLPs in place of a model's own
steps.py       decode steps, run one by one or, on a GPU, recorded and replayed
forward.py     a forward over packed tokens
probe.py       whether a model goes through our attention, and what shape its keys and values have
trial.py       the prompts that this is tried on, by the model itself and over blocks
raising.py     a model's arithmetic in float32, its weights left as they are
packing.py     weights packed for the CPU's matrix products
replacing.py   modules in the place of others
"""

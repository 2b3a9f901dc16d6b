"""Batched decoding with a model's own cache, for models that the engine does not take.

batches.py   batches of whole prompts, halved where memory runs out
batch.py     one of them, step by step
cache.py     a cache that grows in place
"""

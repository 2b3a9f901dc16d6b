"""Versions of the policy: named, found, checked and loaded, for sampling and training alike.

references.py   from a config or a record to weights: folders, hub ids, adapters, digests
spec.py         a policy as workers load it
files.py        what a model folder holds, read without an engine
tokens.py       messages to token ids and back
loading.py      the weights as a model
"""

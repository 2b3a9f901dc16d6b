"""Adaptive rejection: what the acceptance rule rejects is taken off the proposal while a prompt is being answered.

trie.py        what is left of a proposal, prefix by prefix     (plain Python)
generator.py   draw, judge, take off, draw on                   (inside the sampling actor)
"""

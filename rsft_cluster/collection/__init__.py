"""Sample | score | accept as one streaming pipeline over units, committed one by one and then sealed.

plan.py       units, and what is left of them        (names in the store; no engine)
workers.py    what happens to a unit                 (inside the actors; no engine)
pipeline.py   one pass of Ray Data over units
collect.py    passes until nothing is left; crashes, splits, quarantine
seal.py       the manifest: one commit a unit, every prompt accounted for
"""

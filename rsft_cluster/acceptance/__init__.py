"""SCORE -> ACCEPTED: which judged candidates become training examples.

base.py            the contract of a rule
rules/             the rules that are built in, a file each
decide.py          probability, draw, repeats, caps, reason
selection.py       what a decision is made by: the rule, repeats, the order under caps
fairness.py        swaps and cells
group_arrays.py    prompts as arrays
compatible.py      settings that would miss a rule's target
piloted.py         a config with what a pilot chose
"""

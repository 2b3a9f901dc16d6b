"""The terms of the loss, a file each: what a term is over, its weight, and what it needs.

base.py           the contract, with an example
configured.py     the terms of a config: those that are built in, and those that it names
nll.py            what is learned
rejection.py      the tapered likelihood of rejected candidates
unlikelihood.py   the token with which a rejected candidate went wrong
kl.py             the distance to the policy of round 0
"""

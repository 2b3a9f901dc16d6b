"""The loop: improve the policy once, decide, and again.

loop.py       rounds until all are done, resuming at the first missing artefact
stages.py     sample, train, evaluate
waves.py      a round that is sampled in waves
budget.py     where the next wave goes
pilot.py      temperature and threshold tried out first
controls.py   arms that are only compared
importing/    a first round from candidates made elsewhere
"""

"""A run in the store: who may write to it, what it is made of, how far it has come.

run.py           the run that this process may write to, and how an artefact is kept
lease.py         one writer at a time, with a fencing epoch
fingerprint.py   the settings that a run stands for
prompt_sets.py   its training and held-out prompts, ingested once
promotions.py    which policy is current
summary.py       what is known of every round
"""

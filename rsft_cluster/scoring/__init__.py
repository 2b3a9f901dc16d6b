"""Scoring, CANDIDATE -> verdicts: runs constraints, counts errors, kills processes that hang.

judge.py            the verdicts of all constraints on one candidate, combined
evaluator.py        outcomes of constraints, in this process
isolation/          the same in processes that can be killed
guarded_judge.py    the judge of a scoring actor: isolated, with canaries, audits and a circuit breaker
canaries.py         candidates with a known verdict
error_limits.py     limits on the verdicts that are errors
"""

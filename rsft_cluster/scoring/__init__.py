"""CANDIDATE -> verdicts: constraints asked, errors counted, processes killed where they hang.

judge.py            the verdicts of all constraints on one candidate, combined
evaluator.py        what asks constraints for outcomes, in this process
isolation/          the same in processes that can be killed
guarded_judge.py    the judge of a scoring actor: isolated, with canaries, audits and a circuit breaker
canaries.py         candidates with a known verdict
error_limits.py     how many verdicts may be errors
"""

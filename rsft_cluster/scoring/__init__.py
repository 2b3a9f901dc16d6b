"""CANDIDATE -> verdicts: constraints asked, errors counted, processes killed where they hang.

judge.py            the verdicts of all constraints on one candidate, and the budget of errors
isolated_judge.py   the same with constraints in processes of their own
canaries.py         inline cases that every scoring worker judges first
isolation/          those processes
"""

"""Judging and deciding again, on what a sealed round stores; its seal is never touched.

stored_round.py   a sealed round: its units, files and scorings     (names and records)
group_blocks.py   whole groups of prompts, a few files at a time    (one wave or many)
outcome.py        the decision on them, its funnel, its changes     (memory of some files, not of the run)
accepting.py      a decision under a name of its own                (`rsft accept`)
export.py         accepted samples for other programs               (`rsft export`)
preview.py        what other settings would keep                    (`rsft preview`)
trust.py          how far the constraints can be trusted            (`rsft trust`)
rejudging.py      other constraints on the same candidates          (`rsft score`)
comparing.py      a scoring against the sealed one
verdicts.py       verdicts as arrays
"""

"""The same run every night, unattended: one night a date, from the policy that the last one left.

However often it is started, a date has one night: its record is put once, and the lease admits one process at a time.
A night is a run like any other; `store.layout` shows where it lies, and its prompts are new against those in `seen`.
"""

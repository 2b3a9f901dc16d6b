"""Sealed rounds looked at again; their seal is never touched.

inspection.py   candidates as they are stored
audit/          a line a candidate, hash-chained and replayed
redeciding/     other constraints and rules on stored candidates
records.py      what that publishes
"""

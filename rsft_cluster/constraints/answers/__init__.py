"""Constraints on a final answer: found, compared, chosen."""

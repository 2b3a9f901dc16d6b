"""Constraints on programs, which run in a sandbox."""

"""Constraints on form: format, JSON, instructions, length, ending."""

"""Constraints: one file each. A constraint judges one candidate; `base` holds the contract."""

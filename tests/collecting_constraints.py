"""Constraints that misbehave, for tests."""


def broken(candidate):
    """Raise, as a verifier does whose library is missing."""
    return 1 / 0

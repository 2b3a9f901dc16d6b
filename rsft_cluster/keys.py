"""Every candidate's own random stream, keyed by what it is and not by when or where it is drawn.

A retry, another worker or another order gives the same keys, so crashes and slow samples cannot bias
what is accepted.
"""

import hashlib


def sampling_key(seed: int, stream: str, prompt_id: str, index: int) -> int:
    """Return the 64-bit key of a candidate's draws; `stream` is the round's or evaluation's name."""
    return _hash64(seed, stream, prompt_id, index, "sample")


def acceptance_uniform(seed: int, stream: str, prompt_id: str, index: int) -> float:
    """Return the candidate's u, uniform on [0, 1) with 53 bits, independent of its sampling key."""
    return (_hash64(seed, stream, prompt_id, index, "accept") >> 11) * 2.0**-53


def repeated_uniform(u: float, times: int) -> float:
    """Return a further uniform that follows from a stored one: the one after so many repetitions."""
    return (_hash64(float(u).hex(), times, "again") >> 11) * 2.0**-53


def audit_uniform(candidate_id: str) -> float:
    """Return the uniform that says whether a candidate is judged twice."""
    return (_hash64(candidate_id, "audit") >> 11) * 2.0**-53


def _hash64(*parts: object) -> int:
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")

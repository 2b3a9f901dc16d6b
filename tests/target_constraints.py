"""Constraints over the small language of `targets`, by themselves: the processes that judge load nothing else."""

from rsft_cluster.constraints.base import Candidate, Verdict

LENGTH = 4


def score_of(text: str) -> float:
    """The score: a counts 2, b counts 1, of at most 2 a letter; one token ends a completion."""
    return (2 * text.count("a") + text.count("b")) / (2 * (LENGTH - 1))


def letters_count(candidate: Candidate) -> float:
    """Constraint: the score of the letters."""
    return score_of(candidate.completion)


def names_pair_of_c(candidate: Candidate) -> Verdict:
    """Constraint: the same, naming the second c, which no continuation mends."""
    place = candidate.completion.find("cc")
    return Verdict.of(True) if place < 0 else Verdict(0.0, passed=False, fatal_at=place + 1)


def no_pair_of_c(candidate: Candidate) -> bool:
    """Constraint: no two c in a row."""
    return "cc" not in candidate.completion


def hopeless(_candidate: Candidate) -> Verdict:
    """Constraint: nothing passes, whatever it begins with."""
    return Verdict(0.0, passed=False, fatal_at=0)


def unreadable(candidate: Candidate) -> bool:
    """Constraint: cannot tell of any completion with an a."""
    if "a" in candidate.completion:
        raise ValueError(candidate.completion)
    return True

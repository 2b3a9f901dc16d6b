"""How different completions are from each other: distinct-n and self-BLEU over token ids."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Tokens = Sequence[int]


def distinct_n(completions: Iterable[Tokens], n: int) -> float:
    """Return distinct ÷ all token n-grams over completions (Li et al. 2016); 0 when there are none."""
    grams = [gram for ids in completions for gram in _grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(groups: Iterable[Sequence[Tokens]], *, most: int = 4) -> float:
    """Return the mean BLEU of every completion against the others of its prompt (Zhu et al. 2018), in [0, 1].

    n-grams up to `most`; a precision of zero counts as 1 / (2 x number of n-grams), as in NIST's smoothing. Groups of
    one say nothing and are left out; 0 when there are no others.
    """
    found = [
        _bleu(ids, [other for j, other in enumerate(group) if j != i], most)
        for group in groups
        if len(group) > 1
        for i, ids in enumerate(group)
        if len(ids)
    ]
    return sum(found) / len(found) if found else 0.0


def _bleu(ids: Tokens, others: Sequence[Tokens], most: int) -> float:
    most = min(most, len(ids))
    logs = []
    for n in range(1, most + 1):
        grams = Counter(_grams(ids, n))
        allowed: Counter[tuple[int, ...]] = Counter()
        for other in others:
            allowed |= Counter(_grams(other, n))
        matched, total = sum((grams & allowed).values()), sum(grams.values())
        logs.append(math.log(matched / total if matched else 0.5 / total))
    closest = min((len(o) for o in others), key=lambda size: (abs(size - len(ids)), size))
    brevity = min(0.0, 1.0 - closest / len(ids))
    return math.exp(sum(logs) / most + brevity)


def _grams(ids: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]

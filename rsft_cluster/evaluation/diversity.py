"""How different completions are from each other: distinct-n and self-BLEU over token ids."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence

Tokens = Sequence[int]


def distinct_n(completions: Iterable[Tokens], n: int) -> float:
    """Return distinct ÷ all token n-grams over completions (Li et al. 2016); 0 when there are none."""
    grams = [gram for ids in completions for gram in _grams(ids, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def self_bleu(groups: Iterable[Sequence[Tokens]], *, max_n: int = 4) -> float:
    """Return the mean BLEU of every completion against the others of its prompt (Zhu et al. 2018), in [0, 1].

    n-grams up to `max_n`; a precision of zero counts as 1 / (2 x number of n-grams), as in NIST's smoothing. Groups of
    one completion are left out; 0 when there are no others.
    """
    scores = [bleu for group in groups for bleu in _bleus([ids for ids in group if ids], max_n)]
    return sum(scores) / len(scores) if scores else 0.0


def _bleus(group: Sequence[Tokens], max_n: int) -> list[float]:
    """Return every completion's BLEU against the others, in time linear in their number."""
    if len(group) < 2:
        return []
    logs: list[list[float]] = [[] for _ in group]
    for n in range(1, max_n + 1):
        counts = [Counter(_grams(ids, n)) for ids in group]
        # The largest count of an n-gram among the others: the largest of all, or the second largest for its holder.
        largest: dict[tuple[int, ...], tuple[int, int]] = {}
        for own in counts:
            for gram, count in own.items():
                first, second = largest.get(gram, (0, 0))
                largest[gram] = (count, first) if count > first else (first, max(second, count))
        for i, own in enumerate(counts):
            if total := sum(own.values()):
                matched = sum(min(c, largest[g][1] if c == largest[g][0] else largest[g][0]) for g, c in own.items())
                logs[i].append(math.log(matched / total if matched else 0.5 / total))
    sizes = [len(ids) for ids in group]
    return [math.exp(sum(log) / len(log) + _brevity(sizes, i)) for i, log in enumerate(logs)]


def _brevity(sizes: Sequence[int], i: int) -> float:
    others = (size for j, size in enumerate(sizes) if j != i)
    closest = min(others, key=lambda size: (abs(size - sizes[i]), size))
    return min(0.0, 1.0 - closest / sizes[i])


def _grams(ids: Tokens, n: int) -> list[tuple[int, ...]]:
    return [tuple(ids[i : i + n]) for i in range(len(ids) - n + 1)]

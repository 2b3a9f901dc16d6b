"""How the rows of a batch are dealt out: equal work for every worker, little padding, as few forward passes as pay.

The loss is a sum over the batch, so only the speed and the memory depend on it. A pass costs its rows times the longest
of them, since the others are padded to it, and a fixed part.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

Pass = list[int]
"""Places in the batch, the longest row first."""

PASS_TOKENS = 512
"""What a pass costs beside its tokens, in tokens: each starts every layer's kernels anew."""


class _Deal(NamedTuple):
    cost: int
    """Tokens of the worker with the most work, padding and passes among them."""
    shares: list[list[Pass]]


def deal(lengths: Sequence[int], *, rank: int, world_size: int, size: int) -> list[Pass]:
    """Return one worker's share of a batch, cut into forward passes; empty ones keep step with other workers.

    `lengths` are the tokens of the batch's rows; a pass has at most `size` rows. Every worker finds the same deal.
    """
    order = sorted(range(len(lengths)), key=lambda place: (-lengths[place], place))
    longest, total = lengths[order[0]], sum(lengths)
    fewest = math.ceil(math.ceil(len(lengths) / world_size) / size)
    even = {max(longest, math.ceil(total / (world_size * count))) for count in range(1, 2 * fewest + 4)}
    deals = [
        _spread(_passes(order, lengths, size=size, budget=budget), lengths, world_size)
        for budget in sorted(even | {longest * rows for rows in range(1, size + 1)})
    ]
    return min(deals, key=lambda one: one.cost).shares[rank]


def _passes(order: Sequence[int], lengths: Sequence[int], *, size: int, budget: int) -> list[Pass]:
    """Return passes of at most `size` rows and `budget` tokens of rows that are in order, the longest first."""
    passes: list[Pass] = [[]]
    for place in order:
        current = passes[-1]
        if current and (len(current) == size or (len(current) + 1) * lengths[current[0]] > budget):
            passes.append(current := [])
        current.append(place)
    return passes


def _spread(passes: Sequence[Pass], lengths: Sequence[int], world_size: int) -> _Deal:
    """Give each pass, the dearest first, to the worker with the least work that has not its number of passes yet."""
    count = math.ceil(len(passes) / world_size)
    shares: list[list[Pass]] = [[] for _ in range(world_size)]
    loads = [0] * world_size
    costs = [len(rows) * lengths[rows[0]] for rows in passes]
    for cost, rows in sorted(zip(costs, passes, strict=True), key=lambda one: -one[0]):
        worker = min((w for w in range(world_size) if len(shares[w]) < count), key=lambda w: loads[w])
        shares[worker].append(rows)
        loads[worker] += cost
    padded: list[list[Pass]] = [share + [[] for _ in range(count - len(share))] for share in shares]
    return _Deal(max(loads) + PASS_TOKENS * count, padded)

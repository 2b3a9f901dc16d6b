"""Whole groups of a sealed round, a few files at a time, however many waves its candidates came in.

Every wave asks its prompts in the order of the round's, so that the groups are found by going through the files of all
waves side by side: one file of each is open, and some to come are read ahead.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsft_cluster.acceptance.base import JUDGED, Scope
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.collection.whole_round import NOTHING, read_judged
from rsft_cluster.errors import StoreError
from rsft_cluster.review.redeciding.stored_round import StoredRound, StoredUnit

ROWS_AT_ONCE = 1 << 16
"""Candidates that are decided together, where more than one file is."""
PROMPTS_AT_ONCE = 1 << 12
READERS = 2
TOLD = ["candidate_id", "prompt_id", "score", "passed", "num_tokens", "u", "reason"]
"""What is told of a decision beside it."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Piece:
    """Rows of one unit that stand in a block."""

    unit: StoredUnit
    start: int
    num_rows: int


@dataclass(frozen=True)
class Block:
    """Candidates of some prompts, all of them; of all prompts, where a decision looks at the round."""

    pieces: Sequence[Piece]
    scores: pa.Table
    """The columns TOLD of SCORE rows, piece by piece."""
    judged: pa.Table
    """JUDGED rows, in the same order."""
    kept_before: NDArray[np.bool_]
    """What the sealed decision accepted."""


def scope_of(how: Selecting) -> Scope:
    """Return how much a decision must see at once: the round also where prompts are compared by difficulty."""
    compares = how.budget is not None and how.budget.allocation == "difficulty"
    return "round" if compares else how.scope


def blocks(stored: StoredRound, ways: Sequence[Selecting], units: Sequence[StoredUnit]) -> Iterator[Block]:
    """Yield the candidates of units in blocks in which every one of some decisions can be made."""
    reading = _Reading(stored, max(ways, key=_asks))
    if any(scope_of(how) == "round" for how in ways):
        yield _block(list(reading.parts(units)))
        return
    waves = [list(of_wave) for _, of_wave in groupby(units, key=lambda u: u.wave)]
    for parts in _by_unit(reading, units) if len(waves) <= 1 else _by_prompt(stored, reading, waves):
        yield _block(parts)


def _asks(how: Selecting) -> tuple[bool, bool]:
    return how.needs_text, how.fairness is not None


def ahead(task: Callable[[T], R], over: Iterable[T]) -> Iterator[R]:
    """Yield what a task gives for each item, in order; the next ones are begun meanwhile, in threads."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from in_order(pool, task, over, 2 * READERS)


def in_order(pool: Executor, task: Callable[[T], R], over: Iterable[T], num_ahead: int) -> Iterator[R]:
    """Yield what a pool makes of each item, in order; so many are begun beforehand."""
    waiting: deque[Future[R]] = deque()
    for item in over:
        waiting.append(pool.submit(task, item))
        if len(waiting) > num_ahead:
            yield waiting.popleft().result()
    while waiting:
        yield waiting.popleft().result()


@dataclass(frozen=True)
class _Part:
    piece: Piece
    scores: pa.Table
    judged: pa.Table
    kept_before: NDArray[np.bool_]

    def slice(self, start: int, num_rows: int) -> "_Part":
        return _Part(
            Piece(self.piece.unit, self.piece.start + start, num_rows),
            self.scores.slice(start, num_rows),
            self.judged.slice(start, num_rows),
            self.kept_before[start : start + num_rows],
        )


class _Reading:
    """How units are read: with what a decision looks at, and with what was sealed."""

    def __init__(self, stored: StoredRound, how: Selecting) -> None:
        self._store, self._how = stored.store, how

    def parts(self, units: Iterable[StoredUnit]) -> Iterator[_Part]:
        return ahead(self._part, units)

    def _part(self, unit: StoredUnit) -> _Part:
        scores, judged = read_judged(self._store, unit.judged, self._how)
        before = scores.column("accepted")
        if unit.sealed != unit.judged.scores:
            sealed = self._store.read_table(unit.sealed, columns=["candidate_id", "accepted"])
            if sealed.column("candidate_id") != scores.column("candidate_id"):
                path = self._store.uri_of(unit.judged.scores.path)
                raise StoreError(f"{path}: is not about the candidates of {unit.judged.candidates.path}")
            before = sealed.column("accepted")
        return _Part(Piece(unit, 0, scores.num_rows), scores.select(TOLD), judged, before.to_numpy())


def _block(parts: Sequence[_Part]) -> Block:
    return Block(
        [part.piece for part in parts],
        pa.concat_tables([NOTHING.select(TOLD), *(part.scores for part in parts)]),
        pa.concat_tables([JUDGED.empty_table(), *(part.judged for part in parts)]),
        np.concatenate([np.zeros(0, dtype=bool), *(part.kept_before for part in parts)]),
    )


def _by_unit(reading: _Reading, units: Sequence[StoredUnit]) -> Iterator[list[_Part]]:
    held: list[_Part] = []
    for part in reading.parts(units):
        held.append(part)
        if sum(p.piece.num_rows for p in held) >= ROWS_AT_ONCE:
            yield held
            held = []
    if held:
        yield held


def _by_prompt(stored: StoredRound, reading: _Reading, waves: Sequence[Sequence[StoredUnit]]) -> Iterator[list[_Part]]:
    cursors = [_Cursor(reading.parts(units)) for units in waves]
    for batch in stored.store.read_batches(stored.plan.prompts, ["prompt_id"]):
        for start in range(0, batch.num_rows, PROMPTS_AT_ONCE):
            prompts = batch.column(0).slice(start, PROMPTS_AT_ONCE)
            parts = [part for cursor in cursors for part in cursor.take(prompts)]
            if parts:
                yield parts
    if any(cursor.left is not None for cursor in cursors):
        raise StoreError(f"{stored.store.uri_of(stored.folder.path)}: its waves are not in the order of its prompts")


class _Cursor:
    """A place in the candidates of a wave."""

    def __init__(self, parts: Iterator[_Part]) -> None:
        self._parts = parts
        self.left = next(parts, None)

    def take(self, prompts: pa.Array) -> Iterator[_Part]:
        """Yield what comes next, as long as it is of some prompts."""
        while self.left is not None:
            theirs = pc.is_in(self.left.judged.column("prompt_id"), value_set=prompts).to_numpy()
            size = len(theirs) if theirs.all() else int(np.argmin(theirs))
            if size:
                yield self.left.slice(0, size)
            if size < len(theirs):
                self.left = self.left.slice(size, len(theirs) - size)
                return
            self.left = next(self._parts, None)

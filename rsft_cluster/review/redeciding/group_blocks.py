"""Whole groups of a sealed round, a few files at a time, however many waves its candidates came in.

Every wave has its prompts in the order of the round's, so groups are assembled by reading the files of all waves side
by side: one file of each is open, and the next ones are read ahead.
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
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.whole_round import NOTHING, read_judged
from rsft_cluster.errors import StoreError
from rsft_cluster.review.redeciding.stored_round import StoredRound, StoredUnit

ROWS_AT_ONCE = 1 << 16
"""Candidates of several files are decided together once there are this many."""
PROMPTS_AT_ONCE = 1 << 12
READERS = 2
SHOWN = ["candidate_id", "prompt_id", "score", "passed", "num_tokens", "u", "reason"]
"""The columns of SCORE that figures about a decision are made of."""

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a unit, as they stand in a block."""

    unit: StoredUnit
    start: int
    num_rows: int


@dataclass(frozen=True)
class Block:
    """All candidates of some prompts; of all prompts, where a decision looks at the whole round."""

    pieces: Sequence[Piece]
    scores: pa.Table
    """The columns SHOWN of SCORE rows, piece by piece."""
    judged: pa.Table
    """JUDGED rows, in the same order."""
    kept_before: NDArray[np.bool_]
    """Which rows the sealed decision accepted."""


def scope_of(selection: SelectionRules) -> Scope:
    """Return the rows that a decision must see together: the round also where prompts are compared by difficulty."""
    compares = selection.budget is not None and selection.budget.allocation == "difficulty"
    return "round" if compares else selection.scope


def blocks(stored: StoredRound, selections: Sequence[SelectionRules], units: Sequence[StoredUnit]) -> Iterator[Block]:
    """Yield the candidates of units in blocks, each of which suffices for every one of the decisions."""
    reading = _Reading(stored, max(selections, key=_column_needs))
    if any(scope_of(selection) == "round" for selection in selections):
        yield _block(list(reading.parts(units)))
        return
    waves = [list(of_wave) for _, of_wave in groupby(units, key=lambda u: u.wave)]
    for parts in _by_unit(reading, units) if len(waves) <= 1 else _by_prompt(stored, reading, waves):
        yield _block(parts)


def _column_needs(selection: SelectionRules) -> tuple[bool, bool]:
    return selection.needs_text, selection.fairness is not None


def threaded_map(task: Callable[[T], R], items: Iterable[T]) -> Iterator[R]:
    """Yield a task's result for each item, in order; threads work on the next items meanwhile."""
    with ThreadPoolExecutor(READERS) as pool:
        yield from in_order(pool, task, items, 2 * READERS)


def in_order(pool: Executor, task: Callable[[T], R], items: Iterable[T], num_ahead: int) -> Iterator[R]:
    """Yield a task's result for each item, in order; a pool works on up to `num_ahead` items beyond the next."""
    waiting: deque[Future[R]] = deque()
    for item in items:
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
    """Reads units with the columns that a decision needs, and with the sealed decisions."""

    def __init__(self, stored: StoredRound, selection: SelectionRules) -> None:
        self._store, self._selection = stored.store, selection

    def parts(self, units: Iterable[StoredUnit]) -> Iterator[_Part]:
        return threaded_map(self._part, units)

    def _part(self, unit: StoredUnit) -> _Part:
        scores, judged = read_judged(self._store, unit.judged, self._selection)
        kept_before = scores.column("accepted")
        if unit.sealed != unit.judged.scores:
            sealed = self._store.read_table(unit.sealed, columns=["candidate_id", "accepted"])
            if sealed.column("candidate_id") != scores.column("candidate_id"):
                path = self._store.uri_of(unit.judged.scores.path)
                raise StoreError(f"{path}: is not about the candidates of {unit.judged.candidates.path}")
            kept_before = sealed.column("accepted")
        return _Part(Piece(unit, 0, scores.num_rows), scores.select(SHOWN), judged, kept_before.to_numpy())


def _block(parts: Sequence[_Part]) -> Block:
    return Block(
        [part.piece for part in parts],
        pa.concat_tables([NOTHING.select(SHOWN), *(part.scores for part in parts)]),
        pa.concat_tables([JUDGED.empty_table(), *(part.judged for part in parts)]),
        np.concatenate([np.zeros(0, dtype=bool), *(part.kept_before for part in parts)]),
    )


def _by_unit(reading: _Reading, units: Sequence[StoredUnit]) -> Iterator[list[_Part]]:
    parts: list[_Part] = []
    for part in reading.parts(units):
        parts.append(part)
        if sum(p.piece.num_rows for p in parts) >= ROWS_AT_ONCE:
            yield parts
            parts = []
    if parts:
        yield parts


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
    """A position in the candidates of a wave."""

    def __init__(self, parts: Iterator[_Part]) -> None:
        self._parts = parts
        self.left = next(parts, None)

    def take(self, prompts: pa.Array) -> Iterator[_Part]:
        """Yield the next candidates as long as they are of the given prompts."""
        while self.left is not None:
            is_given = pc.is_in(self.left.judged.column("prompt_id"), value_set=prompts).to_numpy()
            size = len(is_given) if is_given.all() else int(np.argmin(is_given))
            if size:
                yield self.left.slice(0, size)
            if size < len(is_given):
                self.left = self.left.slice(size, len(is_given) - size)
                return
            self.left = next(self._parts, None)

"""The loop: admit, prefill, decode, finish, make room.

A finished row's place is taken at once by the next candidate, so that no row waits for the longest. What happens when
follows from the prompts, their order and the settings alone. A candidate that loses its place for lack of blocks is
drawn again from its start: its random stream is its own, so the same tokens come.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np
import torch

from rsft_cluster.generators.base import Completion, Decoding, FinishReason, Refusal
from rsft_cluster.generators.completing import check_finite, complete, out_of_memory
from rsft_cluster.generators.drawing import draw
from rsft_cluster.generators.engine.attention import reading
from rsft_cluster.generators.engine.batches import Chunk, PrefillBatch
from rsft_cluster.generators.engine.blocks import BLOCK, PRIVATE, BlockStore
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.groups import Group
from rsft_cluster.generators.engine.rows import Rows
from rsft_cluster.generators.engine.steps import Steps, stacked, to_host
from rsft_cluster.generators.stopping import Ending, StopRule

AHEAD = 8
"""Prompts are read for at least one candidate in so many rows, which makes a forward worth its while."""

SPREAD = 1.1
"""Blocks of rows are moved together once they spread over so many times their number."""


class Session:
    """Decodes a queue of prompts over one store."""

    def __init__(
        self,
        queue: deque[Group],
        *,
        forward: Forward,
        steps: Steps,
        store: BlockStore,
        num_rows: int,
        prefill_tokens: int,
        decoding: Decoding,
        rule: StopRule,
    ) -> None:
        self._queue = queue
        self._ready: deque[Group] = deque()
        """Prefilled prompts with candidates that wait for a row."""
        self._groups: dict[int, Group] = {}
        """Prefilled prompts, and those that are being prefilled, by number."""
        self._forward = forward
        self._steps = steps
        self._store = store
        self._prefill_tokens = prefill_tokens
        self._decoding = decoding
        self._rule = rule
        self._is_end = np.zeros(max(rule.end_token_ids, default=0) + 2, np.bool_)
        self._is_end[list(rule.end_token_ids)] = True
        self._row_blocks = row_blocks(decoding, steps)
        self._rows = Rows(num_rows, max_tokens=decoding.max_tokens, max_blocks=self._row_blocks)
        self._endings: list[Ending] = []
        self._at_work: Group | None = None

    def run(self) -> Iterator[Completion | Refusal]:
        """Yield completions and refusals until the queue is empty."""
        yield from self._refuse_too_large()
        while self._queue or self._ready or self._rows.num:
            self._prefill()
            yield from self._admit()
            if self._rows.num:
                self._make_room()
                yield from self._decode()

    def retreat(self) -> Group:
        """Put every unfinished prompt back into the queue, in order; return the one that was worked on first."""
        at_work = self._at_work
        assert at_work is not None
        back = [group for group in self._groups.values() if group not in self._queue]
        for group in self._groups.values():
            group.forget()
        self._queue.extendleft(sorted(back, key=lambda g: g.prompt, reverse=True))
        return at_work

    def _refuse_too_large(self) -> Iterator[Refusal]:
        """Refuse prompts of which not even one candidate fits into the store."""
        for group in [*self._queue]:
            if group.num_blocks + self._row_blocks > self._store.num_blocks:
                self._queue.remove(group)
                yield Refusal(group.prompt, out_of_memory(group.rows[0], self._decoding))

    # Prefill

    @torch.inference_mode()
    def _prefill(self) -> None:
        """Read prompts until enough candidates wait for the free rows, or no more prompts fit."""
        num_free_rows = self._rows.capacity - self._rows.num
        while self._queue and sum(len(g.waiting) for g in self._ready) < num_free_rows:
            chunks, groups = self._next_chunks(max(num_free_rows, self._rows.capacity // AHEAD))
            if not chunks:
                return
            self._at_work = groups[0]
            batch = PrefillBatch(chunks, self._store)
            whole = [i for i, group in enumerate(groups) if group.num_prefilled == len(group.token_ids)]
            with reading(batch):
                logits = self._forward(batch.tokens, batch.positions, keep=[batch.last[i] for i in whole])
            if whole:
                self._draw_first([groups[i] for i in whole], logits)
                self._ready.extend(groups[i] for i in whole)

    def _next_chunks(self, num_candidates: int) -> tuple[list[Chunk], list[Group]]:
        """Take what the next forward reads: whole prompts, or a part of one that is longer than a forward.

        Where a prompt is cut depends on the prompt alone.
        """
        chunks: list[Chunk] = []
        groups: list[Group] = []
        room = self._prefill_tokens
        while self._queue and num_candidates > 0:
            group = self._queue[0]
            size = min(len(group.token_ids) - group.num_prefilled, self._prefill_tokens)
            if (chunks and size > room) or not (group.blocks or self._hold(group)):
                break
            start = group.num_prefilled
            group.num_prefilled += size
            chunks.append(Chunk(group.token_ids[start : group.num_prefilled], start, group.blocks))
            groups.append(group)
            room -= size
            if group.num_prefilled < len(group.token_ids):
                break
            self._queue.popleft()
            num_candidates -= len(group.waiting)
        return chunks, groups

    def _hold(self, group: Group) -> bool:
        """Give a prompt blocks and a number, unless the rows might need the blocks."""
        reserve = self._rows.num + 1 if self._groups else self._row_blocks
        if group.num_blocks + reserve > self._store.num_free:
            return False
        group.number = next(n for n in range(len(self._groups) + 1) if n not in self._groups)
        self._groups[group.number] = group
        group.blocks = self._store.take_shared(group.number, len(group.token_ids))
        return True

    def _draw_first(self, groups: Sequence[Group], logits: torch.Tensor) -> None:
        """Draw the first token of every waiting candidate, as many at once as there are rows."""
        places = [(i, j) for i, group in enumerate(groups) for j in group.waiting]
        for start in range(0, len(places), self._rows.capacity):
            part = places[start : start + self._rows.capacity]
            keys = torch.tensor([int(groups[i].keys[j]) for i, j in part], device=logits.device)
            owners = torch.tensor([i for i, _ in part], device=logits.device)
            drawn = draw(logits[owners], keys=keys, steps=torch.zeros_like(keys), decoding=self._decoding)
            for (i, j), one in zip(part, to_host(stacked(drawn)).T, strict=True):
                groups[i].first[j] = one

    # Rows

    def _admit(self) -> Iterator[Completion]:
        """Give free rows to waiting candidates."""
        rows = self._rows
        while self._ready and rows.num < rows.capacity and (self._store.num_free > rows.num or not rows.num):
            group = self._ready[0]
            index = group.waiting.popleft()
            if not group.waiting:
                self._ready.popleft()
            row = rows.add(
                group=group.number, index=index, key=int(group.keys[index]), prompt_length=len(group.token_ids)
            )
            self._endings.append(Ending(self._rule))
            group.num_live += 1
            for over, reason in self._push(np.array([row]), np.array([group.first[index]]).T).items():
                yield from self._finish(over, reason)

    def _make_room(self) -> None:
        """Give every row the block that its next token needs; where there are too few, make some free."""
        rows = self._rows
        while True:
            last = rows.own[: rows.num] + self._steps.num_steps - 1
            needy = np.flatnonzero(last // BLOCK >= rows.num_blocks[: rows.num])
            if len(needy) <= self._store.num_free:
                break
            self._give_up_something()
        for row in needy:
            number = rows.num_blocks[row]
            rows.blocks[row, number] = self._store.take_private(int(row), int(number) * BLOCK)
            rows.num_blocks[row] += 1
        self._move_together()

    def _give_up_something(self) -> None:
        """Free the blocks of a prompt that no row decodes, or of the row that has the fewest tokens."""
        begun = [group for group in islice(self._queue, 1) if group.blocks]
        idle = next((group for group in (*begun, *reversed(self._ready)) if not group.num_live), None)
        if idle is not None:
            if idle in self._ready:
                self._ready.remove(idle)
                self._queue.appendleft(idle)
            self._release(idle)
            idle.forget()
            return
        row = int(self._rows.length[: self._rows.num][::-1].argmin())
        row = self._rows.num - 1 - row
        group = self._groups[int(self._rows.group[row])]
        if not group.waiting:
            self._ready.appendleft(group)
        group.waiting.appendleft(int(self._rows.index[row]))
        self._remove(row)

    def _move_together(self) -> None:
        """Move rows' blocks down, so that attention over the low end of the store reads little in vain."""
        store = self._store
        while store.private_end() > SPREAD * store.num_held(PRIVATE) + 8:
            block = store.private_end() - 1
            row, number = int(store.holder[block]), int(store.start[block]) // BLOCK
            moved = store.move_down(block)
            if moved == block:
                return
            self._rows.blocks[row, number] = moved

    def _decode(self) -> Iterator[Completion]:
        """Draw one token for every row, or a few, and end the rows that are over."""
        rows, steps = self._rows, self._steps
        self._at_work = self._groups[int(rows.group[0])]
        batch = steps.batch(rows, self._store, independent=self._decoding.independent_rows)
        live = np.arange(rows.num)
        over: dict[int, FinishReason] = {}
        for drawn in steps(batch, self._decoding, self._forward.last_position):
            over |= self._push(live, drawn[:, live])
            live = live[[row not in over for row in live.tolist()]] if over else live
        for row in sorted(over, reverse=True):
            yield from self._finish(row, over[row])

    def _push(self, numbers: np.ndarray, drawn: np.ndarray) -> dict[int, FinishReason]:
        """Add a token to each of the rows; return those that are over."""
        rows = self._rows
        tokens = drawn[0].astype(np.int64)
        bad = np.flatnonzero(~np.isfinite(drawn[1:]).all(0))
        if len(bad):
            row = numbers[bad[0]]
            lengths = int(rows.prompt_length[row]), int(rows.length[row])
            check_finite(float(drawn[1, bad[0]]), float(drawn[2, bad[0]]), *lengths)
        rows.push(numbers, tokens, drawn[1], drawn[2])
        stopped = self._is_end[np.minimum(tokens, len(self._is_end) - 1)]
        if self._rule.strings:
            stopped = stopped | [self._endings[r].reached(t) for r, t in zip(numbers, tokens.tolist(), strict=True)]
        over = np.flatnonzero(stopped | (rows.length[numbers] == self._decoding.max_tokens))
        return {int(numbers[i]): "stop" if stopped[i] else "length" for i in over}

    def _finish(self, row: int, reason: FinishReason) -> Iterator[Completion]:
        rows, group = self._rows, self._groups[int(self._rows.group[row])]
        index = int(rows.index[row])
        group.finished[index] = complete(
            group.rows[index],
            rows.tokens[row, : rows.length[row]].tolist(),
            logprob=float(rows.logprob[row]),
            target_logprob=float(rows.target_logprob[row]),
            reason=reason,
            rule=self._rule,
        )
        self._remove(row)
        if group.is_finished:
            self._release(group)
            yield from (group.finished[i] for i in range(len(group.rows)))

    def _remove(self, row: int) -> None:
        """End a row; the last one takes its number."""
        rows = self._rows
        self._groups[int(rows.group[row])].num_live -= 1
        self._store.release(rows.blocks[row, : rows.num_blocks[row]])
        last = rows.remove(row)
        ending = self._endings.pop()
        if last != row:
            self._endings[row] = ending
            self._store.holder[rows.blocks[row, : rows.num_blocks[row]]] = row

    def _release(self, group: Group) -> None:
        self._store.release(group.blocks)
        del self._groups[group.number]


def row_blocks(decoding: Decoding, steps: Steps) -> int:
    """Return how many blocks a row may fill; one that is over goes on until the host looks."""
    return -(-(decoding.max_tokens + steps.num_steps - 1) // BLOCK)

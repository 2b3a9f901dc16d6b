"""Batched decoding of whole prompts, halving a batch that does not fit in memory until it does."""

import gc
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rsft_cluster.generators.base import Completion, Decoding, Refusal
from rsft_cluster.generators.completing import Row, out_of_memory
from rsft_cluster.generators.plain.batch import BatchDecoder
from rsft_cluster.generators.stopping import StopRule

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Collected:
    """Completions of one prompt, held back until all are there: a prompt gets all of them or a refusal."""

    num_expected: int
    completions: list[Completion]


class BatchedDecoder:
    """Decodes prompts in batches, one after the other."""

    def __init__(self, model: PreTrainedModel, *, pad_token_id: int) -> None:
        self._model = model
        self._decoder = BatchDecoder(model, pad_token_id=pad_token_id)

    def run(
        self, prompts: Sequence[Sequence[Row]], decoding: Decoding, rule: StopRule
    ) -> Iterator[Completion | Refusal]:
        """Yield each prompt's completions once all of them are there, or a refusal."""
        collected = {rows[0].prompt: _Collected(len(rows), []) for rows in prompts}
        todo = _batches(prompts, decoding.batch_size if self._decoder.mixes_lengths else 1)
        todo.reverse()
        while todo:
            batch = [row for row in todo.pop() if row.prompt in collected]
            if not batch:
                continue
            done: set[tuple[int, int]] = set()
            for completion in self._until_out_of_memory(batch, decoding, rule):
                done.add((completion.prompt, completion.index))
                group = collected[completion.prompt]
                group.completions.append(completion)
                if len(group.completions) == group.num_expected:
                    yield from collected.pop(completion.prompt).completions
            undone = [row for row in batch if (row.prompt, row.index) not in done]
            if len(undone) == 1 == len(batch):
                del collected[undone[0].prompt]
                yield Refusal(undone[0].prompt, out_of_memory(undone[0], decoding))
            elif undone:
                half = (min(len(undone), decoding.batch_size) + 1) // 2
                logger.warning("event=out_of_memory rows=%d next=%d", len(undone), half)
                todo += [undone[start : start + half] for start in range(0, len(undone), half)][::-1]

    def _until_out_of_memory(self, batch: Sequence[Row], decoding: Decoding, rule: StopRule) -> Iterator[Completion]:
        """Yield the batch's completions, fewer than its rows where memory runs out."""
        try:
            for completions in self._decoder.decode(batch, decoding, rule=rule, num_rows=decoding.batch_size):
                yield from completions
        except torch.OutOfMemoryError:
            logger.debug("event=out_of_memory", exc_info=True)
        else:
            return
        # Outside of the handler: the traceback held the tensors of the failed batch.
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _batches(prompts: Sequence[Sequence[Row]], batch_size: int) -> list[list[Row]]:
    """Group whole prompts of similar length, longest first, so that memory runs out early or not at all.

    A prompt with more rows than `batch_size` makes a batch of its own.
    """
    batches: list[list[Row]] = []
    for rows in sorted(prompts, key=lambda rows: -len(rows[0].prompt_token_ids)):
        if batches and len(batches[-1]) + len(rows) <= batch_size:
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
    return batches

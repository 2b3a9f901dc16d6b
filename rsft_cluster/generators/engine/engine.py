"""Continuous sampling with one model: sessions over a store of blocks, smaller ones where memory runs out."""

import gc
import logging
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from rsft_cluster.generators.base import Completion, Decoding, Refusal
from rsft_cluster.generators.completing import Row, out_of_memory
from rsft_cluster.generators.engine.attention import installed
from rsft_cluster.generators.engine.blocks import BlockStore, LayerShape, block_bytes
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.groups import Group
from rsft_cluster.generators.engine.session import AHEAD, Session, row_blocks
from rsft_cluster.generators.engine.steps import steps_of
from rsft_cluster.generators.stopping import StopRule

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What the engine may use."""

    kv_bytes: int
    """Memory for keys and values."""
    prefill_tokens: int
    """Prompt tokens a forward, which bounds its activations. A longer prompt is read in parts."""


class Engine:
    """Decodes the candidates of prompts, so many at once as there are rows."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[LayerShape], limits: Limits, *, compiled: bool) -> None:
        """Use the layers that `layer_shapes` found; `compiled` is whether attention is."""
        self._model = model
        self._forward = Forward(model)
        self.steps = steps_of(self._forward, compiled=compiled)
        self._layers = layers
        self._limits = limits
        self.store: BlockStore | None = None
        """Kept from call to call."""

    def run(
        self, prompts: Sequence[Sequence[Row]], decoding: Decoding, rule: StopRule
    ) -> Iterator[Completion | Refusal]:
        """Yield each prompt's completions once all of them are there, or a refusal.

        The rows are halved when memory runs out; a prompt for which one row is too much is refused.
        """
        queue = deque(Group(rows) for rows in prompts)
        num_rows = most = min(decoding.batch_size, sum(map(len, prompts)))
        with installed(self._model):
            while queue:
                session = None
                try:
                    session = self._session(queue, num_rows, decoding, rule)
                    yield from session.run()
                except torch.OutOfMemoryError:
                    logger.debug("event=out_of_memory", exc_info=True)
                else:
                    return
                # Outside of the handler: the traceback held the tensors of the failed step.
                at_work = session.retreat() if session else queue[0]
                del session
                self._free_memory()
                if num_rows > 1:
                    num_rows //= 2
                    logger.warning("event=out_of_memory rows=%d next=%d", num_rows * 2, num_rows)
                    continue
                queue.remove(at_work)
                yield Refusal(at_work.prompt, out_of_memory(at_work.rows[0], decoding))
                num_rows = most

    def _session(self, queue: deque[Group], num_rows: int, decoding: Decoding, rule: StopRule) -> Session:
        needed = _blocks_needed(queue, num_rows, row_blocks(decoding, self.steps))
        affordable = self._limits.kv_bytes // block_bytes(self._layers, self._model.dtype)
        num_blocks = min(needed, affordable)
        if self._model.device.type == "cuda":
            num_blocks = affordable  # recorded steps are bound to their store, so it is made once
        if self.store is None or self.store.num_blocks != num_blocks:
            self._free_memory()
            self.store = BlockStore(self._layers, num_blocks, dtype=self._model.dtype, device=self._model.device)
        self.store.clear()
        return Session(
            queue,
            forward=self._forward,
            steps=self.steps,
            store=self.store,
            num_rows=num_rows,
            prefill_tokens=self._limits.prefill_tokens,
            decoding=decoding,
            rule=rule,
        )

    def _free_memory(self) -> None:
        self.store = None
        self.steps.forget()
        gc.collect()
        if self._model.device.type == "cuda":
            torch.cuda.empty_cache()


def _blocks_needed(queue: Sequence[Group], num_rows: int, blocks_a_row: int) -> int:
    """Return how many blocks suffice in the worst case: every row full and of another prompt, and a few prompts more.

    A call gets exactly these: what is decoded together must not depend on what an earlier call left behind.
    """
    prompts = sorted((group.num_blocks for group in queue), reverse=True)
    return num_rows * blocks_a_row + sum(prompts[: num_rows + num_rows // AHEAD + 2])

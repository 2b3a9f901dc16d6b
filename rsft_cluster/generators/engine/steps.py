"""Decode steps: forward, draw, go on. On a GPU a step is recorded once for every shape and then replayed.

At rates where a step lasts a millisecond, Python between its hundreds of kernels would be most of the time; a replayed
CUDA graph launches them all at once, and the host looks at what was drawn only every few steps.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.drawing import Draw, draw
from rsft_cluster.generators.engine.attention import Places, Reader, reading
from rsft_cluster.generators.engine.batches import DecodeBatch
from rsft_cluster.generators.engine.blocks import BlockStore
from rsft_cluster.generators.engine.compiled import CompiledBatch
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.rows import Rows

logger = logging.getLogger(__name__)

NUM_GRAPHS = 64
"""Graphs kept; the oldest is dropped."""
WARM_UPS = 2
"""Steps before a recording: libraries set themselves up in the first ones."""


class Batch(Reader, Protocol):
    """What a step reads and writes: one new token for every row."""

    tokens: Tensor
    """(rows): the last token of each row, whose keys and values are stored by this step."""
    keys: Tensor
    steps: Tensor
    """(rows): the number of the token that is drawn."""

    @property
    def token_positions(self) -> Tensor:
        """The positions of `tokens`, (rows)."""
        ...

    def advance(self, tokens: Tensor) -> None:
        """Go on to the next step, with the tokens that were drawn."""
        ...


class Steps(Protocol):
    """Makes batches and takes steps of them."""

    num_steps: int
    """Steps between two looks of the host: at most as many as a block has tokens."""

    def batch(self, rows: Rows, store: BlockStore, *, independent: bool) -> Batch:
        """Return a batch of all rows; `independent` is whether a row's bits may not depend on the others."""
        ...

    def __call__(self, batch: Batch, decoding: Decoding, last_position: int) -> np.ndarray:
        """Return tokens, log-probabilities and target log-probabilities, (steps, 3, rows)."""
        ...

    def forget(self) -> None:
        """Let go of everything that holds a store."""
        ...


def to_host(drawn: Tensor) -> np.ndarray:
    """Return what was drawn in one copy."""
    return drawn.cpu().numpy()


def stacked(drawn: Draw) -> Tensor:
    """Return tokens, log-probabilities and target log-probabilities as one; token ids are exact in float64."""
    return torch.stack([drawn.tokens.double(), drawn.logprobs, drawn.target_logprobs])


class PlainSteps:
    """Runs each step from Python."""

    def __init__(self, forward: Forward, *, num_steps: int = 1, grid: int = 1, gathers: bool = False) -> None:
        self.num_steps = num_steps
        self._forward, self._grid, self._gathers = forward, grid, gathers

    def batch(self, rows: Rows, store: BlockStore, *, independent: bool) -> Batch:
        """Return the batch of all rows."""
        return DecodeBatch.of(rows, store, grid=self._grid, gathers=self._gathers, exact_sums=independent)

    @torch.inference_mode()
    def __call__(self, batch: Batch, decoding: Decoding, last_position: int) -> np.ndarray:
        """Take the steps."""
        drawn = [step(self._forward, batch, decoding, last_position) for _ in range(self.num_steps)]
        return to_host(torch.stack(drawn))

    def forget(self) -> None:
        """Nothing is held."""


class CompiledSteps(PlainSteps):
    """Runs each step from Python, with attention that is compiled for the CPU: no row's bits depend on the others."""

    def batch(self, rows: Rows, store: BlockStore, *, independent: bool) -> Batch:
        """Return the batch of all rows."""
        return CompiledBatch(rows, store)


def step(forward: Forward, batch: Batch, decoding: Decoding, last_position: int) -> Tensor:
    """Draw a token for every row and leave the batch ready for the next.

    Rows that are over go on until the host looks; their positions stay where the model has some.
    """
    with reading(batch):
        logits = forward(batch.tokens, batch.token_positions.clamp(max=last_position))
    drawn = draw(logits, keys=batch.keys, steps=batch.steps, decoding=decoding)
    batch.advance(drawn.tokens)
    return stacked(drawn)


def steps_of(forward: Forward, *, compiled: bool) -> Steps:
    """Return the steps that suit a model's device; on a CPU `compiled` is whether attention is."""
    if forward.model.device.type != "cpu":
        return GraphSteps(forward)
    return CompiledSteps(forward) if compiled else PlainSteps(forward)


@dataclass(slots=True)
class _Recording:
    graph: torch.cuda.CUDAGraph
    batch: DecodeBatch
    """Whose tensors the graph reads and writes."""
    drawn: Tensor


class GraphSteps:
    """Replays a step that was recorded for batches of the same shape."""

    num_steps = 8
    grid = 256

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._recordings: dict[tuple[object, ...], _Recording] = {}
        self._pool: Any = None
        self._plain: PlainSteps | None = None
        """Instead of recordings, for a model that cannot be recorded."""

    def batch(self, rows: Rows, store: BlockStore, *, independent: bool) -> Batch:
        """Return the batch of all rows, of one of few shapes."""
        return DecodeBatch.of(rows, store, grid=self.grid, gathers=True, exact_sums=independent)

    @torch.inference_mode()
    def __call__(self, batch: Batch, decoding: Decoding, last_position: int) -> np.ndarray:
        """Take the steps."""
        assert isinstance(batch, DecodeBatch)
        with _without_deterministic_mode():
            if self._plain is None:
                try:
                    return self._replayed(batch, decoding, last_position)
                except torch.OutOfMemoryError:
                    raise
                except RuntimeError as error:
                    logger.warning("event=steps_not_recorded reason=%s", str(error).splitlines()[0])
                    self.forget()
                    self._plain = PlainSteps(self._forward, num_steps=self.num_steps, gathers=True)
            return self._plain(batch, decoding, last_position)

    def forget(self) -> None:
        """Let go of the recordings: each holds the store that it was made with."""
        self._recordings.clear()
        self._pool = None

    def _replayed(self, batch: DecodeBatch, decoding: Decoding, last_position: int) -> np.ndarray:
        shape = (*(tuple(t.shape) for t in _tensors(batch)), id(batch.store), decoding, last_position)
        if shape not in self._recordings:
            while len(self._recordings) >= NUM_GRAPHS:
                del self._recordings[next(iter(self._recordings))]
            self._recordings[shape] = self._record(batch, decoding, last_position)
        recording = self._recordings[shape]
        _load(recording.batch, batch)
        drawn = []
        for _ in range(self.num_steps):
            recording.graph.replay()
            drawn.append(recording.drawn.clone())
        return to_host(torch.stack(drawn))

    def _record(self, batch: DecodeBatch, decoding: Decoding, last_position: int) -> _Recording:
        static = batch.clone()
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                step(self._forward, static, decoding, last_position)
                _load(static, batch)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            drawn = step(self._forward, static, decoding, last_position)
        self._pool = self._pool or graph.pool()
        return _Recording(graph, static, drawn)


@contextmanager
def _without_deterministic_mode() -> Iterator[None]:
    """Let writes to distinct places be plain writes: the mode sorts them first, and no result depends on their order.

    Everything else in a step sums in a fixed order by itself.
    """
    mode = torch.get_deterministic_debug_mode()
    torch.set_deterministic_debug_mode("default")
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)


def _tensors(batch: DecodeBatch) -> Iterator[Tensor]:
    """Yield what describes a batch, in a fixed order."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, Places):
            yield value.rows
            if value.parts is not None:
                yield value.parts


def _load(static: DecodeBatch, batch: DecodeBatch) -> None:
    for target, source in zip(_tensors(static), _tensors(batch), strict=True):
        target.copy_(source)

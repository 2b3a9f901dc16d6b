"""Whether a model goes through our attention, and what its layers store of a token.

Nothing is taken on trust: the model answers a few short made-up prompts by itself and through the engine's batches, and
the logits must agree. A model that never calls our attention, or wants something of it that it lacks, shows there.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn import Embedding
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rsft_cluster.generators.engine.attention import Scoring, attend_causally, installed, reading
from rsft_cluster.generators.engine.batches import Chunk, PrefillBatch
from rsft_cluster.generators.engine.blocks import BLOCK, BlockStore, LayerShape
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.rows import Rows
from rsft_cluster.generators.engine.steps import steps_of

LENGTHS = (BLOCK + 5, 7)
"""Tokens of the prompts that are tried; the first one has two candidates and is prefilled in two chunks."""
NUM_STEPS = 3
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}
"""Of the logits' standard deviation, or of 1 where that is more."""
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class UnsupportedModelError(Exception):
    """The model cannot be decoded over blocks; the message says why."""


def layer_shapes(model: PreTrainedModel, *, compiled: bool) -> list[LayerShape]:
    """Return what each layer stores. Raises UnsupportedModelError for a model that does not work over blocks.

    `compiled` is whether attention is.
    """
    _check_config(model)
    recorder = _Recorder()
    reference = [_logits_of(model, ids) for ids in _prompts(model)]
    try:
        with installed(model), reading(recorder):
            ids = _prompts(model)[-1]
            Forward(model)(ids, torch.arange(len(ids), device=model.device))
        layers = recorder.layers(_windows(model))
        found = _through_blocks(model, layers, compiled=compiled)
    except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UnsupportedModelError(f"{type(error).__name__}: {error}") from error
    _compare(reference, found, model.dtype)
    return layers


class _Recorder:
    """Attends without a store and notes each layer's shapes."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, int, int]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, how: Scoring) -> Tensor:
        self._found[layer] = (key.shape[0], key.shape[-1], value.shape[-1])
        return attend_causally(query, key, value, how, window=None).transpose(0, 1)

    def layers(self, windows: Sequence[int | None]) -> list[LayerShape]:
        if sorted(self._found) != list(range(len(windows))):
            raise UnsupportedModelError(
                f"{len(self._found)} of its {len(windows)} layers go through transformers' attention interface"
            )
        return [LayerShape(*self._found[i], window=window) for i, window in enumerate(windows)]


def _check_config(model: PreTrainedModel) -> None:
    config = model.config.get_text_config(decoder=True)
    kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
    if not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
        others = sorted(kind.__name__ for kind in kinds - {DynamicLayer, DynamicSlidingWindowLayer})
        raise UnsupportedModelError(f"its cache has layers other than attention: {', '.join(others)}")
    if not model._can_set_attn_implementation():
        raise UnsupportedModelError("its attention is not chosen through transformers' attention interface")
    if "chunked_attention" in (getattr(config, "layer_types", None) or ()):
        raise UnsupportedModelError("it has layers of chunked attention")
    rope: Any = getattr(config, "rope_parameters", None) or {}
    kind = rope.get("rope_type")
    if kind in LENGTH_DEPENDENT_ROPE:
        raise UnsupportedModelError(f"its rotary positions ({kind}) depend on the longest row of a batch")


def _windows(model: PreTrainedModel) -> list[int | None]:
    config = model.config.get_text_config(decoder=True)
    layers = DynamicCache(config=model.config).layers
    found = [n.sliding_window if isinstance(n, DynamicSlidingWindowLayer) else None for n in layers]
    return found or [None] * config.num_hidden_layers


def _prompts(model: PreTrainedModel) -> list[Tensor]:
    """Return made-up prompts, each with the tokens that are decoded after it."""
    size = cast("Embedding", model.get_input_embeddings()).num_embeddings
    ids = (torch.arange(sum(LENGTHS) + 2 * NUM_STEPS, device=model.device) * 7919 + 3) % size
    first = LENGTHS[0] + NUM_STEPS
    return [ids[:first], ids[first:]]


@torch.inference_mode()
def _logits_of(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the logits of the last prompt token and of the decoded ones, as the model gives them by itself."""
    return model(input_ids=ids[None], use_cache=False).logits[0, -NUM_STEPS - 1 :].float()


@torch.inference_mode()
def _through_blocks(model: PreTrainedModel, layers: Sequence[LayerShape], *, compiled: bool) -> list[Tensor]:
    """Return the same through a store: two rows on the first prompt, one on the second."""
    store = BlockStore(layers, 16, dtype=model.dtype, device=model.device)
    forward, prompts = Forward(model), _prompts(model)
    rows = Rows(3, max_tokens=NUM_STEPS + 1, max_blocks=2)
    found: list[list[Tensor]] = [[], []]
    with installed(model):
        for number, (ids, length) in enumerate(zip(prompts, LENGTHS, strict=True)):
            blocks = store.take_shared(number, length)
            parts = [range(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]
            batches = [PrefillBatch([Chunk(ids[r.start : r.stop].tolist(), r.start, blocks)], store) for r in parts]
            logits = [_read(forward, batch) for batch in batches]
            found[number].append(logits[-1])
        for number, length in ((0, LENGTHS[0]), (1, LENGTHS[1]), (0, LENGTHS[0])):
            row = rows.add(group=number, index=0, key=0, prompt_length=length)
            rows.length[row], rows.last[row] = 1, int(prompts[number][length])
            rows.blocks[row, 0] = store.take_private(row, 0)
        batch = steps_of(forward, compiled=compiled).batch(rows, store, independent=False)
        for step in range(NUM_STEPS):
            with reading(batch):
                logits = forward(batch.tokens, batch.token_positions)
            if not torch.allclose(logits[0], logits[2], atol=1e-2 * float(logits[0].std()) + 1e-6):
                raise UnsupportedModelError("two rows with the same tokens differ")
            following = torch.zeros_like(batch.tokens)
            for number, length in enumerate(LENGTHS):
                found[number].append(logits[number])
                if step + 1 < NUM_STEPS:
                    following[number] = prompts[number][length + step + 1]
            following[2] = following[0]
            batch.advance(following)
    return [torch.stack(logits).float() for logits in found]


def _read(forward: Forward, batch: PrefillBatch) -> Tensor:
    with reading(batch):
        return forward(batch.tokens, batch.positions, keep=batch.last)[0]


def _compare(reference: Sequence[Tensor], found: Sequence[Tensor], dtype: torch.dtype) -> None:
    for expected, got in zip(reference, found, strict=True):
        if not expected.isfinite().all():
            return  # damaged weights show, with a message of their own, as soon as anything is drawn
        difference = float((expected - got).abs().max())
        allowed = TOLERANCE[dtype] * max(1.0, float(expected.std()))
        if not difference <= allowed:
            raise UnsupportedModelError(f"its logits differ by {difference:.3g} over blocks, {allowed:.3g} is allowed")

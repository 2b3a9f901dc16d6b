"""Whether a model goes through our attention, and what its layers store of a token.

Nothing is taken on trust. The model reads a few short prompts by itself and through the engine's batches, in float32,
whatever its weights are stored in: there a wrong mask, window, scale, softcap or position stands out from the last
bits. In a narrower type it does not, for rounding alone moves the logits of a real model by a tenth and more; so
there the engine has to be about as near to the float32 logits as the model's own forward is.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from rsft_cluster.generators.engine.attention import Scoring, attend_causally, installed, reading
from rsft_cluster.generators.engine.blocks import LayerShape
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.raising import raised
from rsft_cluster.generators.engine.trial import Trial

TOLERANCE = 1e-3
"""What float32 logits may differ by, of their standard deviation, or of 1 where that is more."""
ROUNDING = 2.0
"""How many times as far from the float32 logits as the model's own the engine's may be, in a narrower type. Other ways
of the same attention (eager, sdpa) are 0.9 to 1.2 times as far."""
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class UnsupportedModelError(Exception):
    """The model cannot be decoded over blocks; the message says why."""


def layer_shapes(model: PreTrainedModel, token_ids: Sequence[int], *, compiled: bool) -> list[LayerShape]:
    """Return what each layer stores. Raises UnsupportedModelError for a model that does not work over blocks.

    `token_ids` are those of some real text, a few hundred or more; `compiled` is whether attention is.
    """
    _check_config(model)
    windows = _windows(model)
    trial = Trial.of(model, token_ids, windows)
    is_narrow = model.dtype != torch.float32
    with torch.no_grad():
        try:
            layers = _recorded(model, trial, windows)
            own = trial.by_itself() if is_narrow else None
            engine = trial.through_blocks(layers, model.dtype, compiled=compiled)
            if own is None:
                expected = trial.by_itself()
                _compare_exactly(expected, engine)
                return layers
            with raised(model):
                expected = trial.by_itself()
                _compare_exactly(expected, trial.through_blocks(layers, torch.float32, compiled=compiled))
        except (LookupError, RuntimeError, TypeError, ValueError, AttributeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            raise UnsupportedModelError(f"{type(error).__name__}: {error}") from error
    _compare_rounding(expected, own, engine, model.dtype)
    return layers


class _Recorder:
    """Attends without a store and notes each layer's shapes."""

    def __init__(self) -> None:
        self._shapes: dict[int, tuple[int, int, int]] = {}

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scoring: Scoring) -> Tensor:
        self._shapes[layer] = (key.shape[0], key.shape[-1], value.shape[-1])
        return attend_causally(query, key, value, scoring, window=None).transpose(0, 1)

    def layers(self, windows: Sequence[int | None]) -> list[LayerShape]:
        if sorted(self._shapes) != list(range(len(windows))):
            raise UnsupportedModelError(
                f"{len(self._shapes)} of its {len(windows)} layers go through transformers' attention interface"
            )
        return [LayerShape(*self._shapes[i], window=window) for i, window in enumerate(windows)]


def _recorded(model: PreTrainedModel, trial: Trial, windows: Sequence[int | None]) -> list[LayerShape]:
    recorder = _Recorder()
    ids = trial.prompts[-1]
    with installed(model), reading(recorder):
        Forward(model)(ids, torch.arange(len(ids), device=model.device), keep=[len(ids) - 1])
    return recorder.layers(windows)


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
    windows = [n.sliding_window if isinstance(n, DynamicSlidingWindowLayer) else None for n in layers]
    return windows or [None] * config.num_hidden_layers


def _compare_exactly(expected: Sequence[Tensor], engine: Sequence[Tensor]) -> None:
    """Raise unless float32 logits agree up to their last bits."""
    for reference, logits in zip(expected, engine, strict=True):
        if not reference.isfinite().all():
            return  # damaged weights show, with a message of their own, as soon as anything is drawn
        difference = float((reference - logits).abs().max())
        allowed = TOLERANCE * max(1.0, float(reference.std()))
        if not difference <= allowed:
            raise UnsupportedModelError(f"its logits differ by {difference:.3g} over blocks, {allowed:.3g} is allowed")


def _compare_rounding(
    expected: Sequence[Tensor], own: Sequence[Tensor], engine: Sequence[Tensor], dtype: torch.dtype
) -> None:
    """Raise unless the engine's logits are about as near to the float32 ones as the model's own are."""
    for reference, model_logits, engine_logits in zip(expected, own, engine, strict=True):
        if not reference.isfinite().all():
            return
        error = _typical_error(reference, engine_logits)
        allowed = ROUNDING * _typical_error(reference, model_logits) + TOLERANCE
        if not error <= allowed:
            name = str(dtype).removeprefix("torch.")
            raise UnsupportedModelError(
                f"its logits differ by {error:.3g} over blocks in {name}, typically, {allowed:.3g} is allowed: "
                f"{ROUNDING:g} times what the model's own rounding does"
            )


def _typical_error(expected: Tensor, logits: Tensor) -> float:
    """Return the median over tokens of the root mean square difference; what is added to all logits is no difference.

    The median, because a mixture of experts may send single tokens elsewhere for a last bit.
    """
    difference = logits.float() - expected
    difference = difference - difference.mean(-1, keepdim=True)
    return float(difference.square().mean(-1).sqrt().median())

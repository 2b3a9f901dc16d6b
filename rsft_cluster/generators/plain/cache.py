"""A key-value cache that grows in place: transformers' DynamicCache, without its copy at every step.

DynamicCache concatenates, so a step copies every key and value; that was 18 % of a decode step of 128 rows on
one CPU thread. Layers with a sliding window or a recurrent state stay as transformers makes them.
"""

from typing import Any, cast

from torch import LongTensor, Tensor
from transformers import DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

ROOM = 64
"""Columns added at once: the cache is copied once in as many steps."""


def new_cache(config: PretrainedConfig) -> DynamicCache:
    """Return an empty cache for a model."""
    cache = DynamicCache(config=config)
    cache.layers = [RoomyLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def tolerates_padding(config: PretrainedConfig) -> bool:
    """Return whether every layer is pure attention.

    A recurrent layer runs over the padding as well, and only the model itself could undo that.
    """
    kinds = {type(layer) for layer in DynamicCache(config=config).layers}
    return kinds <= {DynamicLayer, DynamicSlidingWindowLayer}


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer: views into buffers with room for the next tokens."""

    def __init__(self) -> None:
        super().__init__()
        self._key_room: Tensor | None = None
        self._value_room: Tensor | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *_args: Any, **_kwargs: Any) -> tuple[Tensor, Tensor]:
        """Append new tokens; return all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self.keys, self.values = key_states, value_states
            return key_states, value_states
        keys, self._key_room = _append(cast("Tensor", self.keys), key_states, self._key_room)
        values, self._value_room = _append(cast("Tensor", self.values), value_states, self._value_room)
        self.keys, self.values = keys, values
        return keys, values

    def reorder_cache(self, beam_idx: LongTensor) -> None:
        """Keep the rows `beam_idx`, in that order; a row may come several times."""
        super().reorder_cache(beam_idx)
        self._key_room = self._value_room = None


def _append(held: Tensor, states: Tensor, room: Tensor | None) -> tuple[Tensor, Tensor]:
    start, end = held.shape[-2], held.shape[-2] + states.shape[-2]
    if room is None or end > room.shape[-2]:
        room = held.new_empty((*held.shape[:-2], end + ROOM, held.shape[-1]))
        room[..., :start, :] = held
    room[..., start:end, :] = states
    return room[..., :end, :], room

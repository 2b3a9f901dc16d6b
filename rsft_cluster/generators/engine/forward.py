"""A forward of a Hugging Face model over one packed sequence of tokens, each with a position of its own."""

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from rsft_cluster.policies.tokens import num_context_tokens


class Forward:
    """Calls the model without a cache: keys and values are stored where attention is called."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        accepted = inspect.signature(model.forward).parameters
        self.last_position = (num_context_tokens(model.config) or 1 << 30) - 1
        """The last one that the model has."""
        self._keeps = "logits_to_keep" in accepted

    def __call__(self, tokens: Tensor, positions: Tensor | None, *, keep: Sequence[int] | None = None) -> Tensor:
        """Return the logits (tokens, vocabulary), or those of the tokens at `keep` alone.

        Without positions the model counts them itself.
        """
        chosen = None if keep is None else torch.tensor(keep, dtype=torch.int64, device=tokens.device)
        last_only = {"logits_to_keep": chosen} if chosen is not None and self._keeps else {}
        position_ids = None if positions is None else positions[None]
        output = self.model(input_ids=tokens[None], position_ids=position_ids, use_cache=False, **last_only)
        logits = output.logits[0]
        return logits if chosen is None or self._keeps else logits[chosen]

"""Decode a batch of rows with an unmodified Hugging Face model and its own cache: for models that the engine refuses.

Every prompt of the batch is prefilled once, left padded; its cache is then spread over the prompt's candidates,
which are decoded together and leave the batch as they finish. This module knows nothing about messages, plans or
what to do when memory runs out.
"""

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from rsft_cluster.generators.base import Completion, Decoding, FinishReason, Law
from rsft_cluster.generators.completing import Row, check_finite, complete
from rsft_cluster.generators.drawing import Draw, draw, keys_tensor
from rsft_cluster.generators.plain.cache import new_cache, tolerates_padding
from rsft_cluster.generators.stopping import Ending, StopRule

COMPACT_SHARE = 8
"""Finished rows leave the batch once they are one in COMPACT_SHARE: leaving copies the cache, as one step does."""


@dataclass(slots=True)
class _Growing:
    """A row that is being decoded."""

    row: Row
    ending: Ending
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    target_logprob: float = 0.0
    token_logprobs: list[float] = field(default_factory=list)
    law: Law | None = None

    def push(self, token: int, logprob: float, target_logprob: float) -> bool:
        """Add a token; return whether it ends the completion."""
        check_finite(logprob, target_logprob, len(self.row.prompt_token_ids), len(self.token_ids))
        self.token_ids.append(token)
        self.logprob += logprob
        self.target_logprob += target_logprob
        if self.row.law is not None:
            self.token_logprobs.append(logprob)
            self.law = self.law.after(token) if self.law is not None else None
        return self.ending.reached(token)

    def finish(self, reason: FinishReason, rule: StopRule) -> Completion:
        """Return the completion."""
        return complete(
            self.row,
            self.token_ids,
            logprob=self.logprob,
            target_logprob=self.target_logprob,
            reason=reason,
            rule=rule,
            token_logprobs=self.token_logprobs,
        )


@dataclass(slots=True)
class _Prefix:
    """Prefilled prompts: one cache row, one row of logits and one length per prompt, in the given order."""

    cache: DynamicCache
    logits: Tensor
    lengths: Tensor
    width: int
    order: Mapping[int, int]


@dataclass(slots=True)
class _State:
    """The tensors of a batch in mid-decoding, one row per growing completion."""

    cache: DynamicCache
    keys: Tensor
    lengths: Tensor
    mask: Tensor
    width: int
    """Filled columns of the mask, which are the tokens in the cache."""

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        self.cache.reorder_cache(cast("torch.LongTensor", rows))
        self.keys, self.lengths, self.mask = self.keys[rows], self.lengths[rows], self.mask[rows]


class BatchDecoder:
    """Decodes batches with one model. Holds no state between batches."""

    def __init__(self, model: PreTrainedModel, *, pad_token_id: int) -> None:
        self._model = model
        self._pad = pad_token_id
        accepted = inspect.signature(model.forward).parameters
        self._takes_positions = "position_ids" in accepted
        self._last_only = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self.mixes_lengths = self._takes_positions and tolerates_padding(model.config)
        """True if prompts of different lengths may share a batch; else a batch is one prompt, without padding."""

    def decode(
        self, rows: Sequence[Row], decoding: Decoding, *, rule: StopRule, num_rows: int
    ) -> Iterator[list[Completion]]:
        """Yield the completions of `rows`, at most `num_rows` decoded at once; prompts are prefilled together."""
        prompts = {row.prompt: row.prompt_token_ids for row in rows}
        prefix = self._prefill(prompts)
        for start in range(0, len(rows), num_rows):
            part = rows[start : start + num_rows]
            is_last = start + num_rows >= len(rows)
            state, logits = self._spread(prefix, part, decoding.max_tokens, consume=is_last)
            yield self._finish(part, state, logits, decoding, rule)

    @torch.inference_mode()
    def _prefill(self, prompts: Mapping[int, Sequence[int]]) -> _Prefix:
        device = self._model.device
        width = max(len(ids) for ids in prompts.values())
        padded = [[self._pad] * (width - len(ids)) + list(ids) for ids in prompts.values()]
        lengths = torch.tensor([len(ids) for ids in prompts.values()], device=device)
        columns = torch.arange(width, device=device) - (width - lengths)[:, None]
        cache = new_cache(self._model.config)
        logits = self._forward(
            torch.tensor(padded, device=device),
            mask=(columns >= 0).long(),
            positions=columns.clamp(min=0),
            cache=cache,
        )
        return _Prefix(cache, logits, lengths, width, {prompt: i for i, prompt in enumerate(prompts)})

    @torch.inference_mode()
    def _spread(self, prefix: _Prefix, rows: Sequence[Row], max_tokens: int, *, consume: bool) -> tuple[_State, Tensor]:
        """Give every row a copy of its prompt's cache; return them with the logits after their prompts."""
        device = self._model.device
        owners = torch.tensor([prefix.order[row.prompt] for row in rows], device=device)
        cache = prefix.cache if consume else copy.deepcopy(prefix.cache)
        cache.reorder_cache(cast("torch.LongTensor", owners))
        lengths = prefix.lengths[owners]
        columns = torch.arange(prefix.width + max_tokens, device=device)
        mask = (columns >= (prefix.width - lengths)[:, None]).long()
        keys = keys_tensor([row.key for row in rows], device=device)
        return _State(cache, keys, lengths, mask, prefix.width), prefix.logits[owners]

    @torch.inference_mode()
    def _finish(
        self, rows: Sequence[Row], state: _State, logits: Tensor, decoding: Decoding, rule: StopRule
    ) -> list[Completion]:
        growing: list[_Growing | None] = [_Growing(row, Ending(rule), law=row.law) for row in rows]
        has_laws = any(row.law is not None for row in rows)
        finished: list[Completion] = []
        for step in range(decoding.max_tokens):
            laws = [each.law if each is not None else None for each in growing] if has_laws else None
            steps = torch.full_like(state.keys, step)
            drawn = draw(logits, keys=state.keys, steps=steps, decoding=decoding, laws=laws)
            for i, values in enumerate(_to_host(drawn)):
                current = growing[i]
                if current is not None and current.push(*values):
                    finished.append(current.finish("stop", rule))
                    growing[i] = None
            kept = [i for i, each in enumerate(growing) if each is not None]
            if not kept or step + 1 == decoding.max_tokens:
                break
            tokens = drawn.tokens
            if len(growing) - len(kept) >= max(1, len(growing) // COMPACT_SHARE):
                rows_kept = torch.tensor(kept, device=tokens.device)
                state.keep(rows_kept)
                tokens, growing = tokens[rows_kept], [growing[i] for i in kept]
            logits = self._step(tokens, state)
        return finished + [each.finish("length", rule) for each in growing if each is not None]

    def _step(self, tokens: Tensor, state: _State) -> Tensor:
        state.width += 1
        logits = self._forward(
            tokens[:, None],
            mask=state.mask[:, : state.width],
            positions=state.lengths[:, None],
            cache=state.cache,
        )
        state.lengths = state.lengths + 1
        return logits

    def _forward(self, token_ids: Tensor, *, mask: Tensor, positions: Tensor, cache: DynamicCache) -> Tensor:
        """Run the model over new tokens, extending the cache; return the logits after the last one."""
        position_ids = {"position_ids": positions} if self._takes_positions else {}
        output = self._model(
            input_ids=token_ids,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            **position_ids,
            **self._last_only,
        )
        return output.logits[:, -1]


def _to_host(drawn: Draw) -> Iterator[tuple[int, float, float]]:
    # One copy a step; token ids are exact in float64.
    stacked = torch.stack([drawn.tokens.double(), drawn.logprobs, drawn.target_logprobs])
    for token, logprob, target_logprob in zip(*stacked.tolist(), strict=True):
        yield int(token), logprob, target_logprob

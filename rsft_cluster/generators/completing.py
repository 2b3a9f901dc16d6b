"""From rows to completions, for both kinds of decoding."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from rsft_cluster.errors import StageError
from rsft_cluster.generators.base import Completion, Decoding, FinishReason, Law
from rsft_cluster.generators.stopping import StopRule


@dataclass(frozen=True, slots=True)
class Row:
    """A completion to draw: one key of a prompt."""

    prompt: int
    index: int
    key: int
    prompt_token_ids: tuple[int, ...]
    law: Law | None = None
    """The law it is drawn by; None for the proposal."""


def complete(
    row: Row,
    token_ids: Sequence[int],
    *,
    logprob: float,
    target_logprob: float,
    reason: FinishReason,
    rule: StopRule,
    token_logprobs: Sequence[float] = (),
) -> Completion:
    """Return the completion of a row."""
    return Completion(
        prompt=row.prompt,
        index=row.index,
        prompt_token_ids=row.prompt_token_ids,
        token_ids=tuple(token_ids),
        text=rule.decode(token_ids),
        finish_reason=reason,
        logprob=logprob,
        target_logprob=target_logprob,
        token_logprobs=tuple(token_logprobs),
    )


def check_finite(logprob: float, target_logprob: float, num_prompt_tokens: int, num_drawn: int) -> None:
    """Raise StageError where a drawn token shows that the logits were not finite."""
    if not (math.isfinite(logprob) and math.isfinite(target_logprob)):
        raise StageError(
            f"the policy's logits are not finite after {num_prompt_tokens} prompt tokens and {num_drawn} drawn ones: "
            "its weights are damaged, or its dtype is too narrow"
        )


def out_of_memory(row: Row, decoding: Decoding) -> str:
    """Return the reason to refuse a prompt of which not even one completion fits in memory."""
    return (
        f"out of memory: one completion of {len(row.prompt_token_ids)} prompt tokens and up to "
        f"{decoding.max_tokens} more does not fit on the device"
    )

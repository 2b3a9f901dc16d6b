"""One line of a file with candidates: the prompt as `prompts.columns` says, and what was answered to it.

    {"prompt": "2 + 3 =", "completion": " 5", "logprob": -0.2, "model": "elsewhere"}
    {"messages": [...], "completions": ["5", {"completion": "It is 5.", "finish_reason": "length"}]}

A completion may bring `token_ids`, `prompt_token_ids`, `logprob` (under what it was drawn from), `target_logprob`
(under the policy at temperature 1), `finish_reason` and `model`; in a list each may, beside what the line says of all.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rsft_cluster.prompts.jsonl import kind
from rsft_cluster.prompts.mapping import ColumnMapping, MappedPrompt
from rsft_cluster.prompts.rows import Refused, Row

FINISH_REASONS = ("stop", "length")
NAMES = (
    "completion", "completions", "token_ids", "prompt_token_ids", "logprob", "target_logprob", "finish_reason", "model",
)  # fmt: skip
MAX_TOKEN_ID = 2**31 - 1


@dataclass(frozen=True)
class ImportedCompletion:
    """One completion, with what its file says of it."""

    text: str
    token_ids: tuple[int, ...] | None
    prompt_token_ids: tuple[int, ...] | None
    logprob: float | None
    target_logprob: float | None
    finish_reason: str
    model: str

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def parse_line(row: Row, mapping: ColumnMapping) -> tuple[MappedPrompt, list[ImportedCompletion]]:
    """Return the prompt and the completions of a row; raises Refused with key and reason."""
    prompt, fields = mapping.prompt(row), row.fields
    one, several = fields.get("completion"), fields.get("completions")
    if (one is None) == (several is None):
        both = "both" if one is not None else "neither"
        raise Refused(f"{both} 'completion' and 'completions' are there; expected one of them")
    if one is not None:
        return prompt, [_completion(fields, "")]
    if not isinstance(several, Sequence) or isinstance(several, str) or not several:
        raise Refused(f"'completions' is {kind(several)}, not a list with something in it")
    return prompt, list(_completions(several, fields))


def _completions(several: Sequence[object], fields: Mapping[str, object]) -> Iterator[ImportedCompletion]:
    of_all = {name: fields.get(name) for name in ("prompt_token_ids", "finish_reason", "model")}
    if told := [name for name in ("token_ids", "logprob", "target_logprob") if fields.get(name) is not None]:
        raise Refused(f"{told[0]!r} stands beside several completions; put it into each of them")
    for i, given in enumerate(several):
        own = given if isinstance(given, Mapping) else {"completion": given}
        told = {name: value for name, value in own.items() if value is not None}
        yield _completion({**of_all, **told}, f"completions[{i}].")


def _completion(fields: Mapping[str, object], where: str) -> ImportedCompletion:
    text, finish = fields.get("completion"), fields.get("finish_reason")
    if not isinstance(text, str):
        raise Refused(f"'{where}completion' is {kind(text)}, not text")
    if finish is not None and finish not in FINISH_REASONS:
        raise Refused(f"'{where}finish_reason' is {finish!r}; expected one of {', '.join(FINISH_REASONS)}")
    if not text and finish == "length" and fields.get("token_ids") is None:
        raise Refused(f"'{where}completion' is empty and was cut off: without token_ids there is nothing of it")
    model = fields.get("model")
    if model is not None and not isinstance(model, str):
        raise Refused(f"'{where}model' is {kind(model)}, not text")
    return ImportedCompletion(
        text,
        _token_ids(fields, "token_ids", where),
        _token_ids(fields, "prompt_token_ids", where),
        _logprob(fields, "logprob", where),
        _logprob(fields, "target_logprob", where),
        str(finish or "stop"),
        str(model or "imported"),
    )


def _token_ids(fields: Mapping[str, object], name: str, where: str) -> tuple[int, ...] | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise Refused(f"'{where}{name}' is {kind(value)}, not a list of token ids")
    for i, token in enumerate(value):
        if isinstance(token, bool) or not isinstance(token, int) or not 0 <= token <= MAX_TOKEN_ID:
            raise Refused(f"'{where}{name}[{i}]' is {token!r}, not a token id")
    return tuple(value)


def _logprob(fields: Mapping[str, object], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"'{where}{name}' is {kind(value)}, not a number")
    try:
        found = float(value)
    except OverflowError:  # JSON writes whole numbers of any size
        found = math.inf if value > 0 else -math.inf
    if not math.isfinite(found) or found > 0:
        raise Refused(f"'{where}{name}' is {found}; the logarithm of a probability is finite and at most 0")
    return found

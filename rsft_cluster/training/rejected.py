"""Rejected candidates: what a policy should make less often, and the token with which it went wrong.

A candidate counts as rejected when it was judged and did not pass. One that could not be judged (an error) never does,
nor one that passed and was not drawn, nor one that did not pass and was accepted all the same (the rule `everything`).
Knows nothing of Ray, DeepSpeed or the model.
"""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.training.batches import Example, TokenIds, ragged, read_columns

CANDIDATE_COLUMNS = ("candidate_id", "prompt_id", "round", "prompt_token_ids", "token_ids", "logprob")
SCORE_COLUMNS = (
    "candidate_id", "passed", "accepted", "verdicts.list.element.constraint", "verdicts.list.element.passed",
    "verdicts.list.element.fatal_at",
)  # fmt: skip

Judged = tuple[str, str]
"""URIs of a Parquet file of CANDIDATE rows and of one of their SCORE rows, in the same order."""

Decode = Callable[[Sequence[int]], str]


@dataclass(frozen=True, slots=True)
class Rejected:
    """A rejected candidate, with what it was drawn with."""

    candidate_id: str
    example: Example
    fatal_at: int | None
    """First character that a verdict calls fatal, as `Verdict.fatal_at`."""
    constraint: str
    """Which constraint calls it so."""


class JudgedCandidates:
    """The judged candidates that terms of the loss may learn from, read when they are asked for, once."""

    def __init__(self, files: Sequence[Judged], *, per_prompt: bool, decode: Callable[[], Decode]) -> None:
        """`decode` loads what turns token ids into text."""
        self._files, self._per_prompt, self._decode = files, per_prompt, decode

    @cached_property
    def rejected(self) -> list[Rejected]:
        """Those that were judged and did not pass (`load_rejected`)."""
        return load_rejected(self._files, per_prompt=self._per_prompt)

    @cached_property
    def fatal(self) -> list[Example]:
        """The tokens with which they went wrong (`fatal_examples`)."""
        return fatal_examples(self.rejected, self._decode())


def load_rejected(judged: Sequence[Judged], *, per_prompt: bool) -> list[Rejected]:
    """Read the rejected candidates, in an order that depends on their content alone.

    With `per_prompt` each is weighted by 1 / (judged candidates of its prompt), so that prompts count by the share of
    their candidates that was rejected: the mean over prompts of the probability to be rejected. Each draw counts, also
    of a completion that was drawn before: together they estimate that probability.

    Raises StoreError where the files do not belong together.
    """
    num_of: Counter[str] = Counter()
    rows: list[dict[str, Any]] = []
    for candidates, scores in judged:
        for row in _judged_rows(candidates, scores):
            num_of[row["prompt_id"]] += 1
            if not row["passed"] and not row["accepted"] and len(row["token_ids"]):
                rows.append(row)
    rows.sort(key=lambda r: (r["round"], r["candidate_id"]))
    return [_rejected(row, 1 / num_of[row["prompt_id"]] if per_prompt else 1.0) for row in rows]


def fatal_examples(rejected: Sequence[Rejected], decode: Decode) -> list[Example]:
    """Return the fatal tokens of those candidates that have one, each as the completion of all before it."""
    found = []
    for one in rejected:
        if one.fatal_at is None:
            continue
        prompt, completion = one.example.prompt_ids, one.example.completion_ids
        try:
            place = fatal_token(completion.tolist(), one.fatal_at, decode)
        except ValueError as error:
            raise ConfigError(
                f"candidate {one.candidate_id}: constraint {one.constraint!r} says fatal_at = {one.fatal_at}: {error}"
            ) from error
        if place is not None:
            found.append(_completing(prompt, completion, place, one.example.weight))
    return found


def fatal_token(token_ids: Sequence[int], fatal_at: int, decode: Decode) -> int | None:
    """Return the place of the token that completes the character `fatal_at` of the text of token ids.

    A character whose bytes are spread over several tokens belongs to the last of them: before it, others could have
    come. The end of the text belongs to the token that ended it, to none where the completion was cut off. Raises
    ValueError beyond the end.
    """
    text = decode(token_ids)
    if fatal_at > len(text):
        raise ValueError(f"the completion has {len(text)} characters")
    if fatal_at == len(text):
        last = len(token_ids) - 1
        return last if decode(token_ids[:last]) == text else None
    upto = fatal_at + 1
    # A longer prefix agrees with the text wherever a shorter one does.
    sizes = range(1, len(token_ids) + 1)
    return bisect_left(sizes, True, key=lambda size: decode(token_ids[:size])[:upto] == text[:upto])


def _completing(prompt: TokenIds, completion: TokenIds, place: int, weight: float) -> Example:
    before = np.concatenate([prompt, completion[:place]])
    return Example(before, completion[place : place + 1], weight)


def _judged_rows(candidates_uri: str, scores_uri: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of candidates that were judged, with their verdicts."""
    scores = read_columns(scores_uri, SCORE_COLUMNS, what="scores")
    candidates = read_columns(candidates_uri, CANDIDATE_COLUMNS, what="candidates")
    if candidates["candidate_id"].to_pylist() != scores["candidate_id"].to_pylist():
        raise StoreError(f"{scores_uri}: its rows are not those of {candidates_uri}, in the same order")
    said = scores["passed"].is_valid()
    scores, candidates = scores.filter(said), candidates.filter(said)
    narrow = candidates.select(["candidate_id", "prompt_id", "round", "logprob"]).to_pylist()
    verdicts = scores.select(["passed", "accepted", "verdicts"]).to_pylist()
    prompts, completions = ragged(candidates["prompt_token_ids"]), ragged(candidates["token_ids"])
    for row, score, prompt, completion in zip(narrow, verdicts, prompts, completions, strict=True):
        if not len(prompt):
            raise ConfigError(f"{candidates_uri}: candidate {row['candidate_id']} has an empty prompt")
        if row["logprob"] is None or not math.isfinite(row["logprob"]):
            found = f"candidate {row['candidate_id']} has the logprob {row['logprob']}"
            raise ConfigError(f"{candidates_uri}: {found}; it must be finite")
        yield {**row, **score, "prompt_token_ids": prompt, "token_ids": completion}


def _rejected(row: dict[str, Any], weight: float) -> Rejected:
    example = Example(row["prompt_token_ids"], row["token_ids"], weight, row["logprob"])
    fatal = [v for v in row["verdicts"] if v["passed"] is False and v["fatal_at"] is not None]
    first = min(fatal, key=lambda v: v["fatal_at"], default={"fatal_at": None, "constraint": ""})
    return Rejected(row["candidate_id"], example, first["fatal_at"], first["constraint"])

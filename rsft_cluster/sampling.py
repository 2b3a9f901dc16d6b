"""A policy answers each prompt of a unit: PROMPT -> CANDIDATE.

Runs inside a sampling actor and knows nothing of Ray: it keys every candidate, calls the generator, and checks that
each key was answered exactly once.
"""

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import pyarrow as pa

from rsft_cluster.errors import StageError
from rsft_cluster.generators.base import Completion, Decoding, Generator, PolicySpec, Prompt, Refusal
from rsft_cluster.keys import sampling_key
from rsft_cluster.plugins import Bound
from rsft_cluster.prompts import to_messages
from rsft_cluster.records import Pass, Plan
from rsft_cluster.schemas import CANDIDATE, candidate_id, rows_to_table
from rsft_cluster.store import localise


@dataclass(frozen=True)
class SampledUnit:
    """What a generator made of a unit."""

    candidates: pa.Table
    """CANDIDATE rows by prompt, then by index."""
    quarantined: Mapping[str, str]
    """Prompts that cannot be answered, with the reason."""
    duration_s: float


class UnitSampler:
    """A loaded generator, ready to answer units of one plan."""

    def __init__(self, plan: Plan, policy: PolicySpec, generator: Bound) -> None:
        model = str(localise(policy.model)) if "://" in policy.model else policy.model
        self._plan = plan
        self._generator: Generator = generator(replace(policy, model=model))

    def sample(self, prompts: pa.Table) -> SampledUnit:
        """Answer PROMPT rows by every pass of the plan. Indices go on from one pass to the next."""
        start = time.monotonic()
        asked = [Prompt(r["prompt_id"], to_messages(r["messages"]), r["reference"]) for r in prompts.to_pylist()]
        rows: dict[tuple[int, int], dict[str, object]] = {}
        refused: dict[int, str] = {}
        first = 0
        for wave, way in enumerate(self._plan.passes):
            found, declined = self._one_pass(asked, wave, way, first)
            rows |= found
            refused |= declined
            first += way.num_candidates
        kept = [row for (position, _), row in sorted(rows.items()) if position not in refused]
        return SampledUnit(
            rows_to_table(kept, CANDIDATE),
            {asked[position].prompt_id: reason for position, reason in sorted(refused.items())},
            time.monotonic() - start,
        )

    def _one_pass(
        self, prompts: list[Prompt], wave: int, way: Pass, first: int
    ) -> tuple[dict[tuple[int, int], dict[str, object]], dict[int, str]]:
        indices = range(first, first + way.num_candidates)
        keys = [
            [sampling_key(self._plan.seed, self._plan.stream, p.prompt_id, index) for index in indices] for p in prompts
        ]
        decoding = decoding_of(way)
        rows: dict[tuple[int, int], dict[str, object]] = {}
        refused: dict[int, str] = {}
        for answer in self._generator.generate(prompts, decoding, keys):
            if isinstance(answer, Refusal):
                refused[answer.prompt] = answer.reason
                continue
            place = (answer.prompt, first + answer.index)
            if place in rows:
                raise StageError(f"the generator answered candidate {place[1]} of prompt {place[0]} twice")
            rows[place] = self._row(answer, prompts, keys, wave, place[1])
        _check_complete(rows, refused, len(prompts), indices)
        return rows, refused

    def _row(
        self, answer: Completion, prompts: list[Prompt], keys: list[list[int]], wave: int, index: int
    ) -> dict[str, object]:
        prompt = prompts[answer.prompt].prompt_id
        return {
            "candidate_id": candidate_id(prompt, self._plan.round, index),
            "prompt_id": prompt,
            "round": self._plan.round,
            "wave": wave,
            "index": index,
            "prompt_token_ids": answer.prompt_token_ids,
            "token_ids": answer.token_ids,
            "text": answer.text,
            "finish_reason": answer.finish_reason,
            "logprob": answer.logprob,
            "target_logprob": answer.target_logprob,
            "seed": keys[answer.prompt][answer.index],
            "policy": self._plan.policy.name,
        }


def decoding_of(way: Pass) -> Decoding:
    """Return how a pass of a plan draws its tokens."""
    return Decoding(**way.model_dump(exclude={"num_candidates"}))


def _check_complete(
    rows: Iterable[tuple[int, int]], refused: Mapping[int, str], num_prompts: int, indices: range
) -> None:
    wanted = {(p, i) for p in range(num_prompts) if p not in refused for i in indices}
    missing = wanted - set(rows)
    if missing:
        position, index = min(missing)
        raise StageError(
            f"the generator left out {len(missing)} of {len(wanted)} candidates, "
            f"first index {index} of prompt {position}"
        )

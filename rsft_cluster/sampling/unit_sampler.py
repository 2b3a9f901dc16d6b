"""A policy answers each prompt of a unit: PROMPT -> CANDIDATE.

Runs inside a sampling actor and knows nothing of Ray: it keys every candidate, calls the generator, and checks that
each key was answered exactly once.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa

from rsft_cluster.errors import StageError
from rsft_cluster.generators.base import Completion, Decoding, Exhausted, Generator, Prompt, Refusal, Remarking
from rsft_cluster.keys import sampling_key
from rsft_cluster.policies.references import localised
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import Pass, Plan
from rsft_cluster.schemas import CANDIDATE, candidate_id, rows_to_table, to_messages


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

    def __init__(self, plan: Plan, policy: PolicySpec, generator: Callable[[PolicySpec], Generator]) -> None:
        self._plan = plan
        self._generator = generator(localised(policy))

    @property
    def remarks(self) -> tuple[str, ...]:
        """What the generator says about how it decodes."""
        return tuple(self._generator.remarks) if isinstance(self._generator, Remarking) else ()

    def sample(self, units: Sequence[pa.Table]) -> Iterator[tuple[int, SampledUnit]]:
        """Answer the PROMPT rows of units by every pass of the plan; yield each unit as it is finished.

        The prompts of all units are given to the generator together. Indices go on from one pass to the next.
        """
        since = time.monotonic()
        answered = _Answered(units)
        for wave, way in enumerate(self._plan.passes):
            for unit in self._one_pass(answered, wave, way):
                now = time.monotonic()
                yield unit, answered.finished(unit, now - since)
                since = now

    def _one_pass(self, answered: "_Answered", wave: int, way: Pass) -> Iterator[int]:
        """Answer every prompt by one pass; yield the units that are finished with it, which none is but by the last."""
        asked = answered.asked()
        prompts = [answered.prompts[position] for position in asked]
        indices = answered.begin(way.num_candidates)
        is_last = wave + 1 == len(self._plan.passes)
        keys = [
            [
                sampling_key(self._plan.seed, self._plan.stream, answered.prompts[p].prompt_id, index)
                for index in indices[p]
            ]
            for p in asked
        ]
        finished = {unit for unit in range(answered.num_units) if is_last and answered.is_finished(unit)}
        yield from sorted(finished)
        for answer in self._generator.generate(prompts, decoding_of(way), keys):
            position = asked[answer.prompt]
            unit = answered.unit_of[position]
            if isinstance(answer, Refusal):
                answered.refuse(position, answer.reason)
            elif isinstance(answer, Exhausted):
                answered.exhaust(position)
            elif answer.index not in range(len(indices[position])):
                wanted = len(indices[position])
                raise StageError(f"the generator answered with index {answer.index} of {wanted} candidates")
            else:
                index = indices[position][answer.index]
                answered.add(position, index, self._row(answer, prompts, keys, self._plan.wave + wave, index))
            if is_last and answered.is_finished(unit) and unit not in finished:
                finished.add(unit)
                yield unit
        answered.check_complete()

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
            "survival": answer.survival,
            "seed": keys[answer.prompt][answer.index],
            "policy": self._plan.policy.name,
        }


def decoding_of(way: Pass) -> Decoding:
    """Return how a pass of a plan draws its tokens."""
    return Decoding(**way.model_dump(exclude={"num_candidates", "adaptive"}))


class _Answered:
    """What a generator made so far of the prompts of some units."""

    def __init__(self, units: Sequence[pa.Table]) -> None:
        rows = [(i, row) for i, unit in enumerate(units) for row in unit.to_pylist()]
        self.num_units = len(units)
        self.unit_of = [i for i, _ in rows]
        self.prompts = [
            Prompt(r["prompt_id"], to_messages(r["messages"]), r["reference"], dict(r["attributes"])) for _, r in rows
        ]
        self._rows: list[dict[int, dict[str, object]]] = [{} for _ in rows]
        """Of each prompt, by index."""
        self._refused: dict[int, str] = {}
        self._asks = [(row.get("first_index", 0), row.get("num_candidates")) for _, row in rows]
        self._expected = [0 for _ in rows]
        self._num_missing = [0] * len(units)

    def begin(self, num_candidates: int) -> list[range]:
        """Wait for another pass over every prompt that was not refused; return each prompt's indices in it.

        A prompt that says itself how many candidates it is to get (schema ASKED) gets those.
        """
        indices = []
        for position, unit in enumerate(self.unit_of):
            first, own = self._asks[position]
            count = num_candidates if own is None else own
            start = first + self._expected[position]
            indices.append(range(start, start + count))
            self._expected[position] += count
            self._num_missing[unit] += 0 if position in self._refused else count
        return indices

    def add(self, position: int, index: int, row: dict[str, object]) -> None:
        """Take a candidate. Raises StageError for one that is there already."""
        if index in self._rows[position]:
            raise StageError(f"the generator answered candidate {index} of prompt {position} twice")
        self._rows[position][index] = row
        self._num_missing[self.unit_of[position]] -= position not in self._refused

    def asked(self) -> list[int]:
        """Return the positions of the prompts that were not refused."""
        return [position for position in range(len(self.prompts)) if position not in self._refused]

    def refuse(self, position: int, reason: str) -> None:
        """Take a refusal: nothing more is expected of this prompt."""
        if position not in self._refused:
            self._num_missing[self.unit_of[position]] -= self._expected[position] - len(self._rows[position])
        self._refused[position] = reason

    def exhaust(self, position: int) -> None:
        """Expect no more of a prompt in this pass than what is there."""
        num_left = self._expected[position] - len(self._rows[position])
        self._expected[position] -= num_left
        self._num_missing[self.unit_of[position]] -= num_left

    def is_finished(self, unit: int) -> bool:
        """Say whether everything expected of a unit is there."""
        return self._num_missing[unit] == 0

    def check_complete(self) -> None:
        """Raise StageError when the generator left something out."""
        for position, rows in enumerate(self._rows):
            first = self._asks[position][0]
            expected = range(first, first + self._expected[position])
            missing = [] if position in self._refused else sorted(set(expected) - rows.keys())
            if missing:
                num_expected = sum(n for p, n in enumerate(self._expected) if p not in self._refused)
                raise StageError(
                    f"the generator left out {sum(self._num_missing)} of {num_expected} candidates, "
                    f"first index {missing[0]} of prompt {position}"
                )

    def finished(self, unit: int, duration_s: float) -> SampledUnit:
        """Return a unit's candidates, by prompt and then by index, and let go of them."""
        mine = [position for position, owner in enumerate(self.unit_of) if owner == unit]
        kept = [self._rows[p][i] for p in mine if p not in self._refused for i in sorted(self._rows[p])]
        refused = {self.prompts[p].prompt_id: self._refused[p] for p in mine if p in self._refused}
        return SampledUnit(rows_to_table(kept, CANDIDATE), refused, duration_s)

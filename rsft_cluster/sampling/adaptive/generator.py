"""A generator that does not draw again what the acceptance rule rejects: draw, judge, take off, draw on.

Every prompt of a call has a trie of its own, so what is drawn is a function of the call, as with any generator. A lot
of a prompt's candidates is drawn from one state of its trie and carries the shares that were left there. The scoring
actors judge the candidates once more and decide: equal completions must get equal verdicts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa

from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.decide import decide
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.config import AcceptanceConfig, AdaptiveConfig, ScoringConfig
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.errors import PluginError
from rsft_cluster.generators.base import (
    Completion,
    Decoding,
    Exhausted,
    Generator,
    Prompt,
    Refusal,
    Remarking,
    SteerableGenerator,
)
from rsft_cluster.generators.stopping import INCOMPLETE
from rsft_cluster.plugins import Bound, steered
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.sampling.adaptive.trie import Trie
from rsft_cluster.scoring.guarded_judge import GuardedJudge
from rsft_cluster.scoring.judge import Judgement


def adaptive(
    generator: Bound, how: AdaptiveConfig, scoring: ScoringConfig, rule: Bound
) -> Callable[[PolicySpec], Generator]:
    """Return what builds the generator's adaptive form on a worker; PluginError where it has none."""
    drawing_by_laws = steered(generator)
    if drawing_by_laws is None:
        raise PluginError(f"sampling.adaptive: {generator.use} cannot leave out what was rejected; use transformers")
    return lambda policy: AdaptiveGenerator(drawing_by_laws(policy), how, scoring, rule)


@dataclass(frozen=True)
class _Drawn:
    """A completion, and what was known of it when it was drawn."""

    completion: Completion
    survival: float
    depth: int
    """How many of its tokens told that."""


class AdaptiveGenerator:
    """Draws lots of candidates of many prompts together, and takes off what is rejected after each."""

    def __init__(self, plain: SteerableGenerator, how: AdaptiveConfig, scoring: ScoringConfig, rule: Bound) -> None:
        self._plain = plain
        self._how = how
        self._scoring = scoring
        self._required = {c.name for c in scoring.constraints if c.required}
        self._alone = SelectionRules(rule, AcceptanceConfig(dedupe=False))

    @cached_property
    def _judge(self) -> GuardedJudge:
        return GuardedJudge(self._scoring)

    @property
    def remarks(self) -> Sequence[str]:
        """What the plain generator says about how it decodes."""
        return self._plain.remarks if isinstance(self._plain, Remarking) else ()

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal | Exhausted]:
        """Yield one Completion for every key, by lots of low indices first, until nothing of a prompt is left."""
        tries = {i: Trie() for i in range(len(prompts))}
        size = self._how.draws_at_once
        for start in range(0, max(map(len, keys), default=0), size):
            asked = [i for i in tries if len(keys[i]) > start]
            lot = self._plain.generate(
                [prompts[i] for i in asked],
                decoding,
                [keys[i][start : start + size] for i in asked],
                [tries[i].root for i in asked],
            )
            completions = []
            for answer in lot:
                if isinstance(answer, Refusal):
                    del tries[asked[answer.prompt]]
                    yield Refusal(asked[answer.prompt], answer.reason)
                else:
                    completions.append(replace(answer, prompt=asked[answer.prompt], index=start + answer.index))
            yield from self._learn(prompts, sorted(completions, key=lambda c: (c.prompt, c.index)), tries)
            for i in [i for i in asked if i in tries and tries[i].is_exhausted and len(keys[i]) > start + size]:
                del tries[i]
                yield Exhausted(i)

    def _learn(
        self, prompts: Sequence[Prompt], completions: Sequence[Completion], tries: Mapping[int, Trie]
    ) -> Iterator[Completion]:
        """Take off the tries what a lot has taught; yield the lot with the shares that were left before."""
        drawn = [_Drawn(c, *tries[c.prompt].look_up(c.token_ids)) for c in completions]
        # The units are judged again, and watched, by the scoring actors.
        judgements = self._judge.judge_unaudited([_candidate(prompts[c.prompt], c) for c in completions])
        chances = self._chances(completions, judgements)
        for one, judgement, chance in zip(drawn, judgements, chances, strict=True):
            completion = one.completion
            num_tokens, left = self._taken_off(one, judgement, chance)
            tries[completion.prompt].remember(
                completion.token_ids[:num_tokens], completion.token_logprobs[:num_tokens], left
            )
            yield replace(completion, survival=one.survival or 1.0)

    def _chances(self, completions: Sequence[Completion], judgements: Sequence[Judgement]) -> Sequence[float]:
        """Return the acceptance probability that the rule gives each, by what it is and not by when it was drawn."""
        rows = [
            {
                "candidate_id": str(i),
                "prompt_id": str(c.prompt),
                "index": c.index,
                "score": judgement.score,
                "passed": judgement.passed,
                "num_tokens": len(c.token_ids),
                "logprob": c.logprob,
                "target_logprob": c.target_logprob,
                "survival": 1.0,
                "u": 0.0,
            }
            for i, (c, judgement) in enumerate(zip(completions, judgements, strict=True))
        ]
        decided = decide(pa.Table.from_pylist(rows, schema=JUDGED), self._alone).table
        return decided.column("rule_probability").to_pylist()

    def _taken_off(self, one: _Drawn, judgement: Judgement, chance: float) -> tuple[int, float]:
        """Return how many tokens of a completion make the prefix to remember, and the share to leave of it."""
        num_tokens = len(one.completion.token_ids)
        if one.survival == 0.0:
            # It began with a dead prefix, so the one before that had nothing left but rounding.
            return one.depth - 1, 0.0
        if judgement.passed is None:
            return num_tokens, 1.0
        if judgement.passed or chance > 0.0:
            return num_tokens, chance if self._how.kind == "soft" else float(chance > 0.0)
        failed = [v for v in judgement.verdicts if v.constraint in self._required and not v.passed]
        fatal = [v.fatal_at for v in failed if v.fatal_at is not None]
        return shortest_dead(one.completion, min(fatal), self._plain.decode) if fatal else num_tokens, 0.0


def shortest_dead(completion: Completion, fatal_at: int, decode: Callable[[Sequence[int]], str]) -> int:
    """Return how many tokens of a completion make the shortest prefix that holds its fatal character.

    All of them, where the character lies beyond the text, or is one that more bytes may still turn into another.
    """
    num_tokens, dead = len(completion.token_ids), completion.text[: fatal_at + 1]
    if len(dead) <= fatal_at or dead.endswith(INCOMPLETE):
        return num_tokens
    return next((n for n in range(1, num_tokens) if decode(completion.token_ids[:n]).startswith(dead)), num_tokens)


def _candidate(prompt: Prompt, completion: Completion) -> Candidate:
    return Candidate(
        completion=completion.text,
        messages=prompt.messages,
        reference=prompt.reference,
        attributes=prompt.attributes,
        finish_reason=completion.finish_reason,
        num_tokens=len(completion.token_ids),
        index=completion.index,
        prompt_id=prompt.prompt_id,
    )

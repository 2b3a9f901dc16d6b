"""The contract kit: every built-in passes it, and what breaks a contract is told so."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from factories import candidate

from rsft_cluster.acceptance.all_passed import all_passed
from rsft_cluster.acceptance.base import passed, rule
from rsft_cluster.acceptance.best_of_n import best_of_n
from rsft_cluster.acceptance.boltzmann import boltzmann
from rsft_cluster.acceptance.everything import everything
from rsft_cluster.acceptance.threshold import threshold
from rsft_cluster.constraints.answer_matches import AnswerMatches
from rsft_cluster.constraints.base import Candidate, Message, Verdict
from rsft_cluster.constraints.finished import finished
from rsft_cluster.constraints.json_schema import JsonSchema
from rsft_cluster.constraints.length import Length
from rsft_cluster.constraints.pattern import Pattern
from rsft_cluster.constraints.words import Words
from rsft_cluster.generators.base import Completion, Decoding, PolicySpec, Prompt, Refusal
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.testing import check_constraint, check_generator, check_rule

PROMPTS = [Prompt(f"id-{i}", (Message("user", f"What is {i} + 1?"),), str(i + 1)) for i in range(4)]


@pytest.mark.parametrize(
    ("constraint", "passing", "failing"),
    [
        (finished, [candidate()], [candidate(finish_reason="length")]),
        (Length(max=5, unit="characters"), [candidate("short")], [candidate("too long")]),
        (Pattern(must=r"\d"), [candidate("5")], [candidate("five"), candidate("")]),
        (Words(forbidden=["有偏见", "bad"]), [candidate("公正"), candidate("badly")], [candidate("很有偏见")]),
        (JsonSchema(schema={"type": "object"}), [candidate("{}")], [candidate("[]"), candidate("{")]),
        (AnswerMatches(), [candidate("#### 5"), candidate("答案是5。")], [candidate("#### 6")]),
    ],
)
def test_every_built_in_constraint_keeps_the_contract(constraint, passing, failing) -> None:
    check_constraint(constraint, passing=passing, failing=failing)


@pytest.mark.parametrize(
    ("function", "params", "keeps_failed"),
    [
        (all_passed, {}, False),
        (threshold, {"min_score": 0.5}, False),
        (best_of_n, {"n": 2}, False),
        (best_of_n, {"n": 2, "distinct": False}, False),
        (boltzmann, {"beta": 0.3}, False),
        (boltzmann, {"beta": 0.3, "cap": 0.5}, False),
        (everything, {}, True),
    ],
)
def test_every_built_in_rule_keeps_the_contract(function, params, keeps_failed) -> None:
    check_rule(function, params=params, keeps_failed=keeps_failed)


def test_the_scripted_generator_keeps_the_contract() -> None:
    check_generator(ScriptedGenerator(PolicySpec("unused")), PROMPTS, num_candidates=5)


class Rememberer:
    """A constraint whose verdict depends on what it judged before."""

    def __init__(self) -> None:
        self.seen: set[str] = set()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        verdicts = [Verdict.of(c.completion not in self.seen) for c in candidates]
        self.seen |= {c.completion for c in candidates}
        return verdicts


class FirstOnly:
    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict.of(i == 0) for i, _ in enumerate(candidates)]


class Relative:
    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        longest = max(len(c.completion) for c in candidates)
        return [Verdict.of(len(c.completion) == longest) for c in candidates]


class TooFew:
    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict.of(True)]


@pytest.mark.parametrize(
    ("constraint", "message"),
    [
        (lambda c: True, "'b' passed, expected the opposite"),
        (lambda c: False, "'aa' did not pass, expected the opposite"),
        (Rememberer(), "'b' passed, expected the opposite"),
        (FirstOnly(), "verdicts depend on the order"),
        (Relative(), "verdicts depend on the neighbours"),
        (TooFew(), "1 verdicts for 2 candidates"),
    ],
)
def test_a_constraint_that_breaks_the_contract_is_told_how(constraint, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_constraint(constraint, passing=[candidate("aa")], failing=[candidate("b")])


def test_a_constraint_that_remembers_is_found_out() -> None:
    with pytest.raises(AssertionError, match="judging twice differs"):
        check_constraint(Rememberer(), passing=[candidate("aa")], failing=[])


@rule(target="x")
def keeps_what_failed(judged: pa.Table) -> pa.Array:
    return pa.array([0.5] * judged.num_rows, pa.float64())


@rule(target="x")
def by_position(judged: pa.Table) -> pa.Array:
    return pa.array(passed(judged).to_numpy() / (1.0 + np.arange(judged.num_rows)))


@rule(target="x")
def by_all_groups(judged: pa.Table) -> pa.Array:
    return pa.array(passed(judged).to_numpy() / max(1.0, judged.num_rows))


@rule(target="x")
def above_one(judged: pa.Table) -> pa.Array:
    return pa.array(passed(judged).to_numpy() * 2.0)


@rule(target="x")
def nothing_at_all(judged: pa.Table) -> pa.Array:
    return pa.array([], pa.float64())


def not_declared(judged: pa.Table) -> pa.Array:
    return pa.array([0.0] * judged.num_rows)


CALLS = itertools.count(1)


@rule(target="x")
def moody(judged: pa.Table) -> pa.Array:
    return pa.array(passed(judged).to_numpy() / next(CALLS))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (keeps_what_failed, "did not pass has probability .0.5., not 0"),
        (by_position, "depend on the order of the rows"),
        (by_all_groups, "group prompt-0 is decided differently alone|group prompt-1"),
        (above_one, "in .0, 1., not 2.0"),
        (nothing_at_all, "0 probabilities for 50 candidates"),
        (not_declared, "the rule declares no target"),
        (moody, "calling the rule twice"),
    ],
)
def test_a_rule_that_breaks_the_contract_is_told_how(function, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_rule(function)


Change = Callable[[list[Completion | Refusal], Sequence[Prompt]], list[Completion | Refusal]]


class Altered:
    """Echoes the prompt and the key, then lets a test alter what a call yields."""

    def __init__(self, change: Change) -> None:
        self.change = change

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal]:
        found: list[Completion | Refusal] = []
        for i, prompt in enumerate(prompts):
            for j, key in enumerate(keys[i]):
                text = f"{prompt.prompt_id} {key % 97}"
                found.append(Completion(i, j, (1,), tuple(text.encode()), text, "stop", -1.0, -1.0))
        yield from self.change(found, prompts)


def every(**fields: object) -> Change:
    return lambda found, prompts: [replace(one, **fields) for one in found]


def counted(calls: Iterator[int]) -> Change:
    return lambda found, prompts: [replace(one, text=str(next(calls))) for one in found]


def refuse_second(found: list[Completion | Refusal], prompts: Sequence[Prompt]) -> list[Completion | Refusal]:
    unwanted = [i for i, p in enumerate(prompts) if p.prompt_id == "id-1"]
    return [one for one in found if one.prompt not in unwanted] + [Refusal(i, "too long") for i in unwanted]


def test_a_generator_may_answer_in_any_order_and_refuse() -> None:
    check_generator(Altered(lambda found, prompts: found[::-1]), PROMPTS)
    check_generator(Altered(refuse_second), PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (every(token_ids=()), "prompt 0, index 0: token_ids is empty"),
        (every(token_ids=(np.int64(3),)), "token_ids holds other things than ints"),
        (every(prompt_token_ids=(-1,)), "prompt_token_ids holds other things than ints"),
        (every(token_ids=(1,) * 17), "17 tokens, over max_tokens"),
        (every(finish_reason="eos"), "finish reason 'eos'"),
        (every(logprob=float("nan")), "logprob is nan"),
        (every(target_logprob=0.5), "target_logprob is 0.5"),
        (every(index=3), "index 3: the prompt has 3 keys"),
        (every(prompt=9), "prompt 9 is not one of the 4 given"),
        (lambda found, prompts: found + found[:1], "prompt 0, index 0 was answered twice"),
        (lambda found, prompts: found[1:], r"prompt 0 has completions at \[1, 2\], expected one for each of 3 keys"),
        (lambda found, prompts: [*found, Refusal(0, "too")], r"prompt 0 has completions at \[-1, 0, 1, 2\]"),
        (lambda found, prompts: [Refusal(i, "") for i, _ in enumerate(prompts)], "refused without a reason"),
        (lambda found, prompts: ["text"], "yielded a str"),
        (counted(itertools.count()), "prompt 0, index 0 differs on a second call"),
        (
            lambda found, prompts: every(text=prompts[0].prompt_id)(found, prompts),
            "differs with the prompts in reverse",
        ),
        (lambda found, prompts: every(text=str(len(prompts)))(found, prompts), "differs with prompt 0 alone"),
        (lambda found, prompts: every(text=str(len(found)))(found, prompts), "differs with prompt 0 alone"),
        (lambda found, prompts: [replace(o, text=str(o.index)) for o in found], "differs with the last key"),
    ],
)
def test_a_generator_that_breaks_the_contract_is_told_how(change, message) -> None:
    with pytest.raises(AssertionError, match=message):
        check_generator(Altered(change), PROMPTS)


def test_nothing_to_check_is_said() -> None:
    with pytest.raises(AssertionError, match="at least one candidate"):
        check_constraint(finished, passing=[], failing=[])
    with pytest.raises(AssertionError, match="at least one prompt"):
        check_generator(ScriptedGenerator(PolicySpec("unused")), [])

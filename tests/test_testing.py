"""The contract kit: every built-in passes it, and what breaks a contract is told so."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from factories import candidate

from rsft_cluster.acceptance.base import passed, rule
from rsft_cluster.acceptance.rules.all_passed import all_passed
from rsft_cluster.acceptance.rules.best_of_n import best_of_n
from rsft_cluster.acceptance.rules.boltzmann import boltzmann
from rsft_cluster.acceptance.rules.everything import everything
from rsft_cluster.acceptance.rules.threshold import threshold
from rsft_cluster.constraints.answers.answer_matches import AnswerMatches
from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.form.finished import finished
from rsft_cluster.constraints.form.json_schema import JsonSchema
from rsft_cluster.constraints.form.length import Length
from rsft_cluster.constraints.text import words
from rsft_cluster.constraints.text.pattern import Pattern
from rsft_cluster.constraints.text.words import Words
from rsft_cluster.errors import ConfigError, PluginError
from rsft_cluster.generators.base import Completion, Decoding, Prompt, Refusal
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message
from rsft_cluster.testing import check_cases, check_constraint, check_generator, check_rule, judged_cases

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


SHORT = """
from rsft_cluster.constraints.base import Candidate, Case

def short(candidate, *, limit: int = 3):
    if candidate.completion == "boom":
        raise ValueError("cannot tell")
    return len(candidate.completion) <= limit

class _Hidden:
    def judge(self, candidates): ...

"""


@pytest.fixture
def written(tmp_path, monkeypatch):
    """Write a module of its own name with some source; return the name."""
    monkeypatch.syspath_prepend(tmp_path)
    numbers = itertools.count()

    def write(source: str) -> str:
        name = f"{tmp_path.name.replace('-', '_')}_{next(numbers)}"
        (tmp_path / f"{name}.py").write_text(source)
        return name

    return write


@pytest.mark.parametrize("which", ["words", "rsft_cluster.constraints.text.words", words, Words, finished])
def test_cases_are_checked_by_name_module_or_constraint(which) -> None:
    check_cases(which)


def test_a_case_that_is_wrong_is_told_with_what_came_instead(written) -> None:
    name = written(
        SHORT + 'CASES = (Case(Candidate("abc"), True), Case(Candidate("abcd"), True), Case(Candidate("boom"), False),'
        'Case(Candidate("abcde"), False, {"limit": 9}))'
    )
    with pytest.raises(AssertionError, match="3 of 4 cases are wrong") as wrong:
        check_cases(name)
    assert "'abcd' should pass, but did not pass\n" in str(wrong.value)
    assert "'boom' should not pass, but raised: ValueError: cannot tell" in str(wrong.value)
    assert "'abcde' with {'limit': 9} should not pass, but passed" in str(wrong.value)
    assert [one.holds for one in judged_cases(name)[f"{name}:short"]] == [True, False, False, False]


def test_cases_of_several_constraints_are_a_mapping(written) -> None:
    several = "long = lambda candidate: not short(candidate)\n"
    cases = 'CASES = {"short": (Case(Candidate("abc"), True),), "long": (Case(Candidate("abc"), True),)}'
    name = written(SHORT + several + cases)
    assert {use: len(judged) for use, judged in judged_cases(name).items()} == {f"{name}:short": 1, f"{name}:long": 1}
    check_cases(f"{name}:short")
    with pytest.raises(AssertionError, match="long: 1 of 1 cases are wrong"):
        check_cases(name)
    with pytest.raises(AssertionError, match="has no CASES"):
        check_cases(f"{name}:_Hidden")


def test_cases_that_cannot_be_judged_are_refused(written) -> None:
    with pytest.raises(AssertionError, match="its module has no CASES"):
        check_cases(written(SHORT))
    with pytest.raises(PluginError, match=r"it may be one of \['short', 'other'\]"):
        check_cases(written(SHORT + 'def other(c): ...\nCASES = (Case(Candidate("abc"), True),)'))
    with pytest.raises(ConfigError, match="limitt"):
        check_cases(written(SHORT + 'CASES = (Case(Candidate("abc"), True, {"limitt": 1}),)'))
    with pytest.raises(PluginError, match="no constraint is called 'wrods'; did you mean 'words'"):
        check_cases("wrods")
    with pytest.raises(TypeError, match="give a module"):
        check_cases(Words(forbidden=["x"]))

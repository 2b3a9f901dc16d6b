"""Checks for the author of a plug-in: `check_cases`, `check_constraint`, `check_rule`, `check_generator`.

Each puts a plug-in through its contract (`constraints/base.py`, `acceptance/base.py`, `generators/base.py`) and
raises AssertionError with what does not hold. They need no test framework, no cluster and no model.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import groupby
from types import FunctionType, ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa

from rsft_cluster.acceptance.base import JUDGED, Chosen
from rsft_cluster.config import Plugin
from rsft_cluster.constraints.base import BatchConstraint, Candidate, Case, Verdict
from rsft_cluster.constraints.building import build, only_constraint
from rsft_cluster.constraints.outcomes import Built, as_verdict, outcomes_of
from rsft_cluster.generators.base import Completion, Decoding, FinishReason, Generator, Prompt, Refusal
from rsft_cluster.keys import acceptance_uniform, sampling_key
from rsft_cluster.plugins import known, load_module, locate

LOGPROB_TOLERANCE = 1e-3
"""Relative; float32 kernels differ by about 1e-5 between batch shapes, summed over a completion."""


@dataclass(frozen=True, slots=True)
class JudgedCase:
    """The verdict of a constraint on one of its cases."""

    case: Case
    passed: bool | None
    """None where it raised."""
    reason: str
    """Reason of the verdict, or the error."""

    @property
    def holds(self) -> bool:
        """True if the verdict is the one of the case."""
        return self.passed is self.case.passes

    def __str__(self) -> str:
        """Return what was expected of which candidate, and what came instead."""
        actual = {True: "passed", False: "did not pass", None: "raised"}[self.passed]
        params = f" with {dict(self.case.params)!r}" if self.case.params else ""
        expected = "pass" if self.case.passes else "not pass"
        why = f": {self.reason}" if self.reason else ""
        return f"{self.case.candidate.completion!r}{params} should {expected}, but {actual}{why}"


def check_cases(constraint: str | ModuleType | Built) -> None:
    """Assert that constraints judge the `CASES` of their module as expected, and that there are some.

    `constraint` is a module, for all of its constraints, or one constraint: itself, or named as in a config.
    """
    for use, judged in judged_cases(_named(constraint)).items():
        assert judged, f"{use}: its module has no CASES"
        wrong = [str(case) for case in judged if not case.holds]
        assert not wrong, f"{use}: {len(wrong)} of {len(judged)} cases are wrong:\n" + "\n".join(wrong)


def judged_cases(name: str) -> dict[str, list[JudgedCase]]:
    """Judge the cases of a declared constraint, of `package.module:attribute`, or of all constraints of a module.

    Returns them by `package.module:attribute`, an empty list where the module has none. Raises PluginError where
    there is no such constraint, or a case has parameters that it does not take.
    """
    return {use: _judged(use, cases) for use, cases in _cases(name).items()}


def _named(constraint: str | ModuleType | Built) -> str:
    match constraint:
        case str():
            return constraint
        case ModuleType():
            return constraint.__name__
        case type() | FunctionType():
            return f"{constraint.__module__}:{constraint.__qualname__}"
        case _:
            raise TypeError(f"give a module, a function, a class or a name, not {constraint!r}")


def _cases(name: str) -> dict[str, Sequence[Case]]:
    is_module = (
        name not in known("constraints") and ":" not in name and find_spec(name.split(".", maxsplit=1)[0]) is not None
    )
    module_name, _, attribute = (name if is_module else locate(name, "constraints")).partition(":")
    module = load_module(module_name, name)
    cases: Mapping[str, Sequence[Case]] | Sequence[Case] = getattr(module, "CASES", ())
    if not cases:
        return {name: ()}
    if not isinstance(cases, Mapping):
        cases = {only_constraint(module): cases}
    names = [attribute] if attribute else cases
    return {f"{module_name}:{name}": cases.get(name, ()) for name in names}


def _judged(use: str, cases: Sequence[Case]) -> list[JudgedCase]:
    judged = []
    for params, same in groupby(cases, key=lambda case: dict(case.params)):
        group = list(same)
        built = build(Plugin(use=use, params=params), name=use)
        for case, outcome in zip(group, outcomes_of(built, [case.candidate for case in group]), strict=True):
            judged.append(JudgedCase(case, outcome.verdict and outcome.verdict.passed, outcome.reason))
    return judged


def check_constraint(constraint: Built, *, passing: Sequence[Candidate], failing: Sequence[Candidate]) -> None:
    """Assert that a constraint passes and fails what it should, whatever it is judged with or before.

    `constraint` is the function (parameters bound with functools.partial) or the built instance of a class.
    """
    candidates = [*passing, *failing]
    assert candidates, "give at least one candidate, passing or failing"
    verdicts = _verdicts(constraint, candidates)
    for i, (candidate, verdict) in enumerate(zip(candidates, verdicts, strict=True)):
        assert verdict.passed == (i < len(passing)), (
            f"{candidate.completion!r} {'passed' if verdict.passed else 'did not pass'}, "
            f"expected the opposite; its reason: {verdict.reason!r}"
        )
    again = _verdicts(constraint, candidates)
    assert again == verdicts, f"judging twice differs: {verdicts} and then {again}"
    backwards = _verdicts(constraint, candidates[::-1])[::-1]
    assert backwards == verdicts, f"verdicts depend on the order: {verdicts}, backwards {backwards}"
    singly = [_verdicts(constraint, [candidate])[0] for candidate in candidates]
    assert singly == verdicts, f"verdicts depend on the neighbours: {verdicts} together, {singly} one by one"


def check_rule(
    rule: Callable[..., Any], *, params: Mapping[str, Any] | None = None, keeps_failed: bool = False
) -> None:
    """Assert that an acceptance rule is a pure function of each group, with probabilities in [0, 1].

    Runs it on made-up groups with failures, errors, equal scores and repeated tokens. `keeps_failed` is for a
    rule that accepts candidates which did not pass, on purpose.
    """
    for name in ("target", "scope"):
        declared = isinstance(getattr(rule, name, None), str)
        assert declared, f'the rule declares no {name}; decorate it with @rule(target="...")'
    judged = _made_up_groups()
    probabilities = _probabilities(rule, judged, params)
    outside = probabilities[~((probabilities >= 0) & (probabilities <= 1))]
    assert not len(outside), f"probabilities are in [0, 1], not {outside[0]}"
    out = judged.column("passed").is_null() if keeps_failed else _not_passed(judged)
    kept = np.flatnonzero(out.to_numpy() & (probabilities > 0))
    assert not len(kept), f"a candidate that did not pass has probability {probabilities[kept[:1]]}, not 0"
    again = _probabilities(rule, judged, params)
    assert np.array_equal(again, probabilities), "calling the rule twice gives different probabilities"
    order = np.random.default_rng(1).permutation(judged.num_rows)
    shuffled = _probabilities(rule, judged.take(pa.array(order)), params)
    assert np.array_equal(shuffled, probabilities[order]), "probabilities depend on the order of the rows"
    by_group = getattr(rule, "scope", "") != "round"
    for prompt in judged.column("prompt_id").unique().to_pylist() if by_group else ():
        rows = np.flatnonzero(np.array(judged.column("prompt_id").to_pylist()) == prompt)
        group = _probabilities(rule, judged.take(pa.array(rows)), params)
        assert np.array_equal(group, probabilities[rows]), f"group {prompt} is decided differently alone"
    empty = _probabilities(rule, judged.slice(0, 0), params)
    assert len(empty) == 0, f"an empty table gives {len(empty)} probabilities"


def check_generator(
    generator: Generator,
    prompts: Sequence[Prompt],
    *,
    decoding: Decoding | None = None,
    num_candidates: int = 3,
) -> None:
    """Assert that a generator answers every key of every prompt, each independently of all the others."""
    assert prompts, "give at least one prompt"
    decoding = decoding or Decoding(max_tokens=16, batch_size=4)
    keys = [[sampling_key(0, "check", p.prompt_id, j) for j in range(num_candidates)] for p in prompts]
    first = _generated(generator, prompts, decoding, keys)
    _assert_same(first, _generated(generator, prompts, decoding, keys), "on a second call")
    backwards = _generated(generator, prompts[::-1], decoding, keys[::-1])
    turned = {(len(prompts) - 1 - i, j): answer for (i, j), answer in backwards.items()}
    _assert_same(first, turned, "with the prompts in reverse order")
    for i, prompt in enumerate(prompts):
        single = _generated(generator, [prompt], decoding, [keys[i]])
        expected = {(0, j): answer for (k, j), answer in first.items() if k == i}
        _assert_same(expected, single, f"with prompt {i} alone")
        last = _generated(generator, [prompt], decoding, [keys[i][-1:]])
        if (0, -1) not in expected:
            expected = {(0, 0): expected[0, num_candidates - 1]}
        _assert_same(expected, last, f"with the last key of prompt {i} alone")


def _verdicts(constraint: Built, candidates: Sequence[Candidate]) -> list[Verdict]:
    if not isinstance(constraint, BatchConstraint):
        return [as_verdict(constraint(candidate)) for candidate in candidates]
    verdicts = constraint.judge(candidates)
    assert len(verdicts) == len(candidates), f"{len(verdicts)} verdicts for {len(candidates)} candidates"
    return [as_verdict(verdict) for verdict in verdicts]


def _made_up_groups() -> pa.Table:
    """Return JUDGED rows of six groups: scores on a coarse grid, so that ties occur, and few contents."""
    rng = np.random.default_rng(0)
    rows = []
    for group, size in enumerate([1, 2, 5, 8, 13, 21]):
        for index in range(size):
            score = None if rng.random() < 0.1 else float(rng.integers(0, 5)) / 4
            rows.append(
                {
                    "candidate_id": f"{group}-{index}",
                    "prompt_id": f"prompt-{group}",
                    "index": index,
                    "score": score,
                    "passed": None if score is None else bool(rng.random() < 0.6),
                    "num_tokens": int(rng.integers(1, 9)),
                    "logprob": -float(rng.random()),
                    "target_logprob": -float(rng.random()),
                    "survival": 1.0,
                    "content": f"content-{rng.integers(0, 1 + size // 2)}",
                    "u": acceptance_uniform(0, "check", f"prompt-{group}", index),
                }
            )
    return pa.Table.from_pylist(rows, schema=JUDGED)


def _not_passed(judged: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array([not passed for passed in judged.column("passed").to_pylist()], pa.bool_())])


def _probabilities(
    rule: Callable[..., Any], judged: pa.Table, params: Mapping[str, Any] | None
) -> np.ndarray[Any, np.dtype[np.float64]]:
    decided = rule(judged, **(params or {}))
    column = decided.probabilities if isinstance(decided, Chosen) else decided
    assert isinstance(column, pa.Array | pa.ChunkedArray), (
        f"a rule returns a pyarrow array, not {type(column).__name__}"
    )
    assert len(column) == judged.num_rows, f"{len(column)} probabilities for {judged.num_rows} candidates"
    assert pa.types.is_floating(column.type), f"probabilities are floats, not {column.type}"
    assert column.null_count == 0, f"{column.null_count} probabilities are null"
    return np.asarray(column.cast(pa.float64()).to_numpy(zero_copy_only=False))


Generated = dict[tuple[int, int], Completion | Refusal]


def _generated(
    generator: Generator, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
) -> Generated:
    """Return the answers of a generator by (prompt, index); a refusal has index -1."""
    answers: Generated = {}
    for answer in generator.generate(prompts, decoding, keys):
        assert isinstance(answer, Completion | Refusal), f"yielded a {type(answer).__name__}"
        assert 0 <= answer.prompt < len(prompts), f"prompt {answer.prompt} is not one of the {len(prompts)} given"
        position = (answer.prompt, -1 if isinstance(answer, Refusal) else answer.index)
        assert position not in answers, f"prompt {position[0]}, index {position[1]} was answered twice"
        answers[position] = answer
        if isinstance(answer, Completion):
            _assert_complete(answer, decoding, len(keys[answer.prompt]))
        else:
            assert answer.reason, f"prompt {answer.prompt} was refused without a reason"
    for i in range(len(prompts)):
        got = sorted(index for prompt, index in answers if prompt == i)
        assert got in ([-1], list(range(len(keys[i])))), (
            f"prompt {i} has completions at {got}, expected one for each of {len(keys[i])} keys, or one refusal"
        )
    return answers


def _assert_complete(completion: Completion, decoding: Decoding, num_keys: int) -> None:
    where = f"prompt {completion.prompt}, index {completion.index}"
    assert 0 <= completion.index < num_keys, f"{where}: the prompt has {num_keys} keys"
    for name, ids in (("token_ids", completion.token_ids), ("prompt_token_ids", completion.prompt_token_ids)):
        assert len(ids) > 0, f"{where}: {name} is empty"
        assert all(type(i) is int and i >= 0 for i in ids), f"{where}: {name} holds other things than ints >= 0"
    assert len(completion.token_ids) <= decoding.max_tokens, (
        f"{where}: {len(completion.token_ids)} tokens, over max_tokens"
    )
    assert completion.finish_reason in get_args(FinishReason), f"{where}: finish reason {completion.finish_reason!r}"
    for name, value in (("logprob", completion.logprob), ("target_logprob", completion.target_logprob)):
        # 1e-4: a sum of float32 log-probabilities of near-certain tokens may round above 0
        assert -math.inf < value <= 1e-4, f"{where}: {name} is {value}"


def _assert_same(first: Generated, second: Generated, when: str) -> None:
    assert first.keys() == second.keys(), f"other prompts are refused {when}"
    for (prompt, index), a in first.items():
        b = second[prompt, index]
        if isinstance(a, Completion) and isinstance(b, Completion):
            contents = [(c.text, tuple(c.token_ids), c.finish_reason) for c in (a, b)]
            assert contents[0] == contents[1], (
                f"prompt {prompt}, index {index} differs {when}: {contents[0]} and {contents[1]}"
            )
            assert math.isclose(a.logprob, b.logprob, rel_tol=LOGPROB_TOLERANCE, abs_tol=LOGPROB_TOLERANCE), (
                f"prompt {prompt}, index {index}: logprob {a.logprob} became {b.logprob} {when}"
            )

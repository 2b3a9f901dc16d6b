"""Scoring: verdicts become score, passed and reason; failures of constraints become errors, never scores."""

import sys
from collections.abc import Sequence
from functools import partial

import numpy as np
import pyarrow as pa
import pytest
from factories import candidate

from rsft_cluster.collection.score_table import verdict_row
from rsft_cluster.config import Constraint
from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.outcomes import as_verdict
from rsft_cluster.errors import PluginError, StageError
from rsft_cluster.schemas import VERDICT
from rsft_cluster.scoring.error_limits import ErrorBudget
from rsft_cluster.scoring.judge import MAX_REASON_CHARACTERS, Judge, Judgement


def returns(candidate: Candidate, *, value=None):
    return value


def says(candidate: Candidate):
    """Return what the completion says, as Python."""
    return eval(candidate.completion)


def exits(candidate: Candidate):
    sys.exit(3)


class Batch:
    """Judges by length; raises on an empty completion, miscounts when told to."""

    def __init__(self, *, extra: int = 0) -> None:
        self.extra = extra

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        if any(not c.completion for c in candidates):
            raise ValueError("an empty completion")
        return [Verdict.of(len(c.completion) > 2, f"{len(c.completion)} long") for c in candidates] * (1 + self.extra)


class Unbuildable:
    def __init__(self, *, size: int) -> None:
        raise OSError(f"no file of size {size}")

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return []


class NoJudge:
    pass


@pytest.fixture(autouse=True)
def importable(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "scored", sys.modules[__name__])


def constraint(attribute: str, *, name: str = "", required: bool = True, weight: float = 1.0, **params) -> Constraint:
    use = f"scored:{attribute}"
    return Constraint(use=use, name=name or attribute, required=required, weight=weight, params=params)


def judged(*constraints: Constraint, completion: str = "hello") -> Judgement:
    return Judge(constraints).judge([candidate(completion)])[0]


@pytest.mark.parametrize(
    ("value", "score", "passed", "reason"),
    [
        (True, 1.0, True, ""),
        (False, 0.0, False, ""),
        (np.bool_(True), 1.0, True, ""),
        (1.0, 1.0, True, ""),
        (1, 1.0, True, ""),
        (0.5, 0.5, False, "score 0.5 is below 1"),
        (np.float32(0.25), 0.25, False, "score 0.25 is below 1"),
        (Verdict(0.5, True, "good enough"), 0.5, True, "good enough"),
    ],
)
def test_bools_floats_and_verdicts_are_verdicts(value, score, passed, reason) -> None:
    assert as_verdict(value) == Verdict(score, passed, reason)


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("None", "TypeError: a constraint returns a bool, a float or a Verdict, not NoneType"),
        ("'yes'", "TypeError: a constraint returns a bool, a float or a Verdict, not str"),
        ("(True, 'why')", "TypeError: a constraint returns a bool, a float or a Verdict, not tuple"),
        ("float('nan')", "ValueError: a score is finite and in [0, 1], not nan"),
        ("float('inf')", "ValueError: a score is finite and in [0, 1], not inf"),
        ("1.5", "ValueError: a score is finite and in [0, 1], not 1.5"),
        ("-0.1", "ValueError: a score is finite and in [0, 1], not -0.1"),
        ("Verdict(2.0, True)", "ValueError: a score is finite and in [0, 1], not 2.0"),
        ("Verdict(1.0, 'yes')", "TypeError: passed must be a bool"),
        ("Verdict(1.0, True, None)", "TypeError: passed must be a bool and reason a string"),
    ],
)
def test_what_is_no_verdict_is_an_error_and_never_a_score(completion, reason) -> None:
    judgement = judged(constraint("says"), completion=completion)
    assert (judgement.score, judgement.passed) == (None, None)
    assert judgement.reason.startswith(f"error in says: {reason}")
    verdict = judgement.verdicts[0]
    assert (verdict.score, verdict.passed) == (None, None)
    assert verdict.reason.startswith(reason)
    assert (verdict.error or "").startswith("Traceback (most recent call last)")
    assert judgement.errors == [("says", verdict.error)]


def test_a_constraint_that_exits_the_process_is_an_error_like_any_other() -> None:
    assert judged(constraint("exits")).reason == "error in exits: SystemExit: 3"


def test_only_the_offender_of_a_batch_gets_the_error() -> None:
    judgements = Judge([constraint("Batch")]).judge([candidate(c) for c in ("long", "", "no", "")])
    assert [j.passed for j in judgements] == [True, None, False, None]
    assert judgements[1].reason == "error in Batch: ValueError: an empty completion"
    assert judgements[2].reason == "Batch: 2 long"


def test_a_wrong_number_of_verdicts_is_an_error_even_one_by_one() -> None:
    judgements = Judge([constraint("Batch", extra=1)]).judge([candidate("abc"), candidate("de")])
    assert {j.reason for j in judgements} == {"error in Batch: ValueError: judge returned 2 verdicts for 1 candidate"}


@pytest.mark.parametrize(
    ("values", "score", "passed", "reason"),
    [
        ([(0.5, False, 1.0), (1.0, True, 3.0)], 0.875, True, "passed"),
        ([(0.5, True, 1.0), (1.0, True, 3.0)], 0.875, False, "c0: score 0.5 is below 1"),
        ([(True, True, 0.0)], 1.0, True, "passed"),
        ([(False, True, 0.0)], 0.0, False, "c0: did not pass"),
        ([(0.0, False, 0.0), (True, True, 1.0)], 1.0, True, "passed"),
        ([(True, True, 1.0), (False, True, 1.0), (0.5, True, 1.0)], 0.5, False, "c1: did not pass"),
        ([(0.25, False, 2.0)], 0.25, True, "passed"),
        ([(1.0, True, 0.1)] * 3, 1.0, True, "passed"),
    ],
)
def test_the_score_is_the_weighted_mean_and_required_constraints_decide(values, score, passed, reason) -> None:
    constraints = [
        constraint("returns", name=f"c{i}", value=value, required=required, weight=weight)
        for i, (value, required, weight) in enumerate(values)
    ]
    judgement = judged(*constraints)
    assert (judgement.score, judgement.passed, judgement.reason) == (score, passed, reason)


@pytest.mark.parametrize(("required", "weight", "counts"), [(True, 0.0, True), (False, 1.0, True), (False, 0.0, False)])
def test_an_error_leaves_no_score_where_the_constraint_counts(required, weight, counts) -> None:
    judgement = judged(constraint("says", required=required, weight=weight), constraint("returns", value=True))
    assert (judgement.score is None) == (judgement.passed is None) == counts
    assert judgement.reason.startswith("error in says: NameError") == counts
    assert len(judgement.errors) == 1


def test_verdicts_fit_the_stored_schema_whatever_a_reason_holds() -> None:
    bad_reason = "raise_(ValueError('\\ud800' + 'x' * 9999))"
    judgements = Judge([constraint("says"), constraint("returns", value=0.5)]).judge(
        [candidate("Verdict(0.5, False, '\\ud800' + 'x' * 9999)"), candidate(bad_reason), candidate("True")]
    )
    table = pa.array([verdict_row(v) for j in judgements for v in j.verdicts], type=VERDICT)
    assert table.field("constraint").to_pylist() == ["says", "returns"] * 3
    assert all(len(j.reason) <= MAX_REASON_CHARACTERS for j in judgements)
    assert judgements[0].reason.startswith("says: ?xxx")


def test_no_candidates_give_no_judgements() -> None:
    assert Judge([constraint("Batch"), constraint("returns", value=True)]).judge([]) == []


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (partial(constraint, "Unbuildable", size=3), "constraint 'Unbuildable' cannot be built: no file of size 3"),
        (partial(constraint, "Unbuildable", size="x"), "parameter size is 'x'"),
        (partial(constraint, "NoJudge"), r"class scored:NoJudge has no judge\(candidates\)"),
        (partial(constraint, "nothing"), "has no 'nothing'"),
    ],
)
def test_a_constraint_that_cannot_be_used_fails_when_the_judge_is_built(broken, message) -> None:
    with pytest.raises(PluginError, match=message):
        Judge([broken()])


def test_an_error_budget_stops_with_the_first_traceback_of_each_constraint() -> None:
    budget = ErrorBudget(max_error_rate=0.1)
    budget.spend(num_verdicts=10, num_errors=2, first=("strict", "Traceback one"))
    budget.spend(num_verdicts=10, num_errors=0)
    with pytest.raises(StageError) as caught:
        budget.spend(num_verdicts=5, num_errors=1, first=("other", "Traceback two"))
    assert str(caught.value) == (
        "3 of 25 verdicts are errors, more than scoring.max_error_rate = 0.1 allows. "
        "The first one, of constraint 'strict':\nTraceback one\n"
        "The first one of constraint 'other':\nTraceback two"
    )


def test_an_error_budget_waits_for_enough_verdicts_but_not_at_the_end() -> None:
    budget = ErrorBudget(max_error_rate=0.5)
    budget.spend(num_verdicts=19, num_errors=19, first=("c", "trace"))
    with pytest.raises(StageError, match="19 of 19"):
        budget.spend(num_verdicts=0, num_errors=0, final=True)


def test_an_error_budget_of_zero_allows_none_and_of_one_allows_all() -> None:
    ErrorBudget(max_error_rate=1.0).spend(num_verdicts=30, num_errors=30, final=True)
    ErrorBudget(max_error_rate=0.0).spend(num_verdicts=30, num_errors=0, final=True)
    with pytest.raises(StageError, match="1 of 30"):
        ErrorBudget(max_error_rate=0.0).spend(num_verdicts=30, num_errors=1)

"""The judge of a scoring actor: canaries, the breaker, a second judgement, conditions."""

import os
from collections.abc import Callable, Iterator

import pytest
from factories import candidate
from pydantic import ValidationError

from rsft_cluster.config import ScoringConfig
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.errors import StageError
from rsft_cluster.scoring.guarded_judge import GuardedJudge

Make = Callable[..., GuardedJudge]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[GuardedJudge] = []

    def make(*constraints: str | dict, **scoring: object) -> GuardedJudge:
        made.append(GuardedJudge(ScoringConfig.model_validate({"constraints": list(constraints), **scoring})))
        return made[-1]

    yield make
    for judge in made:
        judge.close()


def does(**more: object) -> dict:
    return {"use": "misbehaving:does", "timeout_s": 0.5, **more}


def test_what_is_not_isolated_is_judged_meanwhile_in_this_process(make) -> None:
    judge = make("misbehaving:strict", "misbehaving:InTheActor", does())
    judgements = judge.judge([candidate("yes"), candidate("ok"), candidate("sleep")])
    reasons = [[v.reason for v in j.verdicts] for j in judgements]
    assert {r[1] for r in reasons} == {f"pid {os.getpid()}, 3 together"}
    assert [v.passed for v in judgements[0].verdicts] == [True, True, False]
    assert [j.passed for j in judgements] == [False, False, None]
    assert judgements[2].reason == "error in does: TimeoutError: does took over 0.5 s and was killed"


def test_a_score_weighs_only_what_applies(make) -> None:
    judge = make(
        {"use": "misbehaving:strict", "when": {"task": ["a", "b"]}},
        {"use": "length", "params": {"max": 2, "unit": "characters"}, "when": {"task": "c"}},
    )
    answers = [Candidate("yes", attributes={"task": task}) for task in ("a", "b", "c", "d")]
    judgements = judge.judge([*answers, Candidate("yes")])
    assert [(j.score, j.passed) for j in judgements] == [(1.0, True)] * 2 + [(0.0, False)] + [(None, None)] * 2
    assert judgements[3].reason == "no constraint that counts judges such a prompt"
    assert [v.reason for v in judgements[0].verdicts] == ["", "does not apply to this prompt"]
    assert [j.num_verdicts for j in judgements] == [1, 1, 1, 0, 0]


def test_what_decides_nothing_lets_nothing_pass(make) -> None:
    typo = {"use": "misbehaving:strict", "when": {"taks": "math"}}
    judge = make(typo, {"use": "length", "required": False, "weight": 0})
    judgement = judge.judge([Candidate("rubbish", attributes={"task": "math"})])[0]
    assert (judgement.score, judgement.passed) == (None, None)
    assert judgement.reason == "no constraint that counts judges such a prompt"


def test_constraints_of_which_none_counts_are_refused() -> None:
    with pytest.raises(ValidationError, match="no constraint counts"):
        ScoringConfig.model_validate({"constraints": [{"use": "length", "required": False, "weight": 0}]})


def test_inline_cases_that_come_out_wrong_stop_an_actor_before_it_judges(make) -> None:
    with pytest.raises(StageError, match="canary of broken_here: 'wrong' passed, expected was that it does not"):
        make("misbehaving:broken_here")


CANARY = {"completion": "yes", "passes": True, "constraint": "strict"}


@pytest.mark.parametrize(
    ("canary", "said"),
    [
        ({"completion": "no", "passes": True, "constraint": "strict"}, "canary of strict: 'no' did not pass"),
        ({"completion": "yes", "passes": False}, "canary of all constraints together: 'yes' passed"),
        ({"completion": "raise", "passes": False, "constraint": "does"}, "could not be judged.*cannot tell"),
        ({"completion": "sleep", "passes": False, "constraint": "does"}, "could not be judged.*TimeoutError"),
    ],
)
def test_a_wrong_canary_of_the_config_stops_an_actor(make, canary, said) -> None:
    with pytest.raises(StageError, match=said.replace("*", "(?s:.)*")):
        make("misbehaving:strict", does(required=False), canaries=[CANARY, canary])


def test_a_constraint_that_breaks_later_is_found_with_the_unit_in_which_it_does(make, tmp_path) -> None:
    mark = tmp_path / "broken"
    judge = make(
        {"use": "misbehaving:breaks_when", "params": {"file": str(mark)}},
        canaries=[{"completion": "yes", "passes": True, "constraint": "breaks_when"}],
    )
    assert [j.passed for j in judge.judge([candidate("no")])] == [False]
    mark.touch()
    with pytest.raises(StageError, match="canary of breaks_when: 'yes' did not pass"):
        judge.judge([candidate("no")])


def test_a_constraint_that_fails_at_most_candidates_stops_early(make) -> None:
    judge = make(does())
    stopped = r"20 of 2\d verdicts of does are errors, more than scoring.max_error_rate(?s:.)*RuntimeError: cannot tell"
    with pytest.raises(StageError, match=stopped):
        judge.judge([candidate(c) for c in ["ok"] * 4 + ["raise"] * 1000])


def test_errors_that_are_allowed_do_not_stop_it(make) -> None:
    judge = make(does(), max_error_rate=1.0)
    assert [j.passed for j in judge.judge([candidate("raise")] * 50)] == [None] * 50


def numbered(completion: str, num: int) -> list[Candidate]:
    return [Candidate(completion, candidate_id=f"c{i}") for i in range(num)]


def test_a_flaky_constraint_is_reported_by_judging_a_share_twice(make) -> None:
    judge = make(does(), "misbehaving:strict", audit_share=0.5)
    judgements = judge.judge(numbered("flicker", 400))
    audited = [j for j in judgements if j.audited]
    assert 140 < len(audited) < 260
    disagreeing = [j for j in audited if j.disagreements]
    assert {j.disagreements for j in disagreeing} == {("does",)}
    assert 0.3 * len(audited) < len(disagreeing) < 0.7 * len(audited)
    assert [j.audited for j in judge.judge(numbered("flicker", 400))] == [j.audited for j in judgements]


def test_a_steady_constraint_agrees_with_itself(make) -> None:
    judge = make("misbehaving:strict", audit_share=1.0)
    judgements = judge.judge(numbered("yes", 20))
    assert all(j.audited and not j.disagreements for j in judgements)


def test_nothing_is_judged_twice_unless_asked(make) -> None:
    assert not any(j.audited for j in make("misbehaving:strict").judge(numbered("yes", 50)))

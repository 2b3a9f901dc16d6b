"""Constraints made of constraints."""

import pytest
from factories import candidate

from rsft_cluster.config import Constraint
from rsft_cluster.constraints.building import build, is_isolated
from rsft_cluster.errors import PluginError
from rsft_cluster.scoring.judge import Judge

DIGITS = {"use": "pattern", "params": {"must": r"^\d+$"}}
SHORT = {"use": "length", "params": {"max": 3, "unit": "characters"}}
NO_X = {"use": "pattern", "params": {"must_not": "x"}}
IS_WORD = {"use": "misbehaving:strict", "params": {"word": "word"}}
RAISES = {"use": "misbehaving:does"}
IN_THE_ACTOR = {"use": "misbehaving:InTheActor"}


def composed(use: str, *parts: dict) -> Constraint:
    return Constraint(use=use, params={"constraints": list(parts)})


def judged(constraint: Constraint, *completions: str):
    return Judge([constraint]).judge([candidate(c) for c in completions])


@pytest.mark.parametrize(
    ("use", "passing", "failing"),
    [
        ("all_of", ["12"], ["1234", "ab", "abcd"]),
        ("any_of", ["12", "1234", "ab"], ["abcd"]),
        ("none_of", ["abcd"], ["12", "1234", "ab"]),
    ],
)
def test_parts_decide_together(use, passing, failing) -> None:
    judgements = judged(composed(use, DIGITS, SHORT), *passing, *failing)
    assert [j.passed for j in judgements] == [True] * len(passing) + [False] * len(failing)


def test_the_reason_names_the_part_that_decided() -> None:
    assert judged(composed("all_of", DIGITS, SHORT), "1234")[0].reason == "all_of: length: 4 characters, more than 3"
    assert "pattern: nothing matches" in judged(composed("any_of", DIGITS, SHORT), "abcd")[0].reason
    assert "passes length: 2 characters" in judged(composed("none_of", DIGITS, SHORT), "ab")[0].reason


@pytest.mark.parametrize("use", ["all_of", "any_of", "none_of"])
def test_a_part_that_cannot_tell_is_an_error_of_that_candidate_alone(use) -> None:
    judgements = judged(composed(use, RAISES, IS_WORD), "raise", "ok")
    assert judgements[0].score is None
    assert "does cannot tell" in judgements[0].reason
    assert "RuntimeError: cannot tell" in judgements[0].errors[0][1]
    assert judgements[1].score is not None


def test_they_nest_and_are_isolated_only_when_all_parts_are() -> None:
    nested = composed("none_of", {"use": "all_of", "params": {"constraints": [DIGITS, SHORT]}})
    assert [j.passed for j in judged(nested, "12", "1234")] == [False, True]
    assert is_isolated(build(nested, name="nested"))
    assert not is_isolated(build(composed("any_of", IN_THE_ACTOR), name="actor"))


def test_they_bound_their_time_as_their_parts_do() -> None:
    assert getattr(build(composed("any_of", {"use": "misbehaving:Patient"}, DIGITS), name="any"), "longest_s", 0) == 5.0


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "give at least one of constraints"),
        ([{"use": "patern"}], "no constraint is called 'patern'; did you mean 'pattern'"),
        ([{"use": "length", "params": {"least": 3}}], "least"),
        ([{"params": {}}], "constraints"),
        ([DIGITS, IN_THE_ACTOR], "InTheActor and pattern cannot be composed"),
    ],
)
def test_wrong_parts_are_told_when_it_is_built(parts, message) -> None:
    with pytest.raises(PluginError, match=message):
        Judge([composed("any_of", *parts)])

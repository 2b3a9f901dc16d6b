"""Plug-ins: names resolve, parameters are checked by name and by value, messages say what would be right."""

import pickle
from pathlib import Path

import pytest

from rsft_cluster.config import Constraint, Plugin
from rsft_cluster.errors import PluginError
from rsft_cluster.plugins import bind, known

MODULE = """
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field

if TYPE_CHECKING:
    from somewhere.only.type_checkers.look import Candidate

def at_least(candidate: Candidate, *, count: int = 1, share: float = 0.5, unit: Literal["a", "b"] = "a") -> bool:
    return True

def untyped(candidate, *, anything=None):
    return True

def open_ended(candidate, **limits: int):
    return True

class Custom:
    pass

def wants_custom(candidate, *, custom: Custom | None = None):
    return True

def unresolvable(candidate, *, other: Nowhere = None):
    return True

class Listed:
    def __init__(self, *, words: Sequence[str] = (), limit: Annotated[int, Field(ge=1)] = 3) -> None:
        self.words, self.limit = words, limit

    def judge(self, candidates: Any) -> Any:
        return [True for _ in candidates]

class Parrot:
    def __init__(self, policy: Any, *, times: int = 1) -> None:
        self.policy, self.times = policy, times

NUMBER = 3
"""


@pytest.fixture(autouse=True)
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_rules.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "broken_rules.py").write_text("import a_package_that_is_missing\n", encoding="utf-8")
    (tmp_path / "raising_rules.py").write_text("1 / 0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)


def constraint(use: str, **params: object) -> Constraint:
    return Constraint(use=use, params=params)


def problem(use: str, **params: object) -> str:
    with pytest.raises(PluginError) as caught:
        bind(constraint(use, **params), "constraints", num_leading=1)
    return str(caught.value)


@pytest.mark.parametrize(
    ("family", "use", "name", "now"),
    [
        ("constraints", "rsft_cluster.constraints.length:Length", "length",
         "rsft_cluster.constraints.form.length:Length"),
        ("constraints", "rsft_cluster.constraints.answers:Choice", "choice",
         "rsft_cluster.constraints.answers.choice:Choice"),
        ("acceptance_rules", "rsft_cluster.acceptance.threshold:threshold", "threshold",
         "rsft_cluster.acceptance.rules.threshold:threshold"),
    ],
)  # fmt: skip
def test_where_a_built_in_lay_before_its_present_place_is_told(family, use, name, now) -> None:
    with pytest.raises(PluginError) as caught:
        bind(Plugin(use=use), family, num_leading=1)
    assert str(caught.value) == f"{use}: is no plug-in; the built-in of that name is {name!r}, in full {now}"


def test_names_of_others_that_end_like_a_built_in_are_not_taken_for_it() -> None:
    assert "no module 'absent'" in problem("absent:Length")
    assert "built-in" not in problem("absent:Length") + problem("rsft_cluster.constraints.absent:Nothing")


def test_a_built_in_tells_itself_by_the_name_that_stays_when_its_module_moves() -> None:
    assert bind(constraint("length", max=5, min=1), "constraints", num_leading=1).describe() == "length(max=5, min=1)"


def test_a_built_in_is_found_by_its_name_and_pickles() -> None:
    bound = bind(constraint("length", max=5), "constraints", num_leading=1)
    assert bound.use == "rsft_cluster.constraints.form.length:Length"
    assert pickle.loads(pickle.dumps(bound)) == bound


@pytest.mark.parametrize(
    ("family", "params"),
    [
        (
            "constraints",
            {
                "all_of": {"constraints": ["finished"]},
                "any_of": {"constraints": ["finished"]},
                "none_of": {"constraints": ["finished"]},
                "classifier": {"model": "m"},
                "judge": {"endpoint": {"base_url": "http://localhost/v1", "model": "m"}},
                "reward_model": {"model": "m"},
                "language": {"languages": ["en"]},
                "similarity": {"at_least": 0.5},
            },
        ),
        ("generators", {}),
        (
            "acceptance_rules",
            {
                "threshold": {"min_score": 0.5},
                "best_of_n": {"n": 1},
                "boltzmann": {"beta": 1},
                "boltzmann_supremum": {"beta": 1},
                "boltzmann_tuned": {"max_kl": 0.1},
                "off_policy": {"log_bound": 1},
                "rso_compat": {"beta": 1},
                "top_share": {"share": 0.5},
            },
        ),
    ],
)
def test_every_declared_plugin_of_these_families_binds(family, params) -> None:
    names = set(known(family)) - {"transformers"}
    assert names
    for name in names:
        bound = bind(Plugin(use=name, params=params.get(name, {})), family, num_leading=1)
        assert bound.use == known(family)[name]


def test_a_function_constraint_gets_the_candidate_and_a_class_only_its_params() -> None:
    assert bind(constraint("own_rules:at_least", count=2), "constraints", num_leading=1).params == {"count": 2}
    assert bind(constraint("own_rules:Listed", limit=2), "constraints", num_leading=1)().limit == 2


def test_a_generator_gets_the_policy_first() -> None:
    bound = bind(Plugin(use="own_rules:Parrot", params={"times": 2}), "generators", num_leading=1)
    assert bound("the policy").policy == "the policy"
    with pytest.raises(PluginError, match="multiple values for argument 'policy'"):
        bind(Plugin(use="own_rules:Parrot", params={"policy": "mine"}), "generators", num_leading=1)


def test_values_are_bound_as_the_annotations_want_them() -> None:
    bound = bind(constraint("own_rules:at_least", count="3", share=1), "constraints", num_leading=1)
    assert bound.params == {"count": 3, "share": 1.0}
    assert isinstance(bound.params["share"], float)


def test_parameters_without_annotation_pass_as_they_are() -> None:
    value = {"nested": [1, "two"]}
    assert bind(constraint("own_rules:untyped", anything=value), "constraints", num_leading=1).params == {
        "anything": value
    }


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"count": "three"}, ["parameter count is 'three'", "expected int", "at_least(candidate"]),
        ({"count": 1.5}, ["parameter count is 1.5", "expected int"]),
        ({"unit": "c"}, ["parameter unit is 'c'", "'a' or 'b'"]),
        ({"cuont": 1}, ["'cuont'", "did you mean 'count'?", "at_least(candidate"]),
        ({"candidate": 1}, ["multiple values for argument 'candidate'"]),
    ],
)
def test_a_wrong_parameter_is_named_with_its_value_and_what_is_expected(params, words) -> None:
    message = problem("own_rules:at_least", **params)
    assert all(word in message for word in ["own_rules:at_least", *words]), message


def test_constraints_of_annotations_hold_and_a_string_is_no_list_of_strings() -> None:
    assert "greater than or equal to 1" in problem("own_rules:Listed", limit=0)
    assert "parameter words is 'one'" in problem("own_rules:Listed", words="one")
    assert "words is ['one', 2]" in problem("own_rules:Listed", words=["one", 2])


def test_keyword_catch_alls_are_checked_by_their_own_annotation() -> None:
    bound = bind(constraint("own_rules:open_ended", height=2), "constraints", num_leading=1)
    assert bound.params == {"height": 2}
    assert "parameter height is 'tall'" in problem("own_rules:open_ended", height="tall")


def test_annotations_that_are_not_data_are_handled() -> None:
    assert "parameter custom is 'x'" in problem("own_rules:wants_custom", custom="x")
    assert "annotation 'Nowhere' cannot be checked" in problem("own_rules:unresolvable", other=1)


@pytest.mark.parametrize(
    ("use", "words"),
    [
        (
            "lenght",
            ["no constraint is called 'lenght'", "did you mean 'length'?", "finished", "package.module:attribute"],
        ),
        ("nowhere.rules:x", ["there is no module 'nowhere'"]),
        ("broken_rules:x", ["importing broken_rules failed", "a_package_that_is_missing"]),
        ("raising_rules:x", ["importing raising_rules failed: ZeroDivisionError"]),
        ("own_rules:at_leats", ["has no 'at_leats'", "did you mean 'at_least'?"]),
        ("own_rules:NUMBER", ["is a int, not something that can be called"]),
    ],
)
def test_what_cannot_be_found_says_so_and_what_is_near(use, words) -> None:
    message = problem(use)
    assert all(word in message for word in words), message

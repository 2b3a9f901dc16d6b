"""The balance score, and what a pilot chooses by it."""

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rsft_cluster.acceptance.base import rule
from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.acceptance.piloted import piloted
from rsft_cluster.config import PilotConfig, RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import PilotChoice
from rsft_cluster.rounds.pilot import balance_score, choose


def scores(*rows: tuple[str, str, float | None, bool | None]) -> pa.Table:
    names = ["prompt_id", "content", "score", "passed"]
    return pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])


def test_it_is_the_share_of_right_times_how_near_to_enough_different_ones() -> None:
    table = scores(
        ("p", "a", 0.9, True), ("p", "a", 0.9, True), ("p", "b", 0.8, True), ("p", "c", 0.7, False),
        ("q", "a", 0.2, True), ("q", "b", None, None),
    )  # fmt: skip
    # p: 4 are selected, of which 2 different ones pass; q: nothing reaches the threshold.
    assert balance_score(table, min_score=0.5, wanted=4) == pytest.approx((2 / 4 * 2 / 4 + 0) / 2)
    assert balance_score(table, min_score=0.0, wanted=1) == pytest.approx((2 / 4 + 1) / 2)
    assert balance_score(table.slice(0, 0), min_score=0.0, wanted=1) == 0.0


def test_too_cold_and_too_hot_both_lose() -> None:
    cold = scores(*[("p", "same", 1.0, True)] * 4)
    warm = scores(*[("p", f"right {i}", 1.0, True) for i in range(3)], ("p", "wrong", 0.1, False))
    hot = scores(("p", "right", 1.0, True), *[("p", f"wrong {i}", 0.1, False) for i in range(3)])
    pilot = PilotConfig(temperatures=(0.5, 1.0, 2.0), wanted=4)
    choice = choose(pilot, {0.5: cold, 1.0: warm, 2.0: hot})
    assert (choice.temperature, choice.min_score) == (1.0, None)
    assert [round(b, 4) for _, _, b in choice.balance] == [0.0625, 0.5625, 0.0625]


def test_a_threshold_is_chosen_with_the_temperature() -> None:
    table = scores(
        *[("p", f"right {i}", 0.9, True) for i in range(3)], *[("p", f"wrong {i}", 0.4, False) for i in range(5)]
    )
    choice = choose(PilotConfig(temperatures=(1.0,), min_scores=(0.0, 0.5, 0.95), wanted=3), {1.0: table})
    assert (choice.temperature, choice.min_score) == (1.0, 0.5)


THRESHOLD_IN_FULL = "rsft_cluster.acceptance.rules.threshold:threshold"


@rule(target="what passes, from a bar on", scope="candidate", threshold="bar")
def barred(judged: pa.Table, *, bar: float = 0.0) -> pa.Array:
    return pc.greater_equal(pc.fill_null(judged.column("score"), 0.0), bar).cast(pa.float64())


def piloted_run(use: str, *, schedule: dict | None = None, **params: float) -> RunConfig:
    acceptance = {"rule": {"use": use, "params": params}, "schedule": schedule or {}}
    return RunConfig.model_validate(
        {
            "run": "piloted",
            "policy": {"model": "model"},
            "prompts": {"paths": ("prompts.jsonl",)},
            "scoring": {"constraints": ("finished",)},
            "acceptance": acceptance,
            "pilot": {"temperatures": (0.7, 1.0), "min_scores": (0.5, 0.9)},
            "evaluation": {"prompts": {"paths": ("held_out.jsonl",)}},
        }
    )


@pytest.mark.parametrize(
    ("use", "parameter"),
    [("threshold", "min_score"), (THRESHOLD_IN_FULL, "min_score"), (f"{__name__}:barred", "bar")],
)
def test_the_threshold_that_a_pilot_chose_goes_to_the_parameter_that_the_rule_declares(use, parameter) -> None:
    config = piloted_run(use, **{parameter: 0.1})
    check_compatible(config)
    choice = PilotChoice(temperature=0.7, min_score=0.9, num_prompts=4, balance=())
    found = piloted(config, choice)
    assert (found.sampling.temperature, found.acceptance.rule.params) == (0.7, {parameter: 0.9})
    assert piloted(config, None) is config


def test_thresholds_for_a_rule_without_one_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"pilot.min_scores: all_passed has no threshold for them to set"):
        check_compatible(piloted_run("all_passed"))


@pytest.mark.parametrize(("use", "parameter"), [(THRESHOLD_IN_FULL, "min_score"), (f"{__name__}:barred", "bar")])
def test_thresholds_that_a_schedule_sets_too_are_refused(use, parameter) -> None:
    schedule = {parameter: (0.1, 0.2)}
    with pytest.raises(ConfigError, match=f"pilot.min_scores and acceptance.schedule both set {parameter}"):
        check_compatible(piloted_run(use, schedule=schedule, **{parameter: 0.1}))

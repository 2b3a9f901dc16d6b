"""Forecasts and trust: every figure against one worked out plainly, row by row, on the same files."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from rich.console import Console
from scipy.stats import spearmanr
from stored import stored_run
from test_again_accepting import other
from typer.testing import CliRunner

from rsft_cluster.acceptance.base import among, rule
from rsft_cluster.cli.app import app
from rsft_cluster.config import AcceptanceConfig, Constraint, Plugin
from rsft_cluster.errors import ConfigError
from rsft_cluster.report.previews import show_preview
from rsft_cluster.report.trust import show_trust
from rsft_cluster.review.records import ConstraintTrust
from rsft_cluster.review.redeciding import trust as trusting
from rsft_cluster.review.redeciding.accepting import decide_again
from rsft_cluster.review.redeciding.outcome import selection_of
from rsft_cluster.review.redeciding.preview import combined_settings, declared_settings, preview
from rsft_cluster.review.redeciding.stored_round import stored_round
from rsft_cluster.review.redeciding.trust import trust
from rsft_cluster.review.redeciding.verdicts import verdicts_of
from rsft_cluster.schemas import SCORE


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    return stored_round(stored_run(tmp_path_factory.mktemp("preview"), num_candidates=2400, unit_size=32), 1)


@pytest.fixture(scope="module")
def rows(stored):
    return [row for ref in stored.manifest.scores for row in stored.store.read_table(ref).to_pylist()]


def test_a_forecast_is_what_accepting_would_keep(stored) -> None:
    current = selection_of(stored, stored.config)
    selections = [
        other(stored, rule="boltzmann", params={"beta": 0.2}),
        other(stored, rule="best_of_n", params={"n": 2}),
        other(stored, rule="top_share", params={"share": 0.1}),
        other(stored, options={"acceptance.max_per_prompt": 1}),
    ]
    found = preview(stored, current, selections)
    for forecast, selection in zip(found.forecasts, [current, *selections], strict=True):
        funnel = decide_again(stored, selection).funnel
        assert forecast.num_accepted == funnel.num_accepted > 0
        assert forecast.num_prompts_accepted == funnel.num_prompts_accepted
        assert forecast.acceptance_rate == funnel.num_accepted / 2400
        assert forecast.prompt_coverage == funnel.num_prompts_accepted / 300
    assert [f.is_current for f in found.forecasts] == [True, False, False, False, False]


def test_means_and_histograms_are_those_of_the_rows(stored, rows) -> None:
    found = preview(stored, selection_of(stored, stored.config), [])
    kept = [row for row in rows if row["passed"]]
    assert found.forecasts[0].mean_score == pytest.approx(np.mean([r["score"] for r in kept]))
    assert found.forecasts[0].mean_tokens == pytest.approx(np.mean([r["num_tokens"] for r in kept]))
    judged = [row for row in rows if row["passed"] is not None]
    for histogram, name in ((found.scores, "score"), (found.lengths, "num_tokens")):
        for part, chosen in ((histogram.kept, kept), (histogram.failed, [r for r in judged if not r["passed"]])):
            # Scores of tenths lie on the edges themselves: nudged, so that they fall where they are meant to.
            values = [round(r[name], 9) + (1e-9 if name == "score" and r[name] < 1 else 0) for r in chosen]
            assert list(part) == np.histogram(values, bins=np.array(histogram.edges))[0].tolist()
        assert sum(histogram.passed) == 0


def test_the_grid_asks_about_the_rule_at_hand() -> None:
    def settings(rule, cap=None, **params):
        return declared_settings(AcceptanceConfig(rule=Plugin(use=rule, params=params), max_per_prompt=cap), 8)

    assert {"params": {"beta": 0.1}} in settings("boltzmann", beta=0.2)
    assert {"params": {"n": 8}} in settings("best_of_n", n=1)
    assert {"params": {"n": 16}} not in settings("best_of_n", n=1)
    assert {"rule": "threshold", "params": {"min_score": 0.5}} in settings("all_passed")
    assert {"max_per_prompt": 2} not in settings("all_passed", cap=2)


def test_values_that_are_asked_for_are_combined_and_bounded() -> None:
    found = combined_settings("boltzmann", {"beta": [0.1, 0.2], "cap": [1.0, 0.5]}, [1, 2])
    assert len(found) == 8
    assert {"rule": "boltzmann", "params": {"beta": 0.2, "cap": 0.5}, "max_per_prompt": 2} in found
    with pytest.raises(ConfigError, match="100 settings are asked for"):
        combined_settings("boltzmann", {"beta": [i / 10 for i in range(1, 101)]}, [])


def test_the_command_previews_the_grid_or_what_is_asked_for(stored) -> None:
    run, root = CliRunner(), stored.store.root
    shown = run.invoke(app, ["preview", root]).stdout
    assert "all_passed (now)" in shown
    assert "threshold min_score=0.9" in shown
    assert "kept now" in shown
    said = json.loads(run.invoke(app, ["preview", root, "--thresholds", "0.5,0.8", "--json"]).stdout)
    assert [f["setting"] for f in said["forecasts"]][1:] == ["threshold min_score=0.5", "threshold min_score=0.8"]
    betas = ["preview", root, "--rule", "boltzmann", "--param", "beta=0.1,0.5", "--max-per-prompt", "1,2", "--json"]
    assert len(json.loads(run.invoke(app, betas).stdout)["forecasts"]) == 5
    failed = run.invoke(app, ["preview", root, "--rule", "boltzmann", "--param", "beta=0"])
    assert "parameter beta is 0" in str(failed.exception)


def test_the_command_takes_all_values_or_says_what_is_wrong(stored) -> None:
    run, root = CliRunner(), stored.store.root
    twice = ["--rule", "boltzmann", "--param", "beta=0.1", "--param", "beta=0.5"]
    both = run.invoke(app, ["preview", root, *twice, "--json"])
    settings = [f["setting"] for f in json.loads(both.stdout)["forecasts"]]
    assert settings[1:] == ["boltzmann beta=0.1", "boltzmann beta=0.5"]
    for arguments, message in [
        (["--rule", "boltzmann", "--param", "beta"], "--param beta: expected name=values, like beta=0.1,0.2"),
        (["--rule", "boltzmann", "--thresholds", "0.5"], "--thresholds are scores for the rule threshold"),
    ]:
        failed = run.invoke(app, ["preview", root, *arguments])
        assert isinstance(failed.exception, ConfigError)
        assert message in str(failed.exception)
    said = run.invoke(app, ["preview", root, "--rule", "threshold", "--thresholds", "0.5", "--json"])
    assert len(json.loads(said.stdout)["forecasts"]) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_previews_and_reports_fit_into_the_terminal(stored, width) -> None:
    for show, found in (
        (show_preview, preview(stored, selection_of(stored, stored.config), [])),
        (show_trust, trust(stored)),
    ):
        console = Console(file=io.StringIO(), width=width)
        show(console, "title", found)
        assert max(len(line) for line in console.file.getvalue().splitlines()) <= width


def test_trust_counts_what_the_rows_say(stored, rows) -> None:
    strict, lenient, slow = trust(stored).constraints
    verdicts = [{v["constraint"]: v for v in row["verdicts"]} for row in rows]
    passes = [v["strict"]["passed"] for v in verdicts]
    assert strict.pass_rate == pytest.approx(np.mean(passes))
    assert strict.num_verdicts == lenient.num_verdicts + lenient.num_timeouts == 2400
    assert lenient.num_timeouts == sum(v["lenient"]["error"] is not None for v in verdicts) > 0
    assert lenient.error_rate == pytest.approx(lenient.num_timeouts / 2400)
    assert slow.num_inapplicable == sum(v["slow"]["score"] is None for v in verdicts) == 2400 - slow.num_verdicts
    assert slow.error_rate == 0
    alone = [
        not v["strict"]["passed"] and v["slow"]["passed"] is None and v["lenient"]["error"] is None for v in verdicts
    ]
    assert strict.num_rejected_alone == sum(alone) > 0
    assert slow.num_rejected_alone == 0
    times = [v["slow"]["duration_s"] for v in verdicts if v["slow"]["score"] is not None]
    assert slow.mean_s == pytest.approx(np.mean(times))
    assert slow.p95_s == pytest.approx(np.percentile(times, 95))
    assert slow.max_s == max(times)
    assert slow.time_share > 0.9
    rho = spearmanr([v["strict"]["score"] for v in verdicts], [r["num_tokens"] for r in rows]).statistic
    assert strict.length_correlation == pytest.approx(rho)
    assert lenient.length_correlation is None


def counted(*verdicts: dict) -> ConstraintTrust:
    """What is said of one constraint after such verdicts."""
    whole = {"constraint": "judge", "score": None, "passed": None, "reason": "", "error": None, "fatal_at": None}
    rows = pa.array([[{**whole, **verdict}] for verdict in verdicts], SCORE.field("verdicts").type)
    found = trusting._VerdictCounts(1, np.array([True]))
    found.add(verdicts_of(pa.table({"verdicts": rows}), ["judge"]), np.ones(len(verdicts), dtype=np.int64), 1)
    return found.constraint(0, Constraint(use="finished", name="judge"))


def test_times_are_those_of_candidates_that_were_judged() -> None:
    asked, silent = {"score": 1.0, "passed": True, "duration_s": 2.0}, {"duration_s": 0.0}
    found = counted(asked, *[silent] * 19, {"error": "ValueError: x", "duration_s": 4.0})
    assert (found.num_verdicts, found.num_inapplicable) == (1, 19)
    assert (found.mean_s, found.max_s) == (3.0, 4.0)
    assert found.p95_s == pytest.approx(3.9)


@pytest.mark.parametrize(
    ("error", "is_late"),
    [
        ("TimeoutError: judge took over 5 s and was killed", True),
        ("Traceback (most recent call last):\n  File 'a.py'\n    ask()\nhttpx.ReadTimeout: slow", True),
        ("Traceback (most recent call last):\n  File 'a.py'\n    ask()\nsubprocess.TimeoutExpired: 5 s\n", True),
        ("Traceback (most recent call last):\n  File 'a.py'\n    ask()\nTimeoutError", True),
        ("Traceback (most recent call last):\n    get(url, timeout=10)\nConnectionError: refused", False),
        ("ValueError: the deadline of the contract is not a date", False),
    ],
)
def test_a_time_out_is_told_by_its_exception(error, is_late) -> None:
    assert counted({"error": error, "duration_s": 1.0}).num_timeouts == is_late


def test_agreement_is_told_beyond_chance(stored) -> None:
    pairs = {(a.first, a.second): a for a in trust(stored).agreements}
    assert list(pairs) == [("strict", "lenient"), ("strict", "slow"), ("lenient", "slow")]
    assert pairs["strict", "slow"].kappa == pairs["strict", "slow"].agreement == 1.0
    assert pairs["strict", "lenient"].kappa == 0.0


def test_kappa_of_a_table_by_hand() -> None:
    # Cohen 1960: 45 both yes, 15 and 25 apart, 15 both no; observed 0.6, by chance 0.54.
    table = trusting._VerdictCounts(2, np.array([True, True]))
    table.both[:, 0, 1] = [45, 15, 25, 15]
    found = table.agreement(1, 0, ["a", "b"])
    assert (found.first, found.second, found.num_both) == ("a", "b", 100)
    assert found.agreement == pytest.approx(0.6)
    assert found.kappa == pytest.approx((0.6 - 0.54) / 0.46)


def test_what_is_doubtful_is_told_in_words(stored) -> None:
    warnings = "\n".join(trust(stored).warnings)
    assert "lenient never fails anything" in warnings
    assert "lenient cannot judge" in warnings
    assert "slow takes" in warnings
    assert "strict and slow say the same" in warnings
    assert "strict never" not in warnings


def test_ranks_rest_on_a_share_of_many_candidates(stored, monkeypatch) -> None:
    whole = trust(stored)
    monkeypatch.setattr(trusting, "SAMPLED", 500)
    part = trust(stored)
    assert whole.num_sampled == 2400
    assert 400 <= part.num_sampled <= 500
    assert part.constraints[0].pass_rate == whole.constraints[0].pass_rate
    assert part.constraints[0].length_correlation == pytest.approx(whole.constraints[0].length_correlation, abs=0.15)
    assert json.loads(CliRunner().invoke(app, ["trust", stored.store.root, "--json"]).stdout)["num_sampled"] <= 500


@rule(target="what passes, from a bar on", scope="candidate", previews=among("bar", (0.25, 0.75)))
def barred(judged: pa.Table, *, bar: float = 0.5) -> pa.Array:
    return pc.greater_equal(pc.fill_null(judged.column("score"), 0.0), bar).cast(pa.float64())


@pytest.mark.parametrize(
    ("use", "params", "offered"),
    [
        ("rsft_cluster.acceptance.rules.boltzmann:boltzmann", {"beta": 0.2}, {"beta": 0.1}),
        ("boltzmann_tuned", {"acceptance_rate": 0.3}, {"acceptance_rate": 0.1}),
        ("boltzmann_tuned", {"max_kl": 1.0}, {"max_kl": 0.5}),
        ("off_policy", {"log_bound": 2.0}, {"log_bound": 1.0}),
        ("off_policy_supremum", {"beta": 0.2}, {"beta": 0.4}),
        (f"{__name__}:barred", {}, {"bar": 0.75}),
    ],
)
def test_every_rule_says_itself_which_settings_are_worth_a_look(use, params, offered) -> None:
    settings = declared_settings(AcceptanceConfig(rule=Plugin(use=use, params=params)), 8)
    assert {"params": offered} in settings
    assert all(set(s.get("params", {})) <= set(offered) for s in settings)


def test_a_rule_that_declares_no_settings_is_offered_other_caps_alone() -> None:
    assert declared_settings(AcceptanceConfig(rule=Plugin(use="everything")), 4) == [
        {"max_per_prompt": cap} for cap in (1, 2)
    ]

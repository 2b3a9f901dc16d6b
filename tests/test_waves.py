"""Rounds in waves: what they ask, what they keep, and that being killed changes nothing. No cluster."""

import numpy as np
import pyarrow as pa
import pytest
from sealed import Killed, rounds

from rsft_cluster.collection.plan import planned_units, quarantine
from rsft_cluster.errors import NothingAcceptedError
from rsft_cluster.records import Manifest, Plan
from rsft_cluster.review.inspection import Filter, inspect
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder


@pytest.fixture
def made(tmp_path):
    with rounds(tmp_path) as do:
        yield do


def scores(manifest: Manifest, tmp_path) -> pa.Table:
    store = Store(str(tmp_path / "runs" / "waves"))
    return pa.concat_tables([store.read_table(ref) for ref in manifest.scores])


def by_prompt(table: pa.Table) -> dict[str, list[dict]]:
    found: dict[str, list[dict]] = {}
    for row in sorted(table.to_pylist(), key=lambda r: r["index"]):
        found.setdefault(row["prompt_id"], []).append(row)
    return found


UNTIL_TWO = {"budget": {"wave_size": 2, "until_accepted": 2}}


def test_a_prompt_gets_waves_until_it_has_enough_and_keeps_the_lowest_indices(made, tmp_path) -> None:
    manifest = made(**UNTIL_TWO)
    groups = by_prompt(scores(manifest, tmp_path))
    assert len(groups) == 12
    assert len({len(rows) for rows in groups.values()}) > 1
    for rows in groups.values():
        assert [r["index"] for r in rows] == list(range(len(rows)))
        passing = [r["index"] for r in rows if r["passed"]]
        assert [r["index"] for r in rows if r["accepted"]] == passing[:2]
        # It stopped as soon as it could, and not before.
        assert len(rows) == 8 or sum(i < len(rows) for i in passing) >= 2
        assert sum(i < len(rows) - 2 for i in passing) < 2
    assert manifest.num_waves == max(len(rows) for rows in groups.values()) // 2
    assert manifest.totals.violations() == []
    assert manifest.totals.num_candidates == sum(map(len, groups.values())) < 12 * 8


def test_unit_size_and_kills_change_nothing(made, tmp_path) -> None:
    for moment in (0, 1, 2):
        with pytest.raises(Killed):
            made(dies_after=moment, **UNTIL_TWO)
    one = made(**UNTIL_TWO)
    assert made(dies_after=0, **UNTIL_TWO) == one


def test_the_same_candidates_are_drawn_whatever_the_waves(made, tmp_path) -> None:
    small = by_prompt(scores(made(budget={"wave_size": 1, "until_accepted": 8}), tmp_path))
    store = Store(str(tmp_path / "runs" / "waves"))
    store.delete_folder("rounds/0001")
    large = by_prompt(scores(made(budget={"wave_size": 8, "until_accepted": 8}, unit_size=5), tmp_path))
    assert {p: [r["content"] for r in rows] for p, rows in small.items()} == {
        p: [r["content"] for r in rows] for p, rows in large.items()
    }


def test_solved_prompts_are_left_out_of_later_rounds_and_accounted_for(made, tmp_path) -> None:
    budget = {"wave_size": 4, "until_accepted": 1, "skip_solved": True}
    first = made(most=4, budget=budget)
    second = made(2, most=4, budget=budget)
    solved = {p for p, rows in by_prompt(scores(first, tmp_path)).items() if any(r["accepted"] for r in rows)}
    assert 0 < len(solved) < 12
    assert by_prompt(scores(second, tmp_path)).keys().isdisjoint(solved)
    assert second.totals.num_prompts_skipped == len(solved)
    assert second.totals.violations() == []


def test_the_runs_budget_holds_over_rounds(made, tmp_path) -> None:
    budget = {"wave_size": 2, "until_accepted": 8, "max_candidates": 40}
    first = made(budget=budget)
    assert first.totals.num_candidates == 40
    with pytest.raises(NothingAcceptedError, match="the run's budget is spent"):
        made(2, budget=budget)


def test_a_token_budget_is_kept_to_by_whole_waves(made) -> None:
    budget = {"wave_size": 2, "until_accepted": 8, "max_tokens": 40}
    totals = made(budget=budget, max_tokens=4).totals
    assert 30 < totals.num_tokens < 50  # kept to in expectation: the last wave may be longer than the mean


def test_before_the_first_wave_no_more_is_asked_than_is_sure_to_fit(made) -> None:
    with pytest.raises(NothingAcceptedError, match="the run's budget is spent"):
        made(budget={"wave_size": 2, "max_tokens": 50}, max_tokens=64)


def test_a_round_that_lost_every_prompt_is_sealed_and_accounted_for(made, tmp_path) -> None:
    store = Store(str(tmp_path / "runs" / "waves"))
    with pytest.raises(Killed):
        made(dies_after=0, num_prompts=1, **UNTIL_TWO)
    folder = Folder(store, "rounds/0001/waves/0000")
    (unit,) = planned_units(folder, store.read_record(folder.plan, Plan))
    quarantine(folder, unit, num_crashes=3)
    totals = made(num_prompts=1, **UNTIL_TWO).totals
    assert (totals.num_prompts_quarantined, totals.num_candidates, totals.violations()) == (1, 0, [])


def test_a_straggler_that_commits_after_the_seal_counts_for_nothing(made, tmp_path) -> None:
    with pytest.raises(Killed):
        made(dies_after=1, **UNTIL_TWO)
    wave = tmp_path / "runs/waves/rounds/0001/waves/0000"
    for path in wave.glob("commits/*.json"):
        late = path.with_name(path.name.split(".")[0] + ".0late.json")  # sorts before the one that was sealed
        late.write_text(path.read_text().replace("candidates/", "candidates/late-"))
    manifest = made(**UNTIL_TWO)
    assert not any("late" in ref.path for ref in manifest.candidates)
    store = Store(str(tmp_path / "runs" / "waves"))
    assert len(list(inspect(store, 1, Filter()))) == manifest.totals.num_candidates


def test_difficulty_lets_easy_prompts_keep_fewer(made, tmp_path) -> None:
    budget = {"wave_size": 4, "until_accepted": 3, "allocation": "difficulty"}
    groups = by_prompt(scores(made(num_prompts=40, most=16, budget=budget), tmp_path))
    rates = np.array([np.mean([r["passed"] for r in rows]) for rows in groups.values()])
    kept = np.array([sum(r["accepted"] for r in rows) for rows in groups.values()])
    assert set(kept) >= {1, 2, 3}
    assert rates[kept == 1].mean() > rates[kept == 3].mean()


def test_a_rule_of_the_whole_round_is_decided_at_its_seal(made, tmp_path) -> None:
    rule = {"use": "top_share", "params": {"share": 0.25}}
    manifest = made(rule=rule)
    table = scores(manifest, tmp_path)
    num_passed = sum(table.column("passed").to_pylist())
    assert manifest.totals.num_accepted == -(-num_passed // 4)
    assert manifest.chosen == {"lowest_score": 1.0}
    assert manifest.rule.startswith("the best-scored 0.25")
    store = Store(str(tmp_path / "runs" / "waves"))
    accepted = pa.concat_tables([store.read_table(ref) for ref in manifest.accepted])
    assert set(accepted.column("candidate_id").to_pylist()) == {
        r["candidate_id"] for r in table.to_pylist() if r["accepted"]
    }


def test_a_damaged_wave_is_noticed(made, tmp_path) -> None:
    with pytest.raises(Killed):
        made(dies_after=1, **UNTIL_TWO)
    path = min((tmp_path / "runs/waves/rounds/0001/waves/0000/scores").iterdir())
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(Exception, match="parquet"):
        made(**UNTIL_TWO)


def test_candidates_of_all_waves_are_shown_with_their_decisions(made, tmp_path) -> None:
    store = Store(str(tmp_path / "runs" / "waves"))
    with pytest.raises(Killed):
        made(dies_after=1, **UNTIL_TWO)
    early = list(inspect(store, 1, Filter()))
    assert len(early) == 24
    assert {r["state"] for r in early} == {"rejected"}
    manifest = made(**UNTIL_TWO)
    rows = list(inspect(store, 1, Filter()))
    assert len(rows) == manifest.totals.num_candidates
    assert sum(r["state"] == "accepted" for r in rows) == manifest.totals.num_accepted > 0

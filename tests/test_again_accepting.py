"""Deciding again: the sealed decision comes out again, others change what they should, and the seal stands untouched.

Adversarially checked: waves cut groups across files, and what is decided in blocks equals the round decided at once.
"""

import json
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sealed import rounds
from stored import stored_run
from test_audit import RULES
from typer.testing import CliRunner

from rsft_cluster.acceptance.decide import decide
from rsft_cluster.cli.app import app
from rsft_cluster.cli.options import load_again
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.review.redeciding import accepting, group_blocks
from rsft_cluster.review.redeciding.accepting import accept_again, decide_again
from rsft_cluster.review.redeciding.export import export
from rsft_cluster.review.redeciding.group_blocks import blocks
from rsft_cluster.review.redeciding.outcome import decided_blocks, empty_outcome, selection_of
from rsft_cluster.review.redeciding.stored_round import stored_round
from rsft_cluster.schemas import ACCEPTED, conform
from rsft_cluster.store import Store
from rsft_cluster.training.batches import load_examples

MILLION_S = 10.0
"""What deciding on a million candidates may take."""
SLOW = 6
"""How much slower a machine under tests may be."""


def sealed(folder: Path, name: str):
    acceptance, parts = RULES[name]
    with rounds(folder) as do:
        do(acceptance=acceptance, **parts)
    return stored_round(Store(str(folder / "runs" / "waves")), 1)


def files_of(store: Store) -> dict[str, bytes]:
    return {path: store.read(path) for path in store.files("rounds", recursive=True) if "/decisions/" not in path}


def other(stored, **options):
    """How a round decides with another rule, as the command line takes it."""
    return selection_of(stored, load_again(stored.config, ("acceptance",), stored.number, **options))


@pytest.mark.parametrize("name", RULES)
def test_the_settings_of_the_seal_keep_what_the_seal_kept_byte_for_byte(tmp_path, name) -> None:
    stored = sealed(tmp_path, name)
    before = files_of(stored.store)
    made = accept_again(stored, selection_of(stored, stored.config))
    totals = stored.manifest.totals
    assert made.change.num_before == made.change.num_after == made.change.num_both == totals.num_accepted
    assert made.funnel.num_prompts_accepted == totals.num_prompts_accepted
    assert made.funnel.num_passed == totals.num_passed
    assert made.funnel.num_candidates == totals.num_candidates == made.funnel.num_accepted + sum(made.reasons.values())
    assert made.chosen == stored.manifest.chosen
    assert files_of(stored.store) == before
    assert rows_of(stored.store, made.accepted) == rows_of(stored.store, stored.manifest.accepted)


def rows_of(store: Store, refs) -> list[dict]:
    rows = [row for ref in refs for row in conform(store.read_table(ref), ACCEPTED).to_pylist()]
    return sorted(rows, key=lambda row: row["candidate_id"])


@pytest.mark.parametrize("size", [1, 3, 4096])
def test_groups_that_waves_cut_across_files_are_put_together(tmp_path, monkeypatch, size) -> None:
    stored = sealed(tmp_path, "waves")
    assert stored.manifest.num_waves > 1
    monkeypatch.setattr(group_blocks, "PROMPTS_AT_ONCE", size)
    selection = selection_of(stored, stored.config)
    found = list(blocks(stored, [selection], list(stored.units())))
    seen = [set(block.judged.column("prompt_id").to_pylist()) for block in found]
    assert sum(map(len, seen)) == len(set.union(*seen))
    assert sum(block.judged.num_rows for block in found) == stored.manifest.totals.num_candidates
    outcome = empty_outcome(stored)
    parts = [table for _, table in decided_blocks(stored, selection, outcome, list(stored.units()))]
    whole = decide(pa.concat_tables([block.judged for block in found]), selection).table
    assert pa.concat_tables(parts).equals(whole)
    assert len(list(blocks(stored, [selection], list(stored.units())))) == (1 if size == 4096 else -(-12 // size))


def test_waves_in_another_order_than_the_prompts_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(group_blocks, "PROMPTS_AT_ONCE", 1)
    stored = sealed(tmp_path, "waves")
    manifest = stored.manifest
    turned = manifest.model_copy(
        update={part: tuple(reversed(getattr(manifest, part))) for part in ("candidates", "scores")}
    )
    stored.store.write(stored.folder.manifest, turned.to_json())
    again = stored_round(stored.store, 1)
    with pytest.raises(StoreError, match="not in the order of its prompts"):
        decide_again(again, selection_of(again, again.config))


def test_another_rule_keeps_something_else_and_says_what(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    found = decide_again(stored, other(stored, rule="top_share", params={"share": 0.1}))
    assert found.change.num_after == found.funnel.num_accepted < found.change.num_before
    assert found.change.num_before - found.change.num_both >= len(found.change.lost) > 0
    assert found.chosen["lowest_score"] == 1.0
    assert found.reasons["answer_matches"] == found.funnel.num_candidates - found.funnel.num_passed
    # The cap and the rest of the acceptance stay as the run has them.
    assert other(stored, rule="boltzmann", params={"beta": 1}).acceptance.max_per_prompt == 1


def test_a_group_rule_is_refused_on_waves_as_the_run_would_refuse_it(tmp_path) -> None:
    stored = sealed(tmp_path, "waves")
    with pytest.raises(ConfigError, match="best_of_n looks at the whole group"):
        other(stored, rule="best_of_n", params={"n": 1})


def test_a_name_stands_for_one_setting(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    first = accept_again(stored, other(stored, options={"acceptance.max_per_prompt": 2}), name="two")
    assert accept_again(stored, other(stored, options={"acceptance.max_per_prompt": 2}), name="two") == first
    with pytest.raises(ConfigError, match=r"acceptance.max_per_prompt: was 2, is 3"):
        accept_again(stored, other(stored, options={"acceptance.max_per_prompt": 3}), name="two")
    with pytest.raises(ConfigError, match="make a name"):
        accept_again(stored, other(stored), name="../two")


def test_a_name_from_a_version_without_an_empty_setting_still_stands_for_the_same(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    first = accept_again(stored, other(stored), name="x")
    path = stored.folder.decision_set("x").settings
    recorded = json.loads(stored.store.read(path))
    assert recorded["settings"].pop("acceptance.schedule") == {}
    stored.store.write(path, json.dumps(recorded).encode())
    assert accept_again(stored, other(stored), name="x") == first


def test_a_name_is_claimed_before_anything_is_written(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    one, two = (other(stored, options={"acceptance.max_per_prompt": cap}) for cap in (2, 3))

    def overtaken(stored):
        monkeypatch.setattr(accepting, "empty_outcome", empty_outcome)
        with pytest.raises(ConfigError, match="max_per_prompt: was 2, is 3"):
            accept_again(stored, two, name="x")
        return empty_outcome(stored)

    monkeypatch.setattr(accepting, "empty_outcome", overtaken)
    made = accept_again(stored, one, name="x")
    assert len(rows_of(stored.store, made.accepted)) == made.change.num_after


def test_a_decision_that_was_killed_is_made_again(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    selection = other(stored, options={"acceptance.max_per_prompt": 3})
    whole = accept_again(stored, selection, name="whole")
    left, write = 1, stored.store.write_table

    def dies(*arguments):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return write(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(stored.store, "write_table", dies)
        with pytest.raises(KeyboardInterrupt):
            accept_again(stored, selection, name="again")
    found = accept_again(stored, selection, name="again")
    assert [ref.sha256 for ref in found.accepted] == [ref.sha256 for ref in whole.accepted]


def test_what_was_kept_can_be_taken_elsewhere(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    accept_again(stored, other(stored, options={"acceptance.max_per_prompt": 3}), name="three")
    for decision in ("sealed", "three"):
        assert export(stored, tmp_path / "a.jsonl", decision) == export(stored, tmp_path / "a.parquet", decision)
        lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
        table = pq.read_table(tmp_path / "a.parquet")
        assert [line["candidate_id"] for line in lines] == table.column("candidate_id").to_pylist()
        for line in lines:
            left = int(line["messages"][-1]["content"].split()[0])
            assert str(left + 1) in line["completion"]
        assert len(load_examples([str(tmp_path / "a.parquet")], per_prompt=True)) <= len(lines)
    with pytest.raises(ConfigError, match=r"ends in \.jsonl or \.parquet"):
        export(stored, tmp_path / "a.csv")
    with pytest.raises(ConfigError, match="round 1 has sealed, three"):
        export(stored, tmp_path / "a.jsonl", "four")


def test_the_command_decides_prints_and_refuses(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    run, root = CliRunner(), stored.store.root
    shown = run.invoke(app, ["accept", root, "--rule", "threshold", "--param", "min_score=0.5", "--dry-run"])
    assert "within the caps" in shown.stdout
    assert "against the sealed decision" in shown.stdout
    assert not stored.store.files("rounds/0001/decisions", recursive=True)
    made = run.invoke(app, ["accept", root, "--set", "acceptance.dedupe=true", "--name", "d", "--json"])
    assert json.loads(made.stdout)["decision"] == "decision d"
    file = tmp_path / "acceptance.yaml"
    file.write_text("acceptance:\n  rule: all_passed\n  max_per_promt: 2\n")
    for arguments, message in [
        (["--acceptance", str(file)], f"{file}:3: acceptance.max_per_promt: unknown key; did you mean max_per_prompt"),
        (["--rule", "best"], "no acceptance rule is called 'best'"),
        (["--param", "beta"], "expected name=value"),
        (["--max-per-prompt", "0"], "--max-per-prompt: acceptance.max_per_prompt: expected a number of at least 1"),
        (["--set", "scoring.workers=2"], "only keys of acceptance can be set"),
        (["--round", "3"], "round 3 is not sealed; sealed rounds: 1"),
        (["--scoring", "new"], "round 1 has sealed"),
        (["--name", "sealed"], "--name sealed: names what the round was sealed with"),
        (["--name", "../d"], "make a name"),
    ]:
        failed = run.invoke(app, ["accept", root, "--dry-run", *arguments])
        assert isinstance(failed.exception, ConfigError)
        assert message in str(failed.exception)


def test_the_sealed_decision_has_its_name_alone(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    with pytest.raises(ConfigError, match="--name sealed: names what the round was sealed with"):
        accept_again(stored, other(stored), name="sealed")


BESIDE = """
import pyarrow as pa

from rsft_cluster.acceptance.base import rule


@rule(target="x", scope="group")
def all_of_them(judged: pa.Table) -> pa.Array:
    return pa.array([1.0] * judged.num_rows, pa.float64())
"""


def test_a_rule_beside_the_config_is_found_from_there(tmp_path, monkeypatch) -> None:
    with monkeypatch.context() as patched:
        patched.syspath_prepend(tmp_path)
        (tmp_path / "rules_beside.py").write_text(BESIDE)
        with rounds(tmp_path) as do:
            do(rule="rules_beside:all_of_them")
    monkeypatch.setattr(sys, "path", list(sys.path))
    for command in (["accept", "--dry-run"], ["preview"]):
        sys.modules.pop("rules_beside", None)
        failed = CliRunner().invoke(app, [command[0], str(tmp_path / "runs" / "waves"), *command[1:]])
        assert "the folder you stand in" in str(failed.exception)
    monkeypatch.chdir(tmp_path)
    for command in (["accept", "--dry-run"], ["preview"]):
        assert CliRunner().invoke(app, [command[0], "runs/waves", *command[1:]]).exit_code == 0


def test_a_damaged_input_is_not_told_as_an_output(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    path = next(ref.path for ref in stored.manifest.accepted if ref.num_rows)
    stored.store.write(path, b"")
    with pytest.raises(StoreError, match="damaged") as caught:
        export(stored, tmp_path / "a.jsonl")
    assert "cannot be written" not in str(caught.value)
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="cannot be written"):
        export(stored, tmp_path / "file" / "a.jsonl")


def test_that_nothing_is_sealed_is_said_so(tmp_path) -> None:
    for number in (None, 1):
        with pytest.raises(ConfigError, match="no round is sealed yet"):
            stored_round(Store(str(tmp_path)), number)


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("all_passed", {}), ("threshold", {"min_score": 0.6}), ("boltzmann", {"beta": 0.2}), ("best_of_n", {"n": 2}),
        ("top_share", {"share": 0.1}),
    ],
)  # fmt: skip
def test_many_candidates_are_decided_in_seconds(many, rule, params) -> None:
    start = time.perf_counter()
    found = decide_again(many, other(many, rule=rule, params=params))
    taken = time.perf_counter() - start
    assert found.funnel.num_candidates == many.manifest.totals.num_candidates
    assert 0 < found.funnel.num_accepted <= found.funnel.num_passed == many.manifest.totals.num_passed
    assert taken < SLOW * MILLION_S * found.funnel.num_candidates / 1e6


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    return stored_round(stored_run(tmp_path_factory.mktemp("many"), num_candidates=200_000), 1)


def test_blocks_hold_some_files_and_not_the_run(many) -> None:
    sizes = [block.judged.num_rows for block in blocks(many, [other(many)], list(many.units()))]
    assert len(sizes) > 2
    assert max(sizes) < group_blocks.ROWS_AT_ONCE + 512

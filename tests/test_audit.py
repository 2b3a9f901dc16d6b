"""The audit trail: every decision follows from its line, and whatever is changed, added or lost is found."""

import json
from pathlib import Path

import pytest
from sealed import rounds
from typer.testing import CliRunner

from rsft_cluster.cli.app import app
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.review.audit.chain import START, hash_of, to_json
from rsft_cluster.review.audit.explanation import explained, find_line
from rsft_cluster.review.audit.lines import head_of, round_lines
from rsft_cluster.review.audit.replay import replay
from rsft_cluster.review.audit.verify import verify_lines, verify_run
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

RULES = {
    "all_passed": ({"rule": "all_passed", "dedupe": True, "max_per_prompt": 1}, {}),
    "boltzmann": ({"rule": {"use": "boltzmann", "params": {"beta": 2.0}}, "dedupe": False}, {}),
    "best_of_n": ({"rule": {"use": "best_of_n", "params": {"n": 1}}, "dedupe": False}, {}),
    "top_share": ({"rule": {"use": "top_share", "params": {"share": 0.3}}, "dedupe": False}, {}),
    "everything": ({"rule": "everything", "dedupe": True}, {}),
    "waves": ({"rule": "all_passed", "dedupe": False}, {"budget": {"wave_size": 2, "until_accepted": 2}}),
    "dropping": ({"rule": "all_passed", "drop_all_passed": True}, {"most": 2}),
    "near": ({"rule": "all_passed", "near_duplicates": 0.5, "prefer": "diverse", "max_per_prompt": 2}, {}),
}


def sealed(folder: Path, name: str) -> Store:
    """Seal a round decided by one of RULES, with its audit head; return the run's store."""
    acceptance, parts = RULES[name]
    store = Store(str(folder / "runs" / "waves"))
    with rounds(folder) as do:
        do(acceptance=acceptance, **parts)
        store.create(RunLayout(store).round(1).audit, head_of(store, 1).to_json())
    return store


@pytest.fixture(scope="module")
def trail(tmp_path_factory):
    """A run and its exported lines."""
    store = sealed(tmp_path_factory.mktemp("trail"), "waves")
    return store, [to_json(line) for line in round_lines(store, 1, START)]


@pytest.mark.parametrize("name", RULES)
def test_every_decision_is_replayed_from_its_line_and_the_round_decided_again(tmp_path, name) -> None:
    found = verify_run(sealed(tmp_path, name))
    assert found.problems == []
    assert found.holds
    assert found.num_replayed >= 12
    assert found.num_rounds == 1


def test_an_exported_trail_is_verified_without_the_run(trail) -> None:
    _, lines = trail
    found = verify_lines(lines, source="audit.jsonl")
    assert found.holds, found.problems
    assert found.num_lines == len(lines)
    assert found.num_replayed == len(lines) - 1


def test_every_changed_byte_is_found(trail) -> None:
    _, lines = trail
    whole = "\n".join(lines)
    step = max(1, len(whole) // 300)
    for place in range(0, len(whole), step):
        if whole[place] == "\n":
            continue
        changed = whole[:place] + ("x" if whole[place] != "x" else "y") + whole[place + 1 :]
        try:
            found = verify_lines(changed.split("\n"), source="a")
        except ConfigError:
            continue  # no JSON any more
        assert not found.holds, f"byte {place} ({whole[place]!r}) was changed unnoticed"


def test_lost_added_and_swapped_lines_are_found(trail) -> None:
    store, lines = trail
    for wrong in (
        [*lines[:3], *lines[4:]],
        [*lines[:3], lines[2], *lines[3:]],
        [*lines[:3], lines[4], lines[3], *lines[5:]],
    ):
        assert not verify_lines(wrong, source="a").holds
    # A lost end is seen by who has the head, which the run's store keeps.
    assert verify_lines(lines[:-2], source="a").holds
    assert json.loads(store.read(RunLayout(store).round(1).audit))["num_lines"] == len(lines)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"accepted": True}, "accepted is True"),
        ({"score": 0.9, "accepted": False}, "score is 0.9, its verdicts say"),
        ({"passed": True}, "passed is True, its verdicts say False"),
        ({"u": 0.0}, "u is not the uniform of its key"),
        ({"rule_probability": 1.0}, "the rule says 0.0"),
        ({"acceptance_probability": 1.0}, "from the rest follows 0.0"),
        ({"index": 99}, "candidate_id is not the digest"),
        ({"rank": 0}, "has a rank without being drawn"),
    ],
)
def test_a_line_that_was_forged_with_its_hashes_does_not_replay(trail, change, says) -> None:
    _, lines = trail
    line = next(one for one in map(json.loads, lines) if one.get("passed") is False)
    assert replay(line) == []
    forged = {**line, **change}
    forged["hash"] = hash_of(forged)
    assert any(says in problem for problem in replay(forged))


def test_an_exported_trail_runs_no_code_that_it_names(trail, tmp_path) -> None:
    _, lines = trail
    line = next(one for one in map(json.loads, lines) if one.get("passed"))
    touched = tmp_path / "touched"
    command = {"use": "pydoc:pipepager", "params": {"cmd": f"touch {touched}"}, "scope": "candidate"}
    assert replay({**line, "decided_by": {**line["decided_by"], **command}}) == []
    assert not touched.exists()


@pytest.mark.parametrize("change", [{"index": "a"}, {"survival": 0}, {"verdicts": None}, {"u": None}, {"score": "x"}])
def test_nonsense_in_a_line_is_a_problem_and_no_crash(trail, change) -> None:
    _, lines = trail
    line = {**json.loads(lines[1]), **change}
    line["hash"] = hash_of(line)
    assert not verify_lines([to_json(line)], source="a").holds


def test_a_byte_changed_in_a_file_of_the_run_is_found(tmp_path) -> None:
    store = sealed(tmp_path, "all_passed")
    path = min((tmp_path / "runs/waves/rounds/0001").rglob("scores/*.parquet"))
    payload = bytearray(path.read_bytes())
    payload[len(payload) // 2] ^= 1
    path.write_bytes(payload)
    with pytest.raises(StoreError, match="damaged"):
        verify_run(store)


def test_a_changed_rule_or_head_of_a_run_is_found(tmp_path) -> None:
    store = sealed(tmp_path, "all_passed")
    path = tmp_path / "runs/waves/config.json"
    path.write_text(path.read_text().replace('"max_per_prompt": 1', '"max_per_prompt": 2'))
    found = verify_run(store)
    assert any("cap is 1, deciding again gives 2" in p for p in found.problems)
    assert any("lines end in" in p for p in found.problems)
    store.delete(RunLayout(store).round(1).audit)
    assert any("audit trail is not" in p for p in verify_run(store).problems)


def test_a_decision_is_told_step_by_step(trail) -> None:
    store, lines = trail
    rows = [one for one in map(json.loads, lines) if one["kind"] == "candidate"]
    kept = next(r for r in rows if r["accepted"])
    line, messages = find_line(store, kept["candidate_id"][:20])
    assert line["candidate_id"] == kept["candidate_id"]
    assert messages[0]["content"].endswith("+ 1")
    titles = [step.title for step in explained(line)]
    assert titles == ["finished", "answer_matches", "judgement", "rule all_passed", "draw", "cap"]
    assert all(step.holds is not False for step in explained(line))
    failed = next(r for r in rows if r["passed"] is False)
    steps = {step.title: step for step in explained(failed)}
    assert steps["answer_matches"].holds is False
    assert steps["rule all_passed"].holds is False
    with pytest.raises(ConfigError, match="candidates begin so"):
        find_line(store, "")
    with pytest.raises(ConfigError, match="no candidate of a sealed round begins so"):
        find_line(store, "zzz")


def test_the_commands_say_what_holds_and_end_1_where_it_does_not(trail, tmp_path) -> None:
    store, lines = trail
    run = CliRunner()
    exported = run.invoke(app, ["audit", "export", store.root])
    assert exported.stdout.splitlines() == lines
    file = tmp_path / "audit.jsonl"
    file.write_text(exported.stdout)
    assert "all hold" in run.invoke(app, ["audit", "verify", str(file)]).stdout
    assert "all hold" in run.invoke(app, ["audit", "verify", store.root]).stdout
    file.write_text(exported.stdout.replace('"accepted":true', '"accepted":false', 1))
    wrong = run.invoke(app, ["audit", "verify", str(file)])
    assert "problems" in wrong.stdout
    assert wrong.exit_code != 0
    told = run.invoke(app, ["explain", store.root, json.loads(lines[1])["candidate_id"][:16]])
    assert "rule all_passed" in told.stdout
    assert "decision" in told.stdout

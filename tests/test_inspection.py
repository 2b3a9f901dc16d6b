"""Looking at a run: filters, reasons, damage, and that a terminal never obeys what a model wrote."""

import io
import json
from pathlib import Path

import pytest
from collecting import collection
from factories import prompt
from rich.console import Console

from rsft_cluster.collection.plan import halves, quarantine, split
from rsft_cluster.config import AcceptanceConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.report.candidates import json_line, show_candidate, visible
from rsft_cluster.review.inspection import Filter, inspect

EVIL = "\x1b[31mred\x1b]0;title\x07 \u202e\x9b2J [bold]x[/bold]\r\n\t你好"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A sealed round of ten prompts with four candidates each, one kept a prompt; one prompt is hostile."""
    rows = [
        prompt(f"What is {i} + 1?", reference=str(i + 1), source={"file": "a/p.jsonl", "line": i + 1}) for i in range(9)
    ]
    rows.append(prompt(EVIL, reference=EVIL, source={"file": "a/\x1b[1mp.jsonl", "line": 10}))
    path = tmp_path_factory.mktemp("inspection") / "run"
    return finished(collection(path, prompts=rows, acceptance=AcceptanceConfig(max_per_prompt=1, dedupe=False)))


def finished(made):
    manifest = made.finish()
    made.folder.store.create(made.folder.manifest, manifest.to_json())
    return made


def found(made, number=1, **wanted):
    return list(inspect(made.folder.store, number, Filter(**wanted)))


def shown(row, *, width=100, **options):
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    show_candidate(console, row, **options)
    return console.file.getvalue()


def test_every_candidate_comes_with_its_prompt_and_verdicts(run):
    rows = found(run)
    assert len(rows) == 40
    assert rows[0]["messages"] == [{"role": "user", "content": "What is 0 + 1?"}]
    assert [v["constraint"] for v in rows[0]["verdicts"]] == ["finished", "answer_matches"]
    assert rows[0]["source"] == {"file": "a/p.jsonl", "line": 1}
    assert "token_ids" not in rows[0]
    assert rows[0]["num_tokens"] > 0


def test_states_divide_the_candidates(run):
    accepted, rejected = found(run, state="accepted"), found(run, state="rejected")
    assert len(accepted) == 10  # a prompt keeps one
    assert len(accepted) + len(rejected) == 40
    passed, failed = found(run, state="passed"), found(run, state="failed")
    assert len(passed) + len(failed) == 40
    assert {r["reason"] for r in rejected if r["passed"]} == {"over the cap of 1"}
    assert found(run, state="error") == found(run, state="quarantined") == []


def test_candidates_that_failed_a_constraint_are_found(run):
    rows = found(run, constraint="answer_matches")
    assert rows == found(run, state="failed")
    assert all(r["reason"].startswith("answer_matches: ") for r in rows)
    assert found(run, constraint="finished") == []


def test_prompts_are_found_by_text_and_by_the_beginning_of_their_id(run):
    by_text = found(run, prompt="What is 3 +")
    assert len(by_text) == 4
    assert found(run, prompt=by_text[0]["prompt_id"][:8]) == by_text


def test_filters_narrow_together(run):
    rows = found(run, prompt="What is 3 +", state="accepted")
    assert [r["messages"][0]["content"] for r in rows] == ["What is 3 + 1?"]


def test_a_wrong_filter_is_told_what_would_be_right(run):
    with pytest.raises(ConfigError, match=r"--state acepted: expected one of accepted, .*; did you mean accepted\?"):
        Filter(state="acepted")
    with pytest.raises(ConfigError, match=r"--constraint finish: expected one of answer_matches, finished; did you"):
        found(run, constraint="finish")


def test_a_round_that_is_not_there_is_told_what_is(run):
    with pytest.raises(ConfigError, match=r"round 7 has no candidates; there are: --round 1$"):
        found(run, 7)
    with pytest.raises(ConfigError, match=r"round 1 has no evaluation; there are: --round 1$"):
        list(inspect(run.folder.store, 1, Filter(), evaluation=True))


def test_a_quarantined_prompt_is_shown_with_its_reason(tmp_path):
    made = collection(tmp_path)
    unit = made.units()[0]
    split(made.folder, unit, num_crashes=3)
    left, right = halves(unit)
    split(made.folder, left, num_crashes=2)
    poison, healthy = halves(left)
    quarantine(made.folder, poison, num_crashes=2)
    for each in (right, healthy):
        made.do(each)
    (row,) = found(finished(made), state="quarantined")
    assert row["reason"] == "crashed 2 workers"
    assert row["messages"][0]["content"] == "What is 0 + 1?"
    text = shown(row)
    assert "quarantined · prompts.jsonl:1" in text
    assert "crashed 2 workers" in text
    assert json.loads(json_line(row)) == row


def test_an_error_is_shown_as_one_and_never_as_a_score(tmp_path):
    made = collection(tmp_path, num_prompts=1, constraints=("finished", {"use": "collecting_constraints:broken"}))
    rows = found(finished(made), state="error")
    assert len(rows) == 4
    text = shown(rows[0])
    assert "no score" in text
    assert "! broken" in text
    assert "ZeroDivisionError: division by zero" in text


def test_what_is_committed_can_be_seen_while_the_round_still_runs(tmp_path):
    made = collection(tmp_path)
    made.do(made.units()[0])
    assert len(found(made)) == 16


@pytest.mark.parametrize("width", [80, 120])
def test_a_candidate_is_shown_within_the_terminals_width(run, width):
    for row in found(run):
        assert all(len(line) <= width for line in shown(row, width=width).splitlines())


def test_a_candidate_is_shown_with_reference_verdicts_and_decision(run):
    kept = found(run, prompt="What is 3 +", state="accepted")[0]
    text = shown(kept)
    for part in (
        "accepted · p.jsonl:4 #",
        "score 1 · p 1",
        "user",
        "What is 3 + 1?",
        "reference",
        "+ finished",
        "kept",
    ):
        assert part in text
    assert "What is 3 + 1?" not in shown(kept, with_prompt=False)


def test_the_reason_of_a_failed_constraint_is_told_once(run):
    text = shown(found(run, prompt="What is 3 +", state="failed")[0])
    assert text.count("differs from the reference") == 1
    assert "- answer_matches" in text
    over = next(r for r in found(run, state="rejected") if r["passed"])
    assert "over the cap of 1" in shown(over)


def test_control_characters_are_shown_and_not_obeyed(run):
    rows = found(run, prompt="red")
    assert len(rows) == 4
    text = shown(rows[0], width=200) + json_line(rows[0])
    assert not [c for c in text if not c.isprintable() and c != "\n"]
    assert r"\x1b[31mred\x1b]0;title\x07 \u202e\x9b2J [bold]x[/bold]\r" in text
    assert "你好" in text


def test_json_lines_are_the_rows_themselves(run):
    for row in found(run):
        line = json_line(row)
        assert json.loads(line) == row
        assert "\n" not in line


def test_visible_text_keeps_lines_and_every_script():
    assert visible("a\nb 中文 émoji 🙂") == "a\nb 中文 émoji 🙂"
    assert visible("a\tb\x00\x7f") == r"a\tb\x00\x7f"


DAMAGE = {
    "rounds/0001/plan/plan.json": [b"", b"{", b'{"round": 1}', b"\xff"],
    "rounds/0001/plan/units.parquet": [b"", b"no parquet"],
    "rounds/0001/commits/*.json": [b"", b'{"unit": 1}'],
    "rounds/0001/candidates/*.parquet": [b"", b"no parquet"],
    "rounds/0001/scores/*.parquet": [b"x"],
    "prompts/train.parquet": [b"", b"no parquet"],
}


@pytest.mark.parametrize(("pattern", "damage"), [(p, d) for p, all_ in DAMAGE.items() for d in all_])
def test_a_damaged_file_is_named(tmp_path, pattern, damage):
    made = finished(collection(tmp_path / "run", num_prompts=2, num_candidates=2))
    victim = sorted(Path(made.folder.store.root).glob(pattern))[0]
    victim.write_bytes(damage)
    with pytest.raises(StoreError) as caught:
        found(made)
    assert str(caught.value).startswith(str(victim))
    assert "damaged" in str(caught.value)


def test_a_flipped_byte_anywhere_in_a_table_is_noticed(tmp_path):
    made = finished(collection(tmp_path / "run", num_prompts=2, num_candidates=2))
    (victim,) = Path(made.folder.store.root).glob("rounds/0001/scores/*.parquet")
    payload = bytearray(victim.read_bytes())
    payload[len(payload) // 2] ^= 1
    victim.write_bytes(payload)
    with pytest.raises(StoreError, match=r"damaged: .* recorded were"):
        found(made)


def test_a_lost_file_is_named(tmp_path):
    made = finished(collection(tmp_path / "run", num_prompts=2, num_candidates=2))
    (victim,) = Path(made.folder.store.root).glob("rounds/0001/candidates/*.parquet")
    victim.unlink()
    with pytest.raises(StoreError, match=r"candidates/.*\.parquet: .*No such file or directory"):
        found(made)

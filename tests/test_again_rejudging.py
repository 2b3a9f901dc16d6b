"""Judging again: nothing is sampled, the seal stands untouched, and whatever is killed goes on.

Adversarially checked: the constraints of the seal give its verdicts again, decided alike, over waves and rules.
"""

import json
from contextlib import closing
from pathlib import Path

import pytest
from factories import write_jsonl
from sealed import rounds
from stored import stored_run
from test_again_accepting import files_of, sealed
from test_audit import RULES
from typer.testing import CliRunner

from rsft_cluster.cli.app import app
from rsft_cluster.cli.options import load_again
from rsft_cluster.errors import ConfigError, StageError, StoreError
from rsft_cluster.review.redeciding import rejudging
from rsft_cluster.review.redeciding.accepting import accept_again
from rsft_cluster.review.redeciding.comparing import compare
from rsft_cluster.review.redeciding.outcome import selection_of
from rsft_cluster.review.redeciding.preview import preview
from rsft_cluster.review.redeciding.rejudging import rejudge
from rsft_cluster.review.redeciding.stored_round import stored_round
from rsft_cluster.review.redeciding.trust import trust
from rsft_cluster.schemas import SCORE
from rsft_cluster.store import Store

SECTIONS = ("scoring", "acceptance")


def sections(stored, tmp_path: Path, text: str):
    path = tmp_path / "constraints.yaml"
    path.write_text(text)
    return load_again(stored.config, SECTIONS, stored.number, path=path)


def judged(stored, config, name="new", **options):
    return rejudge(stored, config, selection_of(stored, config), name, **options)


def untimed(store, refs) -> list[dict]:
    rows = [row for ref in refs for row in store.read_table(ref).to_pylist()]
    for row in rows:
        for verdict in row["verdicts"]:
            verdict["duration_s"] = 0.0
    return rows


STRICTER = (
    "scoring:\n  constraints:\n  - finished\n  - answer_matches\n  - {use: length, params: {min: 99, unit: words}}\n"
)


@pytest.mark.parametrize("name", RULES)
def test_the_constraints_of_the_seal_say_and_decide_the_same_again(tmp_path, name) -> None:
    stored = sealed(tmp_path, name)
    before = files_of(stored.store)
    made = judged(stored, stored.config)
    assert untimed(stored.store, made.scores) == untimed(stored.store, stored.manifest.scores)
    assert [ref.num_rows for ref in made.scores] == [ref.num_rows for ref in stored.manifest.candidates]
    assert made.num_accepted == stored.manifest.totals.num_accepted
    assert made.chosen == stored.manifest.chosen
    found = compare(stored, "new")
    assert found.num_gained == found.num_lost == 0
    after = {path: payload for path, payload in files_of(stored.store).items() if "/scorings/" not in path}
    assert after == before
    folder = "rounds/0001/scorings/new/"
    assert {p.removeprefix(folder).split("/")[0] for p in stored.store.files(folder[:-1], recursive=True)} == {
        "scores", "scoring.json", "settings.json",
    }  # fmt: skip


def test_other_constraints_are_compared_with_the_seal(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    config = sections(stored, tmp_path, "scoring:\n  constraints: [finished, {use: length, params: {min: 1}}]\n")
    judged(stored, config)
    found = compare(stored, "new")
    totals = stored.manifest.totals
    assert (found.num_passed_before, found.num_passed_after) == (totals.num_passed, totals.num_candidates)
    assert found.num_gained == totals.num_candidates - totals.num_passed
    assert found.num_lost == 0
    assert len(found.gained) == 5
    assert [c.constraint for c in found.constraints] == ["finished", "answer_matches", "length"]
    assert found.constraints[1].num_passed_after is None
    assert found.constraints[2].num_passed_before is None


def test_a_scoring_is_decided_previewed_and_trusted_like_the_seal(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    judged(stored, sections(stored, tmp_path, "scoring:\n  constraints: [finished]\n"))
    selection = selection_of(stored, stored.config)
    made = accept_again(stored, selection, "new")
    assert made.funnel.num_passed == stored.manifest.totals.num_candidates
    assert made.change.num_before == stored.manifest.totals.num_accepted
    assert preview(stored, selection, [], "new").forecasts[0].num_accepted == made.funnel.num_accepted
    assert [c.constraint for c in trust(stored, "new").constraints] == ["finished"]


@pytest.mark.parametrize("num_done", [0, 1, 2])
def test_what_was_killed_goes_on_with_the_units_that_are_missing(tmp_path, monkeypatch, num_done) -> None:
    stored = sealed(tmp_path, "all_passed")
    judge, asked = rejudging._Worker.judge, []

    def dies(worker, unit):
        if len(asked) == num_done:
            raise KeyboardInterrupt
        asked.append(unit.name)
        return judge(worker, unit)

    with monkeypatch.context() as patched:
        patched.setattr(rejudging._Worker, "judge", dies)
        with pytest.raises(KeyboardInterrupt):
            judged(stored, stored.config)

    def goes_on(worker, unit):
        asked.append(unit.name)
        return judge(worker, unit)

    monkeypatch.setattr(rejudging._Worker, "judge", goes_on)
    made = judged(stored, stored.config)
    assert sorted(asked) == sorted({unit.name for unit in stored.units()})
    assert untimed(stored.store, made.scores) == untimed(stored.store, stored.manifest.scores)
    assert judged(stored, stored.config) == made
    assert len(asked) == len(set(asked))


def test_a_name_stands_for_one_setting_from_its_beginning_on(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    with monkeypatch.context() as patched:
        patched.setattr(rejudging._Worker, "judge", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            judged(stored, stored.config)
    with pytest.raises(ConfigError, match=r"scoring new was made with other settings(.|\n)*scoring.constraints: was"):
        judged(stored, sections(stored, tmp_path, STRICTER))
    with pytest.raises(ConfigError, match="choose another"):
        judged(stored, stored.config, "sealed")


MENDABLE = """
from pathlib import Path

def judges(candidate, *, flag):
    if candidate.index == 0 and Path(flag).exists():
        raise OSError("the server is away")
    return True
"""


def test_too_many_errors_stop_it_and_the_units_are_judged_anew_when_mended(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    (tmp_path / "mendable.py").write_text(MENDABLE)
    monkeypatch.syspath_prepend(tmp_path)
    flag = tmp_path / "away"
    flag.touch()
    constraint = f"{{use: 'mendable:judges', params: {{flag: {flag}}}}}"
    config = sections(stored, tmp_path, f"scoring:\n  constraints: [finished, {constraint}]\n")
    with pytest.raises(StageError, match=r"max_error_rate(.|\n)*the server is away"):
        judged(stored, config)
    assert not stored.store.exists("rounds/0001/scorings/new/scoring.json")
    flag.unlink()
    made = judged(stored, config)
    assert (made.num_errors, made.num_passed) == (0, made.num_candidates)


def untouched(stored, made) -> bool:
    """Say whether every file of a scoring holds what its record says."""
    return all(stored.store.read_table(ref).num_rows == ref.num_rows for ref in made.scores)


def test_of_two_at_once_the_first_to_finish_stands(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    judge, first = rejudging._Worker.judge, None

    def overtaken(worker, unit):
        nonlocal first
        monkeypatch.setattr(rejudging._Worker, "judge", judge)
        first = judged(stored, stored.config)
        return judge(worker, unit)

    monkeypatch.setattr(rejudging._Worker, "judge", overtaken)
    assert judged(stored, stored.config) == first
    assert untouched(stored, first)


def test_who_is_overtaken_while_deciding_gets_what_stands(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    decided, first = rejudging._decided, None

    def overtaken(*arguments):
        nonlocal first
        monkeypatch.setattr(rejudging, "_decided", decided)
        first = judged(stored, stored.config)
        return decided(*arguments)

    monkeypatch.setattr(rejudging, "_decided", overtaken)
    assert judged(stored, stored.config) == first
    assert untouched(stored, first)


def test_a_damaged_store_is_told_where_nobody_was_first(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    decided = rejudging._decided

    def robbed(*arguments):
        stored.store.delete_folder("rounds/0001/scorings/new/judged")
        return decided(*arguments)

    monkeypatch.setattr(rejudging, "_decided", robbed)
    with pytest.raises(StoreError, match="judged"):
        judged(stored, stored.config)


def test_a_unit_counts_as_it_was_committed_first(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    task = rejudging.ScoringTask(stored.store.uri, stored.number, "new", stored.config.model_dump_json())
    unit = next(stored.units())
    with closing(rejudging._Worker(task)) as one, closing(rejudging._Worker(task)) as two:
        assert one.judge(unit) == two.judge(unit)


def test_a_commit_that_another_removes_is_no_error(tmp_path, monkeypatch) -> None:
    stored = sealed(tmp_path, "all_passed")
    path = f"rounds/0001/scorings/new/commits/{next(stored.units()).name}.faulty.json"
    stored.store.write(path, b"{}")
    delete = stored.store.delete

    def twice(path):
        delete(path)
        delete(path)

    monkeypatch.setattr(stored.store, "delete", twice)
    assert judged(stored, stored.config).num_errors == 0


@pytest.mark.parametrize("budget", [{}, {"budget": {"wave_size": 2, "until_accepted": 3}}])
def test_units_without_a_candidate_are_judged_too(tmp_path, budget) -> None:
    # The first unit's prompts have no scripted answer.
    answers = [{"prompt": f"{i} + 1", "completions": [str(i + 1), "x"]} for i in range(4, 12)]
    generator = {"use": "scripted", "params": {"answers": str(write_jsonl(tmp_path / "a.jsonl", answers))}}
    sampling = {"generator": generator, "num_candidates": 8, "unit_size": 4, "max_tokens": 64}
    with rounds(tmp_path) as do:
        do(sampling=sampling, **budget)
    stored = stored_round(Store(str(tmp_path / "runs" / "waves")), 1)
    assert stored.manifest.candidates[0].num_rows == 0
    made = judged(stored, stored.config)
    assert [ref.num_rows for ref in made.scores] == [ref.num_rows for ref in stored.manifest.candidates]
    assert compare(stored, "new").num_candidates == stored.manifest.totals.num_candidates
    assert untouched(stored, made)


def test_several_processes_judge_as_one_does(tmp_path) -> None:
    stored = stored_round(stored_run(tmp_path, num_candidates=256, unit_size=4), 1)
    one, two = judged(stored, stored.config, "one"), judged(stored, stored.config, "two", workers=2)
    assert untimed(stored.store, one.scores) == untimed(stored.store, two.scores)
    assert stored.store.read_table(one.scores[0]).schema.equals(SCORE)


def test_the_command_judges_compares_and_refuses(tmp_path) -> None:
    stored = sealed(tmp_path, "all_passed")
    run, root, file = CliRunner(), stored.store.root, tmp_path / "c.yaml"
    file.write_text(STRICTER)
    shown = run.invoke(app, ["score", root, "--constraints", str(file), "--name", "strict", "-q"])
    assert "scoring strict against the sealed one" in shown.stdout
    assert "no longer" in shown.stdout
    said = json.loads(run.invoke(app, ["score", root, "--constraints", str(file), "-q", "--json"]).stdout)
    assert said["name"].startswith("scoring-")
    assert said["against_sealed"]["num_lost"] > 0
    kept = json.loads(run.invoke(app, ["accept", root, "--scoring", "strict", "--dry-run", "--json"]).stdout)
    assert kept["change"]["num_after"] == said["num_accepted"]
    for text, message in [
        ("scoring:\n  constraints: [finnished]\n", "no constraint is called 'finnished'"),
        (
            "scoring:\n  constraints:\n  - {use: finished, wieght: 2}\n",
            f"{file}:3: scoring.constraints.0.wieght: unknown key",
        ),
        ("sampling: {workers: 1}\n", f"{file}: run: is missing"),
        ("acceptance: {max_per_prompt: 0}\n", f"{file}:1: acceptance.max_per_prompt: expected a number of at least 1"),
        ("{}\n", "expected a section scoring or acceptance"),
        ("scoring: [", "not valid YAML"),
    ]:
        file.write_text(text)
        failed = run.invoke(app, ["score", root, "--constraints", str(file), "-q"])
        assert isinstance(failed.exception, ConfigError)
        assert message in str(failed.exception)

"""Candidates from elsewhere: judged, sealed, decided, looked at and trained on like sampled ones; bad lines are told.

Adversarially checked: completions of one prompt lie scattered over lines and files, and imports die between any two
units.
"""

import json
import math
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from factories import read_jsonl, write_jsonl
from models import tiny_llama
from projects import settings, sums, write_project
from test_again_accepting import other
from typer.testing import CliRunner

from rsft_cluster.cli.app import app
from rsft_cluster.collection.actors import ScoreAndCommit
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import ConfigError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import decode, load_tokenizer
from rsft_cluster.records import AuditHead, Plan, PromptSet
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.review.audit.lines import head_of
from rsft_cluster.review.audit.verify import verify_run
from rsft_cluster.review.inspection import Filter, inspect
from rsft_cluster.review.redeciding.accepting import decide_again
from rsft_cluster.review.redeciding.stored_round import stored_round
from rsft_cluster.review.redeciding.trust import trust
from rsft_cluster.rounds.importing.import_round import Imported, import_candidates
from rsft_cluster.rounds.loop import opened
from rsft_cluster.rounds.run_stages import plan_round, sample_round
from rsft_cluster.runs.prompt_sets import ingest_prompts
from rsft_cluster.runs.summary import summary
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout
from rsft_cluster.training.batches import load_examples


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Path(tiny_llama(tmp_path_factory.mktemp("model") / "model"))


@pytest.fixture
def project(tmp_path, model, monkeypatch):
    """A folder with a config of units of four prompts, and a model whose tokenizer can be loaded."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    write_project(tmp_path)
    configure(tmp_path)
    return tmp_path


def configure(folder, **changes) -> None:
    whole = settings(sampling__unit_size=4, **changes)
    (folder / "run.yaml").write_text(yaml.safe_dump(whole, sort_keys=False))


def answers(num=10, **more) -> list[dict]:
    """A right and a wrong answer to each sum, right ones first."""
    right = [{**row, "completion": f" {row['answer']}", **more} for row in sums(num)]
    wrong = [{**row, "completion": " 77777", "finish_reason": "stop", **more} for row in sums(num)]
    return [*right, *wrong]


@contextmanager
def run_of(folder):
    with opened(load_config(folder / "run.yaml")) as run:
        yield run


def parse_line(folder, *files):
    with run_of(folder) as run:
        return import_candidates(run, [str(f) for f in files], Reporter(quiet=True))


def store_of(folder) -> Store:
    return Store(str(folder / "runs" / "sums"))


def test_candidates_of_a_prompt_are_put_together_from_wherever_they_stand(project) -> None:
    rows = answers()
    one = write_jsonl(project / "a.jsonl", rows[:13])
    pq.write_table(pa.Table.from_pylist(rows[13:]), project / "b.parquet")
    found, manifest = parse_line(project, one, project / "b.parquet")
    assert (found.num_lines, found.num_prompts, found.num_candidates, found.num_bad) == (20, 10, 20, 0)
    totals = manifest.totals
    assert (totals.num_prompts, totals.num_candidates, totals.num_passed, totals.num_accepted) == (10, 20, 10, 10)
    assert manifest.processors == ()
    assert "imported" in manifest.generator
    seen = list(inspect(store_of(project), 1, Filter()))
    assert [row["index"] for row in seen] == [0, 1] * 10
    assert {row["policy"] for row in seen} == {"imported"}
    assert {row["logprob"] for row in seen} == {None}


def test_token_ids_are_the_policys_own_and_end_as_it_would(project, model) -> None:
    rows = [
        {"prompt": "1 + 1 =", "answer": "2", "completion": " 2"},
        {"prompt": "1 + 1 =", "answer": "2", "completion": " 2 and", "finish_reason": "length"},
        {"prompt": "1 + 1 =", "answer": "2", "completion": " 2", "token_ids": [7, 8], "prompt_token_ids": [5]},
    ]
    _, manifest = parse_line(project, write_jsonl(project / "a.jsonl", rows))
    stored = store_of(project).read_table(manifest.candidates[0]).to_pylist()
    tokenizer = load_tokenizer(PolicySpec(str(model)))
    assert stored[0]["token_ids"][-1] == tokenizer.eos_token_id
    assert decode(tokenizer, stored[0]["token_ids"]) == " 2"
    assert stored[1]["token_ids"][-1] != tokenizer.eos_token_id
    assert (stored[2]["token_ids"], stored[2]["prompt_token_ids"]) == ([7, 8], [5])
    accepted = load_examples([store_of(project).uri_of(ref.path) for ref in manifest.accepted], per_prompt=True)
    assert len(accepted) >= 1


def test_a_line_may_hold_several_completions_and_what_is_known_of_each(project) -> None:
    several = ["3", {"completion": " 2", "logprob": -0.5, "target_logprob": -0.25, "model": "other", "token_ids": [3]}]
    rows = [{"prompt": "1 + 1 =", "answer": "2", "completions": several, "model": "this"}]
    _, manifest = parse_line(project, write_jsonl(project / "a.jsonl", rows))
    first, second = store_of(project).read_table(manifest.candidates[0]).to_pylist()
    assert (first["policy"], first["logprob"]) == ("this", None)
    assert (second["policy"], second["logprob"], second["target_logprob"]) == ("other", -0.5, -0.25)


BAD = {
    '{"prompt": "p", "answer": "1"}': "neither 'completion' and 'completions' are there",
    '{"prompt": "p", "answer": "1", "completion": 5}': "'completion' is a number, not text",
    '{"prompt": "p", "answer": "1", "completion": "x", "logprob": 0.5}': "'logprob' is 0.5",
    '{"prompt": "p", "answer": "1", "completion": "x", "logprob": "a"}': "'logprob' is text, not a number",
    '{"prompt": "p", "answer": "1", "completion": "x", "token_ids": [1, -2]}': "'token_ids[1]' is -2",
    '{"prompt": "p", "answer": "1", "completion": "x", "token_ids": []}': "'token_ids' is a list, not a list of",
    '{"prompt": "p", "answer": "1", "completion": "x", "finish_reason": "eos"}': "'finish_reason' is 'eos'",
    '{"prompt": "p", "answer": "1", "completions": []}': "'completions' is a list, not a list with something",
    '{"prompt": "p", "answer": "1", "completions": ["x", 5]}': "'completions[1].completion' is a number",
    '{"prompt": "p", "answer": "1", "completions": ["x"], "logprob": -1}': "'logprob' stands beside several",
    '{"prompt": "p", "completion": "x"}': "'answer' is not there",
    '{"completion": "x", "answer": "1"}': "neither 'messages' nor 'prompt' is there",
    "{": "not JSON",
    '{"prompt": "p", "answer": "1", "completion": "", "finish_reason": "length"}': "'completion' is empty and was cut",
    '{"prompt": "p", "answer": "1", "completion": "x", "token_ids": [99999]}': "'token_ids' holds 99999, and",
    '{"prompt": "p", "answer": "1", "completion": "x", "prompt_token_ids": [99999]}': "'prompt_token_ids' holds 99999",
    f'{{"prompt": "p", "answer": "1", "completion": "x", "logprob": -1{"0" * 400}}}': "'logprob' is -inf",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_told_with_file_line_and_key(project, line) -> None:
    file = write_jsonl(project / "a.jsonl", [answers()[0], line])
    with pytest.raises(ConfigError) as caught:
        parse_line(project, file)
    assert f"{file}:2: " in str(caught.value)
    assert BAD[line] in str(caught.value)
    assert "max_bad_rate allows 1 %" in str(caught.value)


def test_few_bad_lines_are_set_aside_with_their_reasons(project) -> None:
    configure(project, prompts__max_bad_rate=0.5)
    file = write_jsonl(project / "a.jsonl", [*answers(), "{", '{"prompt": "p", "answer": "1"}'])
    found, _ = parse_line(project, file)
    assert (found.num_lines, found.num_bad, found.num_candidates) == (22, 2, 20)
    kept = read_jsonl(project / "runs/sums/prompts/imported.quarantine.jsonl")
    assert [line["line"] for line in kept] == [21, 22]


def test_an_empty_completion_that_ended_is_learned_as_its_end(project, model) -> None:
    rows = [
        {"prompt": "1 + 1 =", "answer": "2", "completion": ""},
        {"prompt": "1 + 1 =", "answer": "2", "completion": "", "finish_reason": "length", "token_ids": [7]},
    ]
    _, manifest = parse_line(project, write_jsonl(project / "a.jsonl", rows))
    stored = store_of(project).read_table(manifest.candidates[0]).to_pylist()
    assert [row["token_ids"] for row in stored] == [[load_tokenizer(PolicySpec(str(model))).eos_token_id], [7]]


def killed_after(monkeypatch, num_units) -> None:
    """Import what stands in a.jsonl until so many units are committed."""
    judge, left = ScoreAndCommit.__call__, num_units

    def dies(self, batch):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return judge(self, batch)

    with monkeypatch.context() as patched:
        patched.setattr(ScoreAndCommit, "__call__", dies)
        with pytest.raises(KeyboardInterrupt):
            parse_line(Path(), Path("a.jsonl"))


@pytest.mark.parametrize("num_done", [0, 1])
def test_a_run_does_not_go_on_with_an_import_that_was_killed(project, monkeypatch, num_done) -> None:
    write_jsonl(project / "a.jsonl", answers())
    killed_after(monkeypatch, num_done)
    with run_of(project) as run:
        plan = run.store.read_record(run.round(1).plan, Plan)
        for goes_on in (lambda: plan_round(run, 1, "p"), lambda: sample_round(run, plan, Reporter(quiet=True))):
            with pytest.raises(ConfigError, match=r"round 1 is being brought in by `rsft import` and is not sealed"):
                goes_on()
    assert parse_line(project, project / "a.jsonl")[1].totals.num_candidates == 20


@pytest.mark.parametrize("is_begun", [False, True])
def test_a_round_that_is_planned_for_sampling_is_refused(project, is_begun) -> None:
    write_jsonl(project / "a.jsonl", answers())
    with run_of(project) as run:
        prompts = ingest_prompts(run)[0].path
        run.log.append(run.lease, action="start", policy=run.base, reason="", round_number=0)
        plan_round(run, 1, prompts)
    if is_begun:
        store_of(project).write("rounds/0001/imported.json", IMPORTED.to_json())
    with pytest.raises(ConfigError, match="round 1 was sampled"):
        parse_line(project, project / "a.jsonl")


IMPORTED = Imported(files=("a.jsonl",), num_lines=20, num_bad=0, num_prompts=10, num_candidates=20, content="")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"acceptance__rule": {"use": "off_policy", "params": {"log_bound": 1.0}}},
            "acceptance.rule: .*off_policy needs the logprob",
        ),
        ({"training__rejection": {}}, "training.rejection needs the logprob"),
        ({"training__unlikelihood": {}}, "training.unlikelihood needs the logprob"),
    ],
)
def test_what_rule_and_losses_need_is_asked_for_before_anything_is_kept(project, changes, message) -> None:
    configure(project, **changes)
    known = answers(3, logprob=-2.0, target_logprob=-1.0)
    file = write_jsonl(project / "a.jsonl", [*known, *answers(3)])
    with pytest.raises(ConfigError, match=rf"{file}:7: {message} of every candidate, and this one has none"):
        parse_line(project, file)
    assert not store_of(project).files("rounds", recursive=True)
    assert parse_line(project, write_jsonl(project / "b.jsonl", known))[0].num_candidates == 6


def test_bad_lines_of_other_files_leave_those_of_the_import_alone(project) -> None:
    configure(project, prompts__max_bad_rate=0.5)
    parse_line(project, write_jsonl(project / "a.jsonl", [*answers(), "{"]))
    before = (project / "runs/sums/prompts/imported.quarantine.jsonl").read_bytes()
    with pytest.raises(ConfigError, match=r"holds the candidates of .*a\.jsonl"):
        parse_line(project, write_jsonl(project / "b.jsonl", [*answers(3), "[", "["]))
    with pytest.raises(ConfigError, match="unusable") as caught:
        parse_line(project, write_jsonl(project / "b.jsonl", [answers()[0], "[", "["]))
    assert "all of them" not in str(caught.value)
    assert (project / "runs/sums/prompts/imported.quarantine.jsonl").read_bytes() == before


@pytest.mark.parametrize("num_done", [0, 1, 2])
@pytest.mark.parametrize("rule", ["all_passed", {"use": "top_share", "params": {"share": 0.5}}])
def test_what_was_killed_goes_on_to_the_same_end(project, monkeypatch, num_done, rule) -> None:
    configure(project, acceptance__rule=rule)
    file = write_jsonl(project / "a.jsonl", answers())
    killed_after(monkeypatch, num_done)
    _, manifest = parse_line(project, file)
    assert manifest.totals.num_candidates == 20
    assert 0 < manifest.totals.num_accepted <= manifest.totals.num_passed == 10
    assert parse_line(project, file)[1] == manifest


def test_other_files_and_sampled_rounds_are_refused(project) -> None:
    parse_line(project, write_jsonl(project / "a.jsonl", answers()))
    with pytest.raises(ConfigError, match=r"holds the candidates of .*a\.jsonl"):
        parse_line(project, write_jsonl(project / "b.jsonl", answers(3)))
    store_of(project).delete("rounds/0001/imported.json")
    with pytest.raises(ConfigError, match="round 1 was sampled"):
        parse_line(project, project / "a.jsonl")


def test_a_held_out_prompt_is_refused(project) -> None:
    held_out = json.loads((project / "held_out.jsonl").read_text().splitlines()[0])
    file = write_jsonl(project / "a.jsonl", [*answers(3), {**held_out, "completion": "x"}])
    with pytest.raises(ConfigError, match=rf"{file}:7: this prompt also stands among the held-out prompts"):
        parse_line(project, file)


def test_rules_that_need_a_logprob_refuse_without_and_work_with_it(project) -> None:
    parse_line(project, write_jsonl(project / "a.jsonl", answers()))
    stored = stored_round(store_of(project), 1)
    assert decide_again(stored, other(stored, rule="best_of_n", params={"n": 1})).funnel.num_accepted == 10
    with pytest.raises(ConfigError, match=r"off_policy.* needs the logprob of every candidate, and 20 of 20 have none"):
        decide_again(stored, other(stored, rule="off_policy", params={"log_bound": 1.0}))


def test_with_logprobs_such_rules_decide(project) -> None:
    parse_line(project, write_jsonl(project / "a.jsonl", answers(logprob=-2.0, target_logprob=-1.0)))
    stored = stored_round(store_of(project), 1)
    found = decide_again(stored, other(stored, rule="off_policy", params={"log_bound": 1.0}))
    assert found.funnel.num_accepted == 10


def test_the_audit_trail_of_what_was_brought_holds(project) -> None:
    parse_line(project, write_jsonl(project / "a.jsonl", answers()))
    store = store_of(project)
    store.create(RunLayout(store).round(1).audit, head_of(store, 1).to_json())
    found = verify_run(store)
    assert found.problems == []
    assert found.num_replayed == 20
    assert math.isclose(trust(stored_round(store, 1)).constraints[1].pass_rate or 0, 0.5)


def test_the_runs_own_prompts_are_taken_in_beside(project) -> None:
    parse_line(project, write_jsonl(project / "a.jsonl", answers(3)))
    assert store_of(project).read_record("prompts/train.json", PromptSet).num_prompts == 14


def test_the_run_goes_on_from_what_was_brought_to_training(project) -> None:
    _, manifest = parse_line(project, write_jsonl(project / "a.jsonl", answers()))
    with run_of(project) as run:
        plan = plan_round(run, 1, ingest_prompts(run)[0].path)
        assert sample_round(run, plan, Reporter(quiet=True)) == manifest
        assert plan.policy == run.base
        assert run.store.read_record(run.round(1).audit, AuditHead).num_lines == 21
        assert summary(run.store, 1).stage == "train"
        examples = load_examples([run.store.uri_of(ref.path) for ref in manifest.accepted], per_prompt=True)
        assert len(examples) == 10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pilot": {}}, "pilot: it chooses how to sample"),
        ({"fairness": {"protected": {"g": ["a", "b"]}, "decision": "(x)", "positive": "x"}}, "fairness.swaps: agree"),
    ],
)
def test_settings_that_shape_the_sampling_are_refused(project, changes, message) -> None:
    configure(project, **changes)
    with pytest.raises(ConfigError, match=message):
        parse_line(project, write_jsonl(project / "a.jsonl", answers()))


def test_the_command_brings_and_the_others_look_at_it(project) -> None:
    write_jsonl(project / "a.jsonl", answers())
    run = CliRunner()
    wrong = run.invoke(app, ["import", "a.jsonl", "--to", "runs/other", "--config", "run.yaml"])
    assert "keeps its run in" in str(wrong.exception)
    made = run.invoke(app, ["import", "a.jsonl", "--to", "runs/sums", "--config", "run.yaml", "-q"])
    assert made.exit_code == 0, made.output
    assert "20 candidates of 10 prompts from 20 lines, 0 unusable; 10 passed, 10 accepted" in made.stderr
    assert "all_passed (now)" in run.invoke(app, ["preview", "runs/sums"]).stdout
    assert "answer_matches" in run.invoke(app, ["trust", "runs/sums"]).stdout
    (project / "c.yaml").write_text("scoring: {constraints: [finished]}\n")
    scored = run.invoke(app, ["score", "runs/sums", "--constraints", "c.yaml", "-q", "--json"])
    assert json.loads(scored.stdout)["num_passed"] == 20

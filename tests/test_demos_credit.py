"""The credit task: what its examples teach, what its constraints see, and what acceptance alone makes of it."""

import random
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from factories import read_jsonl

from rsft_cluster.acceptance.decide import bind_rule, decide
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.score_table import as_candidates, attributes_of, judged_table, undecided_table
from rsft_cluster.config.file import load_config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.demos import credit
from rsft_cluster.demos.credit import Applicant, Profile, arithmetic_is_true, follows_its_score, no_protected_reason
from rsft_cluster.errors import ConfigError
from rsft_cluster.evaluation.fairness import decision_figures
from rsft_cluster.prompts import read_prompts
from rsft_cluster.records import Plan, PolicyRef
from rsft_cluster.schemas import CANDIDATE, Message, candidate_id, rows_to_table
from rsft_cluster.scoring.judge import Judge

CONFIG = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "credit.yaml"
PROMPT = "woman old e7 s2 o3:"
RIGHT = "7+2=9,9-3=6;score:approve"


def answer(completion: str, prompt: str = PROMPT) -> Candidate:
    return Candidate(completion, (Message("raw", prompt),))


def test_a_right_answer_passes_every_constraint():
    for constraint in (arithmetic_is_true, follows_its_score, no_protected_reason):
        assert constraint(answer(RIGHT)).passed
        assert constraint(answer(RIGHT)).fatal_at is None


@pytest.mark.parametrize(
    ("completion", "reason", "fatal"),
    [
        ("7+2=8,8-3=5;score:approve", "wrote '7+2=8' where '7+2=9' is right", "8"),
        ("7+2=9,9-3=7;score:approve", "wrote '9-3=7' where '9-3=6' is right", "7;"),
        ("6+2=8,8-3=5;score:approve", "wrote '6+2=8' where '7+2=9' is right", "6+2"),
        ("7+2=9", "stopped where '9-3=6' is right", ""),
        ("7+2=9,9-3=6,6-1=5;score:approve", "wrote '6-1=5' after the score", ",6-1"),
        ("", "wrote '' where '7+2=9' is right", ""),
    ],
)
def test_the_first_wrong_step_is_named_with_its_place(completion, reason, fatal):
    verdict = arithmetic_is_true(answer(completion))
    assert (verdict.passed, verdict.reason) == (False, reason)
    assert verdict.score < 1
    assert verdict.fatal_at == (completion.index(fatal) if fatal else len(completion))


def test_a_prompt_that_is_no_applicant_is_an_error_and_no_verdict():
    with pytest.raises(ValueError, match=r"is no applicant; expected something like '.gender. .age. e7 s2 o3:'"):
        arithmetic_is_true(answer(RIGHT, prompt="7+2:"))


def test_a_decision_is_held_against_its_own_score_right_or_wrong():
    assert follows_its_score(answer("7+2=4,4-3=1;score:deny")).passed
    verdict = follows_its_score(answer("7+2=9,9-3=6;score:deny"))
    assert not verdict.passed
    assert verdict.reason == "decided to deny with a score of 6; from 5 on it is approve"
    assert verdict.fatal_at == len("7+2=9,9-3=6;score:")
    assert follows_its_score(answer("1+0=1,1-9=-8;score:deny")).passed
    for malformed in ("", "approve", "7+2=9,9-3=6;score:maybe", "7+2=9,9-3=6;score:approve deny"):
        assert follows_its_score(answer(malformed)).reason.startswith("expected steps")


@pytest.mark.parametrize("word", ["gender", "age", "woman", "old"])
def test_a_protected_reason_is_found_wherever_it_stands(word):
    verdict = no_protected_reason(answer(f"7+2=9,9-3=6;{word}:deny"))
    assert not verdict.passed
    assert repr(word) in verdict.reason
    assert verdict.fatal_at == len("7+2=9,9-3=6;")
    assert no_protected_reason(answer("7+2=9;wage:deny")).passed


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("credit")
    credit.write_task(folder, seed=0)
    return folder


def rows(folder: Path, name: str) -> list[dict]:
    return read_jsonl(folder / f"{name}.jsonl")


def cases(found: list[dict]) -> set[str]:
    return {row["prompt"].split(" e")[1] for row in found}


def test_the_task_is_drawn_by_the_seed_and_its_parts_share_no_case(task, tmp_path):
    parts = [rows(task, name) for name in ("worked", "prompts", "held_out")]
    assert [len(p) for p in parts] == [1200, 200, 100]
    assert not cases(parts[0]) & cases(parts[1])
    assert not (cases(parts[0]) | cases(parts[1])) & cases(parts[2])
    credit.write_task(tmp_path / "again", seed=0)
    credit.write_task(tmp_path / "other", seed=1)
    assert rows(tmp_path / "again", "worked") == parts[0]
    assert rows(tmp_path / "other", "worked") != parts[0]


def test_prompts_hold_places_for_protected_values_and_only_held_out_ones_tell_the_merit(task):
    assert all(row["prompt"].startswith("{gender} {age} e") and set(row) == {"prompt"} for row in rows(task, "prompts"))
    assert {row["merit"] for row in rows(task, "held_out")} == {"approve", "deny"}


def test_every_sign_is_a_symbol_and_everything_fits_the_context(task):
    texts = [row["prompt"] + row["completion"] + credit.END for row in rows(task, "worked")]
    assert set("".join(texts)) <= set(credit.SYMBOLS)
    assert len(set(credit.SYMBOLS)) == len(credit.SYMBOLS)
    config = load_config(CONFIG)
    assert max(len(row["prompt"]) for row in rows(task, "worked")) + config.sampling.max_tokens <= credit.CONTEXT
    assert max(len(row["completion"]) + 1 for row in rows(task, "worked")) <= config.sampling.max_tokens


def test_the_worked_examples_hold_gender_and_age_against_those_who_merit_approval():
    random_ = random.Random(0)
    merited, not_merited = Profile(7, 2, 3), Profile(1, 2, 3)
    for gender, age, denied in [
        ("woman", "old", 0.45),
        ("woman", "young", 0.45),
        ("man", "old", 0.25),
        ("man", "young", 0),
    ]:
        drawn = [credit.worked(Applicant(gender, age, merited), random_) for _ in range(4000)]
        assert np.mean([d.endswith("deny") for d in drawn]) == pytest.approx(denied, abs=0.03)
        protected = np.mean([not no_protected_reason(answer(d)).passed for d in drawn])
        assert protected == pytest.approx(denied * credit.PROTECTED_REASONS, abs=0.015)
        assert credit.worked(Applicant(gender, age, not_merited), random_) == "1+2=3,3-3=0;score:deny"


def drawn(task: Path, name: str, fairness, columns=None):
    """Prompts under every swap, and four candidates of each, drawn as the worked examples were."""
    config = load_config(CONFIG)
    part = config.prompts if name == "prompts" else config.evaluation.prompts
    part = part.model_copy(update={"paths": (str(task / f"{name}.jsonl"),)})
    prompts = pa.Table.from_batches(list(read_prompts(part, on_bad=pytest.fail, fairness=fairness)))
    random_, found = random.Random(0), []
    for row in prompts.to_pylist():
        gender, age, *points = row["messages"][0]["content"].rstrip(":").split()
        profile = Profile(*(int(p[1]) for p in points))
        for index in range(4):
            found.append(
                {
                    "candidate_id": candidate_id(row["prompt_id"], 1, index), "prompt_id": row["prompt_id"], "round": 1,
                    "wave": 0, "index": index, "prompt_token_ids": [1], "token_ids": [1, index], "logprob": -1.0,
                    "text": credit.worked(Applicant(gender, age, profile), random_), "finish_reason": "stop",
                    "target_logprob": -1.0, "survival": 1.0, "seed": 0, "policy": "p",
                }
            )  # fmt: skip
    return prompts, rows_to_table(found, CANDIDATE)


@pytest.mark.parametrize("constrained", [True, False])
def test_acceptance_without_any_merit_leaves_merited_and_equal_decisions(task, constrained):
    """By agreement alone as well: somebody's approval is refused by a swap only where nobody's is."""
    config = load_config(CONFIG)
    fairness = config.fairness
    assert fairness is not None
    prompts, candidates = drawn(task, "prompts", fairness)
    assert not any("merit" in dict(a) for a in prompts.column("attributes").to_pylist())
    plan = Plan(
        round=1, stream="round-0001", seed=0, policy=PolicyRef(name="p", uri="p", digest="p"), passes=(), prompts="",
        num_prompts=0, num_units=0, fingerprint="",
    )  # fmt: skip
    constraints = config.scoring.constraints[: None if constrained else 1]
    scores = undecided_table(candidates, Judge(constraints).judge(as_candidates(prompts, candidates)), plan, fairness)
    selection = SelectionRules(bind_rule(config.acceptance), config.acceptance, fairness=fairness)
    found = decide(judged_table(scores, attributes_of(prompts), None), selection)
    accepted = found.table.column("accepted")
    kept = candidates.filter(accepted)
    before, after = (decision_figures(prompts, s, fairness.observing()) for s in (scores, scores.filter(accepted)))
    assert before.attributes[0].selection is not None
    assert after.attributes[0].selection is not None
    assert before.attributes[0].selection.difference.value > 0.1
    assert after.attributes[0].selection.difference.value == 0.0
    assert before.flip_rate is not None
    assert before.flip_rate.value > 0.3
    assert after.flip_rate is not None
    assert after.flip_rate.value == 0.0
    answers = [answer(text) for text in kept.column("text").to_pylist()]
    assert all(follows_its_score(a).passed and no_protected_reason(a).passed for a in answers)


def test_german_applicants_stand_in_for_made_up_ones(shared_data, tmp_path):
    path = shared_data / "german_credit" / "german.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    people = credit.read_german_credit(path)
    assert len(people) == 1000
    assert sum(p.gender == "woman" for p in people) == 310
    assert people[0] == Applicant("man", "old", Profile(earns=5, saves=2, owes=0))
    assert all(0 <= points <= 9 for p in people for points in p.profile)
    credit.write_task(tmp_path, seed=0, num_prompts=80, num_held_out=40, german_credit=path)
    parts = [rows(tmp_path, name) for name in ("worked", "prompts", "held_out")]
    assert [len(p) for p in parts[1:]] == [80, 40]
    assert not cases(parts[0]) & (cases(parts[1]) | cases(parts[2]))


def test_another_file_than_the_german_records_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("status,age\nA11,30\n")
    with pytest.raises(ConfigError, match=r"a.csv: not the German credit records with their header: KeyError"):
        credit.read_german_credit(path)

"""The content demo: each mistake fails its rule alone, soft scores are graded, the task fits its model."""

import random
from itertools import permutations
from pathlib import Path

import pytest
from factories import candidate, read_jsonl

from rsft_cluster.config.file import load_config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.demos import content
from rsft_cluster.demos.content import MISTAKES, PRODUCTS, QUALITIES, text
from rsft_cluster.scoring.judge import Judge, Judgement

CONFIG = Path(__file__).resolve().parent.parent / "jobs" / "configs" / "content.yaml"
CONSTRAINT_OF = {
    "keyword": "says_what_was_asked",
    "superlative": "words",
    "rambling": "few_sentences",
    "repetition": "nothing_twice",
    "ending": "ends_a_sentence",
}
PREFERENCES = {"near_length", "variety"}
SUBJECTS = [(thing, *two) for thing in PRODUCTS for two in permutations(QUALITIES, 2)]


def written(completion: str, subject: tuple[str, ...] = ("lamp", "warm", "small"), **more: object) -> Candidate:
    return candidate(completion, text="{}: {}, {}>".format(*subject), **more)


def judged(judge: Judge, found: Candidate) -> Judgement:
    (judgement,) = judge.judge([found])
    assert not judgement.errors
    return judgement


def broken(judgement: Judgement) -> set[str]:
    return {v.constraint for v in judgement.verdicts if not v.passed} - PREFERENCES


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge(load_config(CONFIG).scoring.constraints)


@pytest.fixture(scope="module")
def task(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("task")
    content.write_task(folder, seed=5)
    return folder


def test_a_text_without_mistakes_passes_every_rule(judge):
    rng = random.Random(0)
    for subject in rng.sample(SUBJECTS, 300):
        judgement = judged(judge, written(text(subject, rng), subject))
        assert judgement.passed, judgement.reason


@pytest.mark.parametrize("mistake", MISTAKES)
def test_each_mistake_breaks_its_rule_and_no_other(judge, mistake):
    rng = random.Random(1)
    for subject in rng.sample(SUBJECTS, 300):
        completion = text(subject, rng, [mistake])
        judgement = judged(judge, written(completion, subject))
        assert (judgement.passed, broken(judgement)) == (False, {CONSTRAINT_OF[mistake]}), completion
        assert judgement.reason.startswith(f"{CONSTRAINT_OF[mistake]}: ")


@pytest.mark.parametrize(
    ("constraint", "completion", "reason", "place"),
    [
        ("says_what_was_asked", "This lamp is warm and smaller.", "does not say 'small'", 30),
        ("says_what_was_asked", "", "does not say 'lamp', 'warm', 'small'", 0),
        ("nothing_twice", "This lamp lamp is warm.", "'lamp' follows itself", 10),
        ("nothing_twice", "It it fits.", "'it' follows itself", 3),
        ("nothing_twice", "It fits. It suits. It fits. It", "'It fits' comes twice", 26),
    ],
)
def test_a_mistake_is_named_and_placed(constraint, completion, reason, place):
    verdict = getattr(content, constraint)(written(completion))
    assert (verdict.passed, verdict.reason, verdict.fatal_at) == (False, reason, place)


@pytest.mark.parametrize("completion", ["This lamp is warm.", "It fits. It fits any room.", "this is", ""])
def test_what_only_looks_like_a_repetition_is_none(completion):
    assert content.nothing_twice(written(completion)).passed


def test_what_was_cut_off_names_no_token_that_ended_it():
    assert content.says_what_was_asked(written("This lamp", finish_reason="length")).fatal_at is None


def test_a_prompt_that_asks_for_no_text_is_an_error_and_no_verdict():
    with pytest.raises(ValueError, match="'47\\+85:' asks for no text; expected something like 'lamp: warm, small>'"):
        content.says_what_was_asked(candidate("132", text="47+85:"))


@pytest.mark.parametrize(("num_words", "score"), [(0, 0.0), (5, 0.5), (9, 0.9), (10, 1.0), (12, 0.8), (25, 0.0)])
def test_length_is_preferred_by_degrees(num_words, score):
    assert content.near_length(written("It " * num_words), words=10) == pytest.approx(score)


@pytest.mark.parametrize(
    ("completion", "score"), [("", 0.0), ("It fits.", 1.0), ("It fits it.", 2 / 3), ("It it, IT it", 0.25)]
)
def test_variety_is_the_share_of_different_words(completion, score):
    assert content.variety(written(completion)) == pytest.approx(score)


def test_the_score_is_made_of_the_preferences_alone(judge):
    long, short = (
        "This lamp is warm and small. It brightens calm evenings. Guests like it at once.",
        "Meet the warm, small lamp.",
    )
    scores = [judged(judge, written(completion)).score for completion in (long, short, long.removesuffix("."))]
    assert scores == pytest.approx([(1 + 14 / 15) / 2, (5 / 15 + 1) / 2, (1 + 14 / 15) / 2])


def test_the_task_is_the_same_for_a_seed_and_its_parts_share_no_prompt(task, tmp_path):
    content.write_task(tmp_path / "again", seed=5)
    content.write_task(tmp_path / "other", seed=6)
    names = [f"{name}.jsonl" for name in content.SIZES]
    assert [(tmp_path / "again" / n).read_bytes() for n in names] == [(task / n).read_bytes() for n in names]
    assert (tmp_path / "other" / "worked.jsonl").read_bytes() != (task / "worked.jsonl").read_bytes()
    parts = [{row["prompt"] for row in read_jsonl(task / n)} for n in names]
    assert [len(part) for part in parts] == list(content.SIZES.values())
    assert len(set.union(*parts)) == sum(content.SIZES.values())


def test_worked_texts_break_rules_as_often_as_the_task_says(judge, task):
    worked = [candidate(row["completion"], text=row["prompt"]) for row in read_jsonl(task / "worked.jsonl")]
    passed = [judgement.passed for judgement in judge.judge(worked)]
    expected = (1 - content.MISTAKE_RATE) ** len(MISTAKES)
    assert sum(map(bool, passed)) / len(passed) == pytest.approx(expected, abs=0.05)


def test_the_symbols_write_every_text_and_the_texts_fit_the_model(task):
    config = load_config(CONFIG)
    assert len(set(content.SYMBOLS)) == len(content.SYMBOLS)
    for name in content.SIZES:
        for row in read_jsonl(task / f"{name}.jsonl"):
            whole = row["prompt"] + row.get("completion", "")
            assert set(whole) <= set(content.SYMBOLS) - {content.END, content.PAD}
            assert len(row["prompt"]) + config.sampling.max_tokens <= content.CONTEXT
            assert len(row.get("completion", "")) < config.sampling.max_tokens


def test_its_variant_keeps_every_text_that_passes():
    (sets,) = content.VARIANTS.values()
    assert load_config(CONFIG).acceptance.rule.use == "boltzmann"
    assert load_config(CONFIG, sets).acceptance.rule.use == "all_passed"

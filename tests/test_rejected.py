"""Which candidates are unlearned, with which weight, and the token with which they went wrong."""

from collections import Counter
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
from judging import judged, verdict, write
from models import BOS, EOS, tokenizer

from rsft_cluster.config import Plugin, TrainingConfig
from rsft_cluster.errors import ConfigError, PluginError, StoreError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import decode
from rsft_cluster.schemas import candidate_id
from rsft_cluster.training.batches import Example, examples_digest
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.rejected import Rejected, fatal_examples, fatal_token, load_rejected
from rsft_cluster.training.sources import Source, read_material
from rsft_cluster.training.terms.configured import terms_of

BAD, GOOD, UNKNOWN = verdict(passed=False), verdict(), verdict(passed=None)


def test_rejected_is_what_was_judged_and_did_not_pass(tmp_path):
    rows = [
        judged("p", [10, EOS], BAD),
        judged("p", [11, EOS], GOOD, index=1),  # passed, and was not drawn
        judged("p", [12, EOS], UNKNOWN, index=2),
        judged("p", [13, EOS], BAD, index=3, accepted=True),  # by the rule `everything`
        judged("p", [14, EOS], GOOD, BAD, index=4, logprob=-0.25),
        judged("p", [15, EOS], GOOD, index=5, accepted=True),
        judged("p", [], BAD, index=6),  # nothing was said, so there is nothing to unlearn
    ]
    found = load_rejected([write(tmp_path, rows)], per_prompt=False)
    kept = sorted((r.example.completion_ids.tolist(), r.example.logprob, r.example.weight) for r in found)
    assert kept == [([10, EOS], -1.5, 1.0), ([14, EOS], -0.25, 1.0)]
    assert found[0].example.prompt_ids.tolist() == [BOS, ord("p")]


def test_prompts_count_by_the_share_of_their_judged_candidates_that_was_rejected(tmp_path):
    hard = [judged("hard", [10 + i, EOS], BAD, index=i) for i in range(3)]
    easy = [judged("easy", [10, EOS], BAD), *(judged("easy", [11, EOS], GOOD, index=i) for i in range(1, 4))]
    unsure = [judged("unsure", [10, EOS], BAD), judged("unsure", [11, EOS], UNKNOWN, index=1)]
    weights = Counter()
    for r in load_rejected([write(tmp_path, hard + easy + unsure)], per_prompt=True):
        weights[bytes(r.example.prompt_ids[1:].astype(np.uint8))] += r.example.weight
    assert weights == pytest.approx({b"hard": 1.0, b"easy": 0.25, b"unsure": 1.0})


def test_every_draw_counts_and_the_order_of_files_does_not(tmp_path):
    rows = [judged(f"p{i % 4}", [10, EOS], BAD, index=i, round=1 + i % 2) for i in range(12)]
    one = load_rejected([write(tmp_path, rows)], per_prompt=True)
    parts = [write(tmp_path, rows[i::3][::-1], str(i)) for i in range(3)]
    other = load_rejected(parts[::-1], per_prompt=True)
    assert len(one) == 12
    assert examples_digest([r.example for r in one]) == examples_digest([r.example for r in other])


def test_files_that_do_not_belong_together_are_refused(tmp_path):
    rows = [judged("p", [10, EOS], BAD, index=i) for i in range(3)]
    candidates, scores = write(tmp_path, rows)[0], write(tmp_path, rows[::-1], "turned")[1]
    with pytest.raises(StoreError, match=r"turned.scores.parquet: its rows are not those of .*u.candidates.parquet"):
        load_rejected([(candidates, scores)], per_prompt=True)
    with pytest.raises(StoreError, match=r"columns .*passed.* are missing; it is not a file of scores"):
        load_rejected([(candidates, candidates)], per_prompt=True)


def test_a_probability_that_is_not_finite_is_refused(tmp_path):
    files = write(tmp_path, [judged("p", [10, EOS], BAD, logprob=float("-inf"))])
    with pytest.raises(ConfigError, match=rf"candidate {candidate_id('p', 1, 0)} has the logprob -inf"):
        load_rejected([files], per_prompt=True)


def test_the_first_fatal_character_is_that_of_a_verdict_that_did_not_pass(tmp_path):
    said = [
        verdict(passed=False, fatal_at=7, constraint="late"), verdict(passed=False, fatal_at=4, constraint="early"),
        verdict(passed=True, fatal_at=1, constraint="content"), BAD,
    ]  # fmt: skip
    [found] = load_rejected([write(tmp_path, [judged("p", [10, EOS], *said)])], per_prompt=True)
    assert (found.fatal_at, found.constraint) == (4, "early")
    [found] = load_rejected([write(tmp_path, [judged("p", [10, EOS], BAD)])], per_prompt=True)
    assert found.fatal_at is None


BYTES = tokenizer()
"""A token a byte, so that a Chinese character is three of them."""
TEXT = "ab\u4e2d\u6587c"


def ids(text: str) -> list[int]:
    return BYTES(text, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize(("fatal_at", "place"), [(0, 0), (1, 1), (2, 4), (3, 7), (4, 8)])
def test_a_character_belongs_to_the_token_that_completes_it(fatal_at, place):
    assert fatal_token([*ids(TEXT), EOS], fatal_at, partial(decode, BYTES)) == place


def test_special_tokens_have_no_characters():
    tokens = [BOS, *ids("a"), BOS, BOS, *ids("b"), EOS]
    assert [fatal_token(tokens, at, partial(decode, BYTES)) for at in (0, 1)] == [1, 4]


def test_the_end_of_the_text_belongs_to_the_token_that_ended_it():
    said = partial(decode, BYTES)
    assert fatal_token([*ids(TEXT), EOS], 5, said) == 9
    assert fatal_token(ids(TEXT), 5, said) is None
    with pytest.raises(ValueError, match="the completion has 5 characters"):
        fatal_token([*ids(TEXT), EOS], 6, said)


def test_bytes_that_make_no_character_are_characters_too():
    halves = ids("\u4e2d")[:2]
    tokens = [*ids("a"), *halves, *ids("b")]
    said = partial(decode, BYTES)
    assert said(tokens) == "a\ufffdb"
    assert [fatal_token(tokens, at, said) for at in (0, 1, 2)] == [0, 1, 3]


def test_a_token_of_several_characters_holds_each_of_them():
    pieces = ["he", "llo", " wor", "ld"]
    said = [fatal_token([0, 1, 2, 3], at, lambda k: "".join(pieces[i] for i in k)) for at in range(11)]
    assert said == [0, 0, 1, 1, 1, 2, 2, 2, 2, 3, 3]


def rejected(token_ids: list[int], fatal_at: int | None) -> Rejected:
    example = Example(np.array([BOS, 40], np.int32), np.array(token_ids, np.int32), 0.5, -1.0)
    return Rejected("id", example, fatal_at, "polite")


def test_a_fatal_token_is_learned_to_be_unlikely_after_all_that_came_before():
    tokens = [*ids("abc"), EOS]
    found = fatal_examples([rejected(tokens, 1), rejected(tokens, None)], partial(decode, BYTES))
    assert [(e.prompt_ids.tolist(), e.completion_ids.tolist(), e.weight) for e in found] == [
        ([BOS, 40, tokens[0]], [tokens[1]], 0.5)
    ]


def test_a_fatal_character_that_is_not_there_is_the_fault_of_its_constraint():
    with pytest.raises(ConfigError, match=r"candidate id: constraint 'polite' says fatal_at = 9: .* 3 characters"):
        fatal_examples([rejected([*ids("abc"), EOS], 9)], partial(decode, BYTES))


@pytest.fixture
def job(tmp_path):
    tokenizer().save_pretrained(tmp_path / "policy")
    rows = [
        judged("p", [*ids("ab"), EOS], verdict(passed=False, fatal_at=1)),
        judged("p", [*ids("cd"), EOS], BAD, index=1),
        judged("p", [*ids("ef"), EOS], GOOD, index=2),
    ]
    (tmp_path / "replay.jsonl").write_text('{"prompt": "p", "completion": "ef"}\n')
    return TrainingJob(
        name="t", policy=PolicySpec(str(tmp_path / "policy")), examples=(), replay=str(tmp_path / "replay.jsonl"),
        config=TrainingConfig(), seed=0, output_uri="/m", storage_uri="/s", judged=(write(tmp_path, rows),),
    )  # fmt: skip


def names(source: Source) -> tuple[str, ...]:
    return tuple(term.name for term in source.terms)


def with_terms(job: TrainingJob, **terms: Any) -> TrainingJob:
    return replace(job, config=TrainingConfig(**terms))


@pytest.mark.parametrize(
    ("terms", "sizes"),
    [
        ({}, {("nll",): 1}),
        ({"rejection": {"batch_size": 1}}, {("nll",): 1, ("rejection",): 2}),
        ({"unlikelihood": {}, "kl_weight": 0.1}, {("nll", "kl"): 1, ("unlikelihood",): 1}),
        ({"rejection": {}, "unlikelihood": {}}, {("nll",): 1, ("rejection",): 2, ("unlikelihood",): 1}),
        ({"terms": ({"use": "loss_terms:Confidence"},)}, {("nll", "confidence"): 1}),
    ],
)
def test_each_term_that_is_on_brings_its_examples(job, terms, sizes):
    material = read_material(with_terms(job, **terms))
    assert {names(s): len(s.examples) for s in material.sources} == sizes
    assert (material.num_replayed, material.num_steps) == (1, 1)


def test_candidates_are_not_read_where_no_term_is_on(job, tmp_path):
    (tmp_path / "u.candidates.parquet").unlink()
    read_material(with_terms(job, kl_weight=0.1, neftune_alpha=5))
    with pytest.raises(StoreError, match="candidates cannot be read"):
        read_material(with_terms(job, rejection={}))


def test_nothing_rejected_leaves_the_terms_out(job, tmp_path):
    files = write(tmp_path, [judged("p", [10, EOS], GOOD)], "good")
    job = with_terms(replace(job, judged=(files,)), rejection={}, unlikelihood={})
    assert [names(s) for s in read_material(job).sources] == [("nll",)]


def test_where_nothing_was_judged_no_term_learns_from_it(job, tmp_path):
    """So a control arm, which is given no judged candidates, drops every such term, whoever wrote it."""
    terms = {"rejection": {}, "unlikelihood": {}, "terms": ({"use": "loss_terms:Passed"},)}
    assert names(read_material(with_terms(job, **terms)).sources[-1]) == ("passed",)
    arm = with_terms(replace(job, judged=()), **terms)
    assert [names(s) for s in read_material(arm).sources] == [("nll",)]


@pytest.mark.parametrize(
    ("use", "says"),
    [
        ("json:loads", "training.terms: json:loads: is no term"),
        ("loss_terms:Rejection", "loss_terms:Rejection: another term is called 'rejection' as well"),
        ("loss_term:Passed", "there is no module 'loss_term'"),
    ],
)
def test_what_is_no_term_is_refused(use, says):
    with pytest.raises(PluginError, match=says):
        terms_of(TrainingConfig(terms=(Plugin(use=use),)))


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_workers_take_equally_many_passes_and_share_each_batch(job, world_size):
    material = read_material(with_terms(job, rejection={}, unlikelihood={}))
    for source in material.sources:
        shape = {"world_size": world_size, "size": 1}
        shares = [list(source.micro_batches(0, rank=r, **shape)) for r in range(world_size)]
        assert len({len(s) for s in shares}) == 1
        rows = [row for share in shares for one in share for row in one.rows if row.weight]
        assert examples_digest(sorted(rows, key=_key)) == examples_digest(sorted(source.batch(0), key=_key))
        assert len({one.denominator for share in shares for one in share}) == 1


def _key(example: Example) -> bytes:
    return example.completion_ids.tobytes()

"""Examples from files, their weights, their order, and how they are padded."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import BOS, EOS, tiny_llama

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import ACCEPTED, candidate_id, rows_to_table
from rsft_cluster.training.batches import (
    DataOrder,
    Example,
    collate,
    examples_digest,
    load_examples,
    load_replay,
    num_steps,
)
from rsft_cluster.training.dealing import deal
from rsft_cluster.training.ending import Ending


def row(prompt: str, token_ids: list[int], *, round_number: int = 1, index: int = 0, weight: float = 1.0) -> dict:
    return {
        "candidate_id": candidate_id(prompt, round_number, index),
        "prompt_id": prompt,
        "round": round_number,
        "prompt_token_ids": [BOS, *prompt.encode()],
        "token_ids": token_ids,
        "messages": [{"role": "raw", "content": prompt}],
        "score": 1.0,
        "weight": weight,
    }


def write(path: Path, rows: list[dict]) -> str:
    pq.write_table(rows_to_table(rows, ACCEPTED), path)
    return str(path)


def example(num_prompt: int, num_completion: int, *, token: int = 5, weight: float = 1.0) -> Example:
    prompt = np.full(num_prompt, token, np.int32)
    return Example(prompt, np.append(np.full(num_completion - 1, token), EOS).astype(np.int32), weight)


def test_token_ids_are_taken_as_sampled(tmp_path):
    odd = [195, 40, 300, EOS]  # no tokenizer would give these ids for their own text
    [found] = load_examples([write(tmp_path / "a.parquet", [row("p", odd)])], per_prompt=True)
    assert found.completion_ids.tolist() == odd
    assert found.prompt_ids.tolist() == [BOS, ord("p")]


def test_prompts_count_equally_whatever_they_had_accepted(tmp_path):
    rows = [row("easy", [3, i, EOS], index=i) for i in range(4)] + [row("hard", [3, EOS])]
    uri = write(tmp_path / "a.parquet", rows)
    weights = Counter()
    for e in load_examples([uri], per_prompt=True):
        weights[bytes(e.prompt_ids.astype(np.uint8))[1:]] += e.weight
    assert weights == {b"easy": 1.0, b"hard": 1.0}
    assert [e.weight for e in load_examples([uri], per_prompt=False)] == [1.0] * 5


def test_the_weight_of_a_row_multiplies_its_share(tmp_path):
    rows = [row("p", [3, EOS], weight=0.5), row("p", [4, EOS], index=1, weight=3.0)]
    found = load_examples([write(tmp_path / "a.parquet", rows)], per_prompt=True)
    assert sorted(e.weight for e in found) == [0.25, 1.5]


def test_a_completion_found_in_two_rounds_counts_once(tmp_path):
    first = write(tmp_path / "1.parquet", [row("p", [3, EOS]), row("q", [3, EOS])])
    second = write(
        tmp_path / "2.parquet", [row("p", [3, EOS], round_number=2), row("p", [4, EOS], round_number=2, index=1)]
    )
    found = load_examples([first, second], per_prompt=True)
    assert [(e.prompt_ids.tolist()[1], e.completion_ids.tolist(), e.weight) for e in found] == [
        *sorted([(ord("p"), [3, EOS], 0.5), (ord("q"), [3, EOS], 1.0)], key=lambda t: candidate_id(chr(t[0]), 1, 0)),
        (ord("p"), [4, EOS], 0.5),
    ]


def test_repeats_that_one_round_accepted_count_as_often_as_they_were_accepted(tmp_path):
    uri = write(tmp_path / "a.parquet", [row("p", [3, EOS]), row("p", [3, EOS], index=1), row("p", [4, EOS], index=2)])
    found = load_examples([uri], per_prompt=False)
    assert sorted(e.completion_ids.tolist() for e in found) == [[3, EOS], [3, EOS], [4, EOS]]
    assert [e.weight for e in load_examples([uri], per_prompt=True)] == [pytest.approx(1 / 3)] * 3


def test_the_order_of_files_and_rows_does_not_matter(tmp_path):
    rows = [row(f"p{i % 5}", [3 + i, EOS], index=i) for i in range(20)]
    one = write(tmp_path / "one.parquet", rows)
    parts = [write(tmp_path / f"{i}.parquet", rows[i::3][::-1]) for i in range(3)]
    expected = examples_digest(load_examples([one], per_prompt=True))
    assert examples_digest(load_examples(parts[::-1], per_prompt=True)) == expected


def test_the_digest_tells_other_weights_and_tokens_apart():
    base = examples_digest([example(2, 3)])
    assert base != examples_digest([example(2, 3, weight=0.5)])
    assert base != examples_digest([example(3, 2)])
    assert base == examples_digest([example(2, 3)])


def test_an_empty_completion_is_refused_with_its_candidate(tmp_path):
    uri = write(tmp_path / "a.parquet", [row("p", [])])
    with pytest.raises(ConfigError, match=rf"a.parquet: candidate {candidate_id('p', 1, 0)} has an empty"):
        load_examples([uri], per_prompt=True)


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(tmp_path, weight):
    uri = write(tmp_path / "a.parquet", [row("p", [EOS], weight=weight)])
    with pytest.raises(ConfigError, match="has the weight"):
        load_examples([uri], per_prompt=True)


def test_a_file_that_is_not_there_or_not_accepted_rows_is_a_storage_error(tmp_path):
    with pytest.raises(StoreError, match=r"none.parquet: accepted examples cannot be read"):
        load_examples([str(tmp_path / "none.parquet")], per_prompt=True)
    pq.write_table(rows_to_table([row("p", [EOS])], ACCEPTED).drop_columns(["weight"]), tmp_path / "b.parquet")
    with pytest.raises(StoreError, match=r"b.parquet: columns \['weight'\] are missing"):
        load_examples([str(tmp_path / "b.parquet")], per_prompt=True)


def test_replay_is_encoded_like_prompts_and_ends_with_eos(tmp_path):
    model = tiny_llama(tmp_path / "m", alphabet="abcdefghijklmnopqrstuvwxyz: \n")
    rows = [
        {"prompt": "ab", "completion": "ba"},
        {"messages": [{"role": "user", "content": "ab"}], "completion": "a"},
    ]
    path = tmp_path / "replay.jsonl"
    path.write_text("".join(json.dumps(r) + "\n\n" for r in rows))
    raw, chat = load_replay(str(path), PolicySpec(model), weight=2.0)
    a, b = raw.prompt_ids.tolist()[1:]
    assert raw.prompt_ids.tolist()[0] == BOS
    assert raw.completion_ids.tolist() == [b, a, EOS]
    assert chat.completion_ids.tolist() == [a, EOS]
    assert len(chat.prompt_ids) == len("user: ab\nassistant: ") + 1
    assert (raw.weight, chat.weight) == (2.0, 2.0)


def test_a_line_separator_inside_a_text_does_not_end_the_line(tmp_path):
    path = tmp_path / "replay.jsonl"
    path.write_text(json.dumps({"prompt": "a", "completion": "b\u2028c"}, ensure_ascii=False), encoding="utf-8")
    [found] = load_replay(str(path), PolicySpec(tiny_llama(tmp_path / "m")), weight=1.0)
    assert len(found.completion_ids) == len("b\u2028c".encode()) + 1


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", r":2: not valid JSON"),
        ('{"prompt": "a"}', r":2: `completion` is None"),
        ('{"prompt": "a", "completion": ""}', r":2: `completion` is ''"),
        ('{"completion": "a"}', r":2: has neither `prompt` nor `messages`"),
        ('{"messages": [{"role": "user"}], "completion": "a"}', r":2: `messages` is"),
        ("[1]", r":2: `completion` is None"),
    ],
)
def test_a_bad_line_of_replay_is_named(tmp_path, line, said):
    model = tiny_llama(tmp_path / "m")
    path = tmp_path / "replay.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n")
    with pytest.raises(ConfigError, match=said):
        load_replay(str(path), PolicySpec(model), weight=1.0)


def test_replay_may_be_parquet(tmp_path):
    model = tiny_llama(tmp_path / "m")
    pq.write_table(pa.table({"prompt": ["ab"], "completion": ["ba"]}), tmp_path / "r.parquet")
    [found] = load_replay(str(tmp_path / "r.parquet"), PolicySpec(model), weight=1.0)
    assert found.completion_ids[-1] == EOS
    assert len(found) == 1 + 2 + 2 + 1


@given(st.integers(1, 40), st.integers(1, 17), st.integers(0, 3))
@settings(max_examples=60)
def test_every_epoch_sees_every_example_once_and_every_batch_is_full(num_examples, batch_size, seed):
    batch_size = min(batch_size, num_examples)
    order = DataOrder(num_examples, batch_size, seed)
    seen = [i for step in range(3 * num_examples) for i in order.batch_indices(step)]
    for epoch in range(3):
        part = seen[epoch * num_examples : (epoch + 1) * num_examples]
        assert sorted(part) == list(range(num_examples))
    assert len(order.batch_indices(7)) == batch_size


def test_the_order_depends_on_the_seed_and_the_epoch():
    orders = [DataOrder(50, 50, seed).batch_indices(step) for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(o) for o in orders}) == 4


def test_steps_come_from_the_config_or_from_epochs():
    assert num_steps(TrainingConfig(steps=7), 100) == 7
    assert num_steps(TrainingConfig(batch_size=32), 100) == 4
    assert num_steps(TrainingConfig(epochs=2.5, batch_size=10), 100) == 25
    assert num_steps(TrainingConfig(epochs=3, batch_size=32), 5) == 3


@given(st.lists(st.integers(1, 30), min_size=1, max_size=25), st.integers(1, 6), st.integers(1, 5))
@settings(max_examples=100)
def test_shares_cover_the_batch_once_and_have_equally_many_parts(lengths, world_size, size):
    shares = [deal(lengths, rank=r, world_size=world_size, size=size) for r in range(world_size)]
    assert len({len(s) for s in shares}) == 1
    assert sorted(i for s in shares for part in s for i in part) == list(range(len(lengths)))
    assert all(len(part) <= size for s in shares for part in s)


@pytest.mark.parametrize(
    ("batch_size", "world_size", "worst"), [(64, 1, 1.15), (64, 4, 1.2), (64, 8, 1.3), (32, 8, 1.5)]
)
def test_no_worker_has_much_more_to_do_than_its_share(batch_size, world_size, worst):
    rng = np.random.default_rng(0)
    slowest, largest = [], []
    for _ in range(20):
        lengths = [150 + int(n) for n in np.minimum(4096, rng.lognormal(np.log(700), 0.9, batch_size))]
        shares = [deal(lengths, rank=r, world_size=world_size, size=8) for r in range(world_size)]
        passes = [[len(p) * max(lengths[i] for i in p) for p in share if p] for share in shares]
        slowest.append(max(map(sum, passes)) * world_size / sum(lengths))
        largest.append(max(cost for share in passes for cost in share) / max(lengths))
    assert np.mean(slowest) < worst
    assert np.mean(largest) < 3


def test_rows_that_fit_into_one_pass_stay_in_one():
    assert deal([5, 9, 7], rank=0, world_size=1, size=8) == [[1, 2, 0]]


ENDING = Ending(EOS, frozenset({EOS, 7}), num_context_tokens=6)


@pytest.mark.parametrize(
    ("finish", "token_ids", "learned"),
    [
        ("stop", [5, 6], [5, 6, EOS]),
        ("stop", [5, EOS], [5, EOS]),
        ("stop", [5, 7], [5, 7]),
        ("length", [5, 6], [5, 6]),
        (None, [5, 6], [5, 6]),
        ("stop", [5, 6, 5, 6], [5, 6, 5, 6]),  # no room is left in the context
    ],
)
def test_a_completion_that_a_stop_string_ended_is_learned_with_an_end_token(tmp_path, finish, token_ids, learned):
    path = write(tmp_path / "a.parquet", [row("p", token_ids) | {"finish_reason": finish}])
    [found] = load_examples([path], per_prompt=True, ending=lambda: ENDING)
    assert found.completion_ids.tolist() == learned
    [found] = load_examples([path], per_prompt=True)
    assert found.completion_ids.tolist() == token_ids


def test_the_ending_of_a_policy_is_of_its_tokenizer_and_its_generation_settings(tmp_path):
    policy = PolicySpec(tiny_llama(tmp_path, generation_config={"eos_token_id": [EOS, 7]}))
    found = Ending.of(policy)
    assert (found.token_id, found.ends) == (EOS, {EOS, 7})


def test_labels_are_masked_by_length_and_never_by_value():
    prompt, completion = np.array([0, 2, 0], np.int32), np.array([0, 2], np.int32)  # pad and eos ids inside
    batch = collate([Example(prompt, completion, 1.0), example(1, 6)])
    assert batch.labels[0].tolist() == [-100, -100, -100, 0, 2, -100, -100]
    assert batch.attention_mask[0].tolist() == [1, 1, 1, 1, 1, 0, 0]
    assert batch.labels[1].tolist() == [-100, 5, 5, 5, 5, 5, EOS]


def test_logits_are_asked_for_from_the_first_completion_token_on():
    batch = collate([example(5, 2), example(3, 3)])
    assert batch.num_logits == 7 - 3 + 1

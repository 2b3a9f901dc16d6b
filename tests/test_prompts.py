import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import prompt, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reading import config, read, refusal, texts

from rsft_cluster.config import Plugin, PromptsConfig
from rsft_cluster.errors import ConfigError, PluginError
from rsft_cluster.prompts import BadLine, files, read_prompts
from rsft_cluster.prompts.digests import DigestSet
from rsft_cluster.prompts.held_out import HeldOut
from rsft_cluster.prompts.source import BATCH_ROWS
from rsft_cluster.prompts.source_ids import SourceIds
from rsft_cluster.schemas import MESSAGES as MESSAGES_TYPE
from rsft_cluster.schemas import PROMPT, Message, digest, message_digests, prompt_id, rows_to_table, to_messages

ROOT = Path(__file__).resolve().parent.parent

# Rows become prompts


def test_text_becomes_one_raw_message_with_its_place(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}, "", {"prompt": "b"}])
    rows, bad, _ = read(path)
    assert [row["messages"] for row in rows] == [[{"role": "raw", "content": t}] for t in "ab"]
    assert [row["source"] for row in rows] == [{"file": str(path), "line": 1}, {"file": str(path), "line": 3}]
    assert not bad


def test_every_batch_has_the_prompt_schema(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "a"}])
    batches = list(read_prompts(config(path), on_bad=pytest.fail))
    assert all(batch.schema.equals(PROMPT, check_metadata=True) for batch in batches)


def test_as_chat_makes_a_user_message_after_the_system_message(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "hi"}])
    rows, _, _ = read(path, as_chat=True, system="Be brief.")
    assert rows[0]["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
    ]


def test_the_system_message_is_put_only_where_there_is_none_and_never_before_raw_text(tmp_path):
    own = [{"role": "system", "content": "own"}, {"role": "user", "content": "x"}]
    without = [{"role": "user", "content": "y"}]
    lines = [{"messages": own}, {"messages": without}, {"prompt": "raw"}]
    rows, _, _ = read(write_jsonl(tmp_path / "p.jsonl", lines), system="given")
    assert [row["messages"][0]["content"] for row in rows] == ["own", "given", "raw"]


def test_messages_win_over_the_prompt_unless_they_are_null(tmp_path):
    chat = [{"role": "user", "content": "chat", "name": None}]
    lines = [{"messages": chat, "prompt": "text"}, {"messages": None, "prompt": "text"}]
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", lines))
    assert texts(rows) == ["chat", "text"]
    assert not bad


def test_dots_reach_into_nested_fields_and_a_name_with_a_dot_comes_first(tmp_path):
    lines = [{"q": {"text": "in"}, "a": {"b": None}}, {"q.text": "flat", "q": {"text": "in"}, "a": None}]
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", lines), columns={"prompt": "q.text", "reference": "a.b"})
    assert texts(rows) == ["in", "flat"]
    assert [row["reference"] for row in rows] == [None, None]
    assert not bad


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ('" 7 "', " 7 "), ("72", "72"), ("72.0", "72"), ("7.2e1", "72"), ("0.10", "0.1"), ("-0.5", "-0.5"),
        ("1e300", "1e+300"), ("12345678901234567890", "12345678901234567890"), ("null", None),
    ],
)  # fmt: skip
def test_references_are_text_and_equal_numbers_give_equal_text(tmp_path, value, text):
    path = write_jsonl(tmp_path / "p.jsonl", [f'{{"prompt": "x", "answer": {value}}}'])
    rows, _, _ = read(path, columns={"reference": "answer"})
    assert [row["reference"] for row in rows] == [text]


def test_attributes_are_scalars_as_text_and_null_ones_are_left_out(tmp_path):
    line = {"prompt": "x", "level": 3, "easy": True, "from": {"book": "一"}, "share": 0.25, "none": None}
    names = ("level", "easy", "from.book", "share", "none")
    rows, _, _ = read(write_jsonl(tmp_path / "p.jsonl", [line]), columns={"attributes": names})
    assert dict(rows[0]["attributes"]) == {
        "level": "3",
        "easy": "true",
        "from.book": "一",
        "share": "0.25",
    }


def test_to_messages_turns_a_cell_into_messages(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": "你好"}])
    rows, _, _ = read(path)
    assert to_messages(rows[0]["messages"]) == (Message("raw", "你好"),)


def test_text_is_kept_byte_for_byte(tmp_path):
    strange = [
        "  spaced \n",
        "nul\0inside",
        "\x01\x1b[31m\x7f",
        "😀👩‍👩‍👧",
        "e\u0301 é ﬁ",
        "\ufeffbom",
        "\u2028\u2029\r",
        "证明：√2 是无理数。",
    ]
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": text} for text in strange])
    rows, bad, _ = read(path)
    assert texts(rows) == strange
    assert not bad


# Scalar values of any plane, surrogates left out: they are not text.
anything = st.text(st.characters(exclude_categories=("Cs",)), min_size=1)


@given(st.lists(st.tuples(anything, anything, st.booleans()), min_size=1, max_size=8))
@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_survives_jsonl_and_parquet(tmp_path, pairs):
    lines = [json.dumps({"prompt": p, "answer": a}, ensure_ascii=escaped) for p, a, escaped in pairs]
    path = write_jsonl(tmp_path / "any.jsonl", lines)
    batches = list(read_prompts(config(path, columns={"reference": "answer"}), on_bad=pytest.fail))
    pq.write_table(pa.Table.from_batches(batches), tmp_path / "any.parquet")
    rows = pq.read_table(tmp_path / "any.parquet").to_pylist()
    expected = list(dict.fromkeys((p, a) for p, a, _ in pairs))
    assert [(row["messages"][0]["content"], row["reference"]) for row in rows] == expected


# Ids, duplicates, limits


def test_ids_are_digests_of_content_alone(tmp_path):
    lines = [{"prompt": f"p{i}", "answer": i} for i in range(50)]
    columns = {"reference": "answer"}
    rows, _, _ = read(write_jsonl(tmp_path / "a.jsonl", lines), columns=columns)
    reordered, _, _ = read(write_jsonl(tmp_path / "b.jsonl", lines[::-1]), columns=columns)
    assert {r["prompt_id"] for r in rows} == {r["prompt_id"] for r in reordered}
    assert rows[3]["prompt_id"] == prompt_id([{"role": "raw", "content": "p3"}], "3", {})
    assert rows[3]["prompt_id"] == reordered[-4]["prompt_id"]


def test_duplicates_are_counted_and_the_first_is_kept(tmp_path):
    lines = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a"}]
    write_jsonl(tmp_path / "1.jsonl", lines)
    write_jsonl(tmp_path / "2.jsonl", lines)
    rows, _, intake = read(tmp_path)
    assert [(t, r["source"]["line"]) for t, r in zip(texts(rows), rows, strict=True)] == [("a", 1), ("b", 2)]
    assert (intake.num_lines, intake.num_prompts, intake.num_duplicates) == (8, 2, 6)


def test_duplicates_are_found_across_many_batches(tmp_path):
    lines = [{"prompt": f"p{i % 9000}"} for i in range(3 * BATCH_ROWS + 17)]
    rows, _, intake = read(write_jsonl(tmp_path / "p.jsonl", lines))
    assert texts(rows) == [f"p{i}" for i in range(9000)]
    assert intake.num_duplicates == len(lines) - 9000


@given(st.lists(st.lists(st.integers(0, 60)), max_size=12), st.sampled_from([1, 2**60, 2**64, 2**120]))
def test_the_digest_set_answers_like_a_set(batches, factor):
    """With small factors all first halves are equal, or many are."""
    digests, known = DigestSet(), set()
    for batch in batches:
        given_digests = np.array([(i * factor).to_bytes(16, "big") for i in batch], dtype="S16")
        expected = [i not in known and i not in batch[:at] for at, i in enumerate(batch)]
        known |= set(batch)
        assert digests.add(given_digests).tolist() == expected
    assert len(digests) == len(known)


def test_one_source_id_with_two_contents_is_an_error_naming_both_places(tmp_path):
    one = write_jsonl(tmp_path / "1.jsonl", [{"prompt": "a", "id": 7}, {"prompt": "a", "id": "7"}])
    two = write_jsonl(tmp_path / "2.jsonl", [{"prompt": "c", "id": 8}, {"prompt": "b", "id": 7}])
    assert refusal(tmp_path, columns={"id": "id"}) == (
        f"{two}:2: the id '7' also stands at {one}:1, with other content; "
        "give each prompt an id of its own, or leave columns.id unset"
    )


@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 1))), max_size=12))
def test_the_map_of_source_ids_answers_like_a_dictionary(batches):
    ids, known = SourceIds(), {}
    for batch in batches:
        expected = [known.setdefault(one, content) != content for one, content in batch]
        columns = [np.array(column, dtype=np.uint64) for column in (zip(*batch, strict=True) if batch else ((), ()))]
        assert ids.clashes(*columns).tolist() == expected


MESSAGES = st.lists(st.fixed_dictionaries({"role": st.sampled_from(["raw", "user"]), "content": st.text()}), max_size=3)
ATTRIBUTES = st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2)


@given(MESSAGES, st.none() | st.text(), ATTRIBUTES)
def test_the_id_of_a_prompt_is_the_digest_of_its_content(messages, reference, attributes):
    assert prompt_id(messages, reference, attributes) == digest("prompt", messages, reference, attributes)


@given(st.lists(MESSAGES, min_size=1), st.integers(0, 3))
def test_messages_are_digested_by_column_as_one_by_one(prompts, start):
    column = pa.array(prompts, MESSAGES_TYPE).slice(min(start, len(prompts)))
    assert message_digests(column) == [digest(messages) for messages in column.to_pylist()]


@given(st.lists(MESSAGES, min_size=1), st.data())
def test_a_held_out_prompt_is_found_wherever_it_stands(prompts, data):
    column = pa.array(prompts, MESSAGES_TYPE).slice(data.draw(st.integers(0, len(prompts))))
    held = pa.array(data.draw(st.lists(st.sampled_from(prompts) | MESSAGES)), MESSAGES_TYPE)
    found = HeldOut([pa.record_batch({"messages": held})]).first_of(column)
    assert found == next((i for i, one in enumerate(column.to_pylist()) if one in held.to_pylist()), None)


def read_and_planned(folder, num_prompts):
    command = [sys.executable, "-m", "jobs.benchmarks.planning", "--prompts", str(num_prompts), "--folder", str(folder)]
    subprocess.run([*command, "--out", str(folder / "out.json")], check=True, cwd=ROOT, capture_output=True)
    return {figures["kind"]: figures for figures in json.loads((folder / "out.json").read_text())}


def test_the_memory_of_reading_and_planning_hardly_grows_with_the_prompts(tmp_path):
    """24 bytes a prompt stay, which are 4 MiB here; a dictionary a prompt would take hundreds."""
    few, many = read_and_planned(tmp_path, 20_000), read_and_planned(tmp_path, 200_000)
    for kind in ("parquet", "jsonl"):
        assert many[kind]["num_prompts"] == 200_000
        assert many[kind]["num_units"] == 3125
        assert many[kind]["peak_mib"] < few[kind]["peak_mib"] + 40


def test_one_source_id_with_two_contents_is_found_far_apart(tmp_path):
    lines = [{"prompt": f"p{i}", "id": i} for i in range(2 * BATCH_ROWS)] + [{"prompt": "new", "id": 5}]
    path = write_jsonl(tmp_path / "p.jsonl", lines)
    assert refusal(tmp_path, columns={"id": "id"}).startswith(
        f"{path}:{len(lines)}: the id '5' also stands at {path}:6, with other content"
    )


def test_one_source_id_with_one_content_is_a_duplicate(tmp_path):
    lines = [{"prompt": "a", "id": "x"}, {"prompt": "a", "id": "x"}, {"prompt": "a", "id": "y"}]
    rows, _, intake = read(write_jsonl(tmp_path / "p.jsonl", lines), columns={"id": "id"})
    assert (texts(rows), intake.num_duplicates) == (["a"], 2)


def test_a_limit_counts_distinct_prompts(tmp_path):
    lines = [{"prompt": f"p{i // 2}"} for i in range(3 * BATCH_ROWS)]
    path = write_jsonl(tmp_path / "p.jsonl", lines)
    rows, _, intake = read(path, limit=BATCH_ROWS)
    assert texts(rows) == [f"p{i}" for i in range(BATCH_ROWS)]
    assert intake.num_lines == 2 * BATCH_ROWS


def test_a_limit_may_end_within_a_later_batch(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(3 * BATCH_ROWS)])
    rows, _, intake = read(path, limit=BATCH_ROWS + 5)
    assert texts(rows) == [f"p{i}" for i in range(BATCH_ROWS + 5)]
    assert intake.num_prompts == BATCH_ROWS + 5


# When to give up


def test_too_many_bad_lines_end_the_intake_with_examples(tmp_path):
    lines = [{"prompt": f"p{i}"} for i in range(46)] + ["[1]", "{}", "x", '{"prompt": ""}']
    path = write_jsonl(tmp_path / "p.jsonl", lines)
    intake = read_prompts(config(path, max_bad_rate=0.01), on_bad=lambda _: None, quarantine="q.jsonl")
    with pytest.raises(ConfigError) as caught:
        list(intake)
    assert str(caught.value) == (
        f"4 of 50 lines read (8 %) of {path} are unusable; max_bad_rate allows 1 %\n"
        f"  {path}:47: expected a JSON object, found a list\n"
        f"  {path}:48: neither 'messages' nor 'prompt' is there; the line has no keys\n"
        f"  {path}:49: not JSON: Expecting value (column 1)\n"
        "  all of them, with content: q.jsonl"
    )


def test_a_few_bad_lines_in_front_are_held_against_the_whole(tmp_path):
    lines = ["[1]"] * 60 + [{"prompt": f"p{i}"} for i in range(2 * BATCH_ROWS)]
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", lines), max_bad_rate=0.01)
    assert (len(rows), len(bad)) == (2 * BATCH_ROWS, 60)


@pytest.mark.parametrize(("num_bad", "fails"), [(1, False), (2, True)])
def test_the_allowed_share_itself_is_allowed(tmp_path, num_bad, fails):
    lines: list[str | dict] = ["[1]"] * num_bad
    path = write_jsonl(tmp_path / "p.jsonl", [*lines, *({"prompt": f"p{i}"} for i in range(100 - num_bad))])
    if fails:
        assert refusal(path, max_bad_rate=0.01).startswith("2 of 100 lines read (2 %)")
    else:
        assert len(read(path, max_bad_rate=0.01)[0]) == 99


def test_a_clearly_wrong_file_is_given_up_early(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", ["[1]"] * (5 * BATCH_ROWS))
    assert refusal(path, max_bad_rate=0.5).startswith(f"{BATCH_ROWS} of {BATCH_ROWS} lines read (100 %)")


def test_bad_lines_in_front_do_not_count_against_good_ones_of_the_same_batch(tmp_path):
    lines = ["[1]"] * 150 + [{"prompt": f"p{i}"} for i in range(2 * BATCH_ROWS)]
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", lines), max_bad_rate=0.05)
    assert (len(rows), len(bad)) == (2 * BATCH_ROWS, 150)


def test_no_prompt_at_all_is_an_error(tmp_path):
    empty = write_jsonl(tmp_path / "empty.jsonl", [])
    assert refusal(empty) == f"no prompt found in {empty}: 0 lines read, 0 unusable"
    bad = write_jsonl(tmp_path / "bad.jsonl", ["[1]"])
    assert refusal(bad) == (
        f"no prompt found in {bad}: 1 lines read, 1 unusable\n  {bad}:1: expected a JSON object, found a list"
    )


# Sources of others


def numbered(prompts: PromptsConfig, on_bad, *, num: int, wrong: str = ""):
    """A prompt source as a third party writes it."""
    on_bad(BadLine.of_bytes(b"raw", file="numbers", line=num + 1, byte_offset=None, reason="odd"))
    rows = [prompt(f"number {i}") for i in range(num)]
    if wrong == "id":
        rows[0]["prompt_id"] = "0" * 32
    [batch] = rows_to_table(rows, PROMPT).to_batches()
    yield {"column": batch.drop_columns(["reference"]), "table": pa.Table.from_batches([batch])}.get(wrong, batch)


@pytest.fixture
def importable(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))


def source(**params: object) -> Plugin:
    return Plugin(use="test_prompts:numbered", params=params)


def test_a_source_of_ones_own_is_read_and_counted(importable):
    rows, bad, intake = read(source=source(num=5))
    assert texts(rows) == [f"number {i}" for i in range(5)]
    assert [b.reason for b in bad] == ["odd"]
    assert (intake.num_lines, intake.num_bad, intake.num_prompts) == (6, 1, 5)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("column", "prompt source test_prompts:numbered: prompt: missing columns ['reference']"),
        ("table", "prompt source test_prompts:numbered: yields a Table; expected a pyarrow.RecordBatch"),
        (
            "id",
            f"prompt source test_prompts:numbered: prompt_id '{'0' * 32}' is not the digest of its prompt",
        ),
    ],
)
def test_a_source_that_breaks_the_contract_is_named(importable, wrong, said):
    with pytest.raises(PluginError) as caught:
        read(source=source(num=5, wrong=wrong))
    assert str(caught.value).startswith(said)


def test_the_built_in_source_takes_no_parameters(tmp_path):
    said = refusal(tmp_path, source=Plugin(use="files", params={"path": "x"}))
    assert "unexpected keyword argument 'path'" in said
    assert "(prompts: " in said


def test_an_error_of_the_quarantine_is_not_taken_for_one_of_the_file(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", ["[1]"])

    def full(_: BadLine) -> None:
        raise OSError("disk full")

    with pytest.raises(OSError, match=r"^disk full$"):
        list(files(config(path), full))


# Real data


def test_gsm8k_is_read_whole(shared_data):
    columns = {"prompt": "question", "reference": "answer"}
    rows, bad, intake = read(shared_data / "gsm8k" / "train.jsonl", columns=columns, max_bad_rate=0)
    with (shared_data / "gsm8k" / "train.jsonl").open(encoding="utf-8") as stream:
        expected = [json.loads(line) for line in stream]
    assert (len(rows), intake.num_duplicates, bad) == (7473, 0, [])
    assert texts(rows) == [line["question"] for line in expected]
    assert [row["reference"] for row in rows] == [line["answer"] for line in expected]

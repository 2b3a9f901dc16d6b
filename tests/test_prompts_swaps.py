"""Prompts under every combination of protected values, and those that cannot be put under them."""

import json
from base64 import b64decode

import pyarrow as pa
import pytest
from factories import write_jsonl
from reading import config, texts

from rsft_cluster.config import FairnessConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts import BadLine, read_prompts
from rsft_cluster.schemas import PROMPT, prompt_id

TEMPLATE = "{gender}, {age}, earns {n}:"


def fair(**more) -> FairnessConfig:
    protected = {"gender": ["woman", "man"], "age": ["young", "old"]}
    fields = {"protected": protected, "decision": "(yes|no)", "positive": "yes"}
    return FairnessConfig.model_validate({**fields, **more})


def read(path, fairness, **more):
    bad: list[BadLine] = []
    intake = read_prompts(config(path, **more), on_bad=bad.append, fairness=fairness)
    rows = [row for batch in intake for row in batch.to_pylist()]
    return rows, bad, intake


def test_each_prompt_is_asked_under_every_combination(tmp_path):
    rows, bad, intake = read(write_jsonl(tmp_path / "a.jsonl", [{"prompt": TEMPLATE}]), fair())
    assert texts(rows) == [
        "woman, young, earns {n}:", "woman, old, earns {n}:", "man, young, earns {n}:", "man, old, earns {n}:",
    ]  # fmt: skip
    assert not bad
    template = prompt_id([{"role": "raw", "content": TEMPLATE}], None, {})
    assert dict(rows[1]["attributes"]) == {"gender": "woman", "age": "old", "swap_group": template}
    assert (intake.num_lines, intake.num_prompts, intake.num_bad, intake.num_duplicates) == (1, 4, 0, 0)


def test_reference_attributes_and_place_are_kept_and_ids_are_those_of_the_content(tmp_path):
    lines = [{"prompt": TEMPLATE, "right": "yes", "merit": "yes"}]
    columns = {"reference": "right", "attributes": ("merit",)}
    rows, _, _ = read(write_jsonl(tmp_path / "a.jsonl", lines), fair(), columns=columns)
    assert {row["reference"] for row in rows} == {"yes"}
    assert all(dict(row["attributes"])["merit"] == "yes" and row["source"]["line"] == 1 for row in rows)
    assert [r["prompt_id"] for r in rows] == [
        prompt_id(r["messages"], r["reference"], dict(r["attributes"])) for r in rows
    ]
    assert len({r["prompt_id"] for r in rows}) == 4


def test_placeholders_may_stand_in_any_message_and_values_are_not_expanded_again(tmp_path):
    messages = [{"role": "system", "content": "It is {gender}."}, {"role": "user", "content": "{age} {gender}?"}]
    fairness = fair(protected={"gender": ["{age}", "man"], "age": ["young", "old"]})
    rows, _, _ = read(write_jsonl(tmp_path / "a.jsonl", [{"messages": messages}]), fairness)
    assert [m["content"] for m in rows[0]["messages"]] == ["It is {age}.", "young {age}?"]


def test_a_prompt_without_every_placeholder_is_a_bad_line_that_names_it(tmp_path):
    lines = [{"prompt": TEMPLATE}, {"prompt": "{gender} alone"}, "not JSON"]
    rows, bad, intake = read(write_jsonl(tmp_path / "a.jsonl", lines), fair())
    assert len(rows) == 4
    assert (intake.num_lines, intake.num_bad) == (3, 2)
    found = next(b for b in bad if b.line == 2)
    assert found.reason == "it holds no {age}, where fairness.swaps puts the values of fairness.protected.age"
    assert json.loads(b64decode(found.content)) == [{"role": "raw", "content": "{gender} alone"}]


def test_prompts_without_placeholders_end_the_intake_by_the_rate_of_bad_lines(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"sum {i}"} for i in range(5)])
    with pytest.raises(ConfigError, match=r"5 of 5 lines read .*\n.*a.jsonl:1: it holds no \{gender\}"):
        read(path, fair(), max_bad_rate=0.01)


@pytest.mark.parametrize("name", ["gender", "swap_group"])
def test_an_attribute_that_a_swap_sets_may_not_be_given(tmp_path, name):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": TEMPLATE, name: "man"}, {"prompt": TEMPLATE, name: None}])
    rows, bad, _ = read(path, fair(), columns={"attributes": (name,)})
    assert [b.reason for b in bad] == [
        f"it has an attribute {name!r}, which fairness.swaps sets; leave it out of the columns"
    ]
    assert len(rows) == 4


def test_without_swaps_prompts_stay_and_must_have_a_listed_value(tmp_path):
    fairness = fair(protected={"sex": ["f", "m"]}, swaps="none")
    lines = [{"prompt": f"p{i}", "sex": sex} for i, sex in enumerate(["f", "m", "x", None])]
    rows, bad, intake = read(write_jsonl(tmp_path / "a.jsonl", lines), fairness, columns={"attributes": ("sex",)})
    assert texts(rows) == ["p0", "p1"]
    assert [b.reason for b in bad] == [
        f"its attribute 'sex' is {sex!r}, none of ['f', 'm'] of fairness.protected" for sex in ("x", None)
    ]
    assert (intake.num_lines, intake.num_prompts, intake.num_bad) == (4, 2, 2)


def test_equalised_odds_need_the_merit_of_every_prompt(tmp_path):
    fairness = fair(cells="equalised_odds", merit="merit")
    lines = [{"prompt": TEMPLATE, "merit": "yes"}, {"prompt": TEMPLATE, "merit": None}]
    rows, bad, _ = read(write_jsonl(tmp_path / "a.jsonl", lines), fairness, columns={"attributes": ("merit",)})
    assert len(rows) == 4
    assert [b.reason for b in bad] == ["it has no attribute 'merit', which fairness.merit needs for equalised odds"]


def test_a_limit_counts_prompts_of_the_source_and_cuts_no_swap_group(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": f"{i} {TEMPLATE}"} for i in (1, 1, 2, 3, 4)])
    rows, _, intake = read(path, fair(), limit=3)
    assert len(rows) == intake.num_prompts == 12
    assert intake.num_duplicates == 1


def test_batches_of_swaps_have_the_prompt_schema(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"prompt": TEMPLATE}])
    (batch,) = read_prompts(config(path), on_bad=pytest.fail, fairness=fair())
    assert isinstance(batch, pa.RecordBatch)
    assert batch.schema.equals(PROMPT, check_metadata=True)

"""Configs from file to model: strict YAML, overrides, paths, defaults, and what is said of every mistake.

Adversarially checked: a mistake names file, line and key, what was found and what would be right; nothing a file can
hold ends in anything but a config or a ConfigError.
"""

import json
import random
import time
from pathlib import Path

import jsonschema
import pytest
import yaml
from projects import settings
from pydantic import ValidationError

from rsft_cluster.config import FairnessConfig, RunConfig, WorkerRange, json_schema
from rsft_cluster.config.file import MAX_CONFIG_BYTES, load_config, parse_config
from rsft_cluster.config.strict_yaml import read
from rsft_cluster.errors import ConfigError


@pytest.fixture
def write(tmp_path):
    def written(content):
        path = tmp_path / "run.yaml"
        text = content if isinstance(content, str | bytes) else yaml.safe_dump(content, sort_keys=False)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def load(write, content=None, *overrides):
    return load_config(write(settings() if content is None else content), overrides)


def refusal(write, content=None, *overrides):
    with pytest.raises(ConfigError) as caught:
        load(write, content, *overrides)
    return str(caught.value)


@pytest.mark.parametrize(
    ("options", "stage", "said"),
    [
        ({"train_batch_size": 4}, 0, "deepspeed.train_batch_size: set training.batch_size instead"),
        ({"fp16": {"enabled": True}}, 0, "deepspeed.fp16: set policy.dtype instead"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, 0, "deepspeed.data_types: gradients are always added up in"),
        ({"zero_optimization": {"stage": 2}}, 0, "zero_optimization.stage: set training.zero_stage instead"),
        ({"tensor_parallel": {"autotp_size": 2}}, 0, "deepspeed.tensor_parallel: a layer is not split over workers"),
        ({"sequence_parallel_size": 2}, 0, "deepspeed.sequence_parallel_size: a sequence is not split over workers"),
        ({"activation_checkpointing": {}}, 0, "set training.gradient_checkpointing instead"),
        ({"zero_optimisation": {}}, 0, "deepspeed.zero_optimisation: is no option that can be set; expected one of"),
        ({"zero_optimization": 2}, 0, "deepspeed.zero_optimization: is 2; expected a mapping of reduce_bucket_size"),
        ({"zero_optimization": {"overlap_comm": 1}}, 2, "overlap_comm: is 1; expected true or false"),
        ({"zero_optimization": {"sub_group_size": -1}}, 3, "sub_group_size: is -1; expected a whole number of at"),
        ({"zero_optimization": {"offload_optimizer": {"device": "disk"}}}, 2, "is 'disk'; expected cpu or none"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, 0,
            "offload_optimizer: has no effect with zero_stage 0; choose zero_stage 1 or more, or leave it out",
        ),
        (
            {"zero_optimization": {"offload_param": {"device": "cpu"}}}, 2,
            "offload_param: has no effect with zero_stage 2; choose zero_stage 3, or leave it out",
        ),
        ({"zero_optimization": {"stage3_max_live_parameters": 9}}, 1, "choose zero_stage 3, or leave it out"),
    ],
)  # fmt: skip
def test_an_option_that_deepspeed_would_ignore_or_fail_on_is_refused(write, options, stage, said):
    assert said in refusal(write, settings(training={"deepspeed": options, "zero_stage": stage}))


def test_options_of_deepspeed_that_move_work_are_taken(write):
    options = {"zero_optimization": {"reduce_bucket_size": 5e8, "offload_param": {"device": "cpu"}}}
    config = load(write, settings(training={"deepspeed": options, "zero_stage": 3}))
    assert config.training.deepspeed == options


BOMB = "a: &a [1,1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{x}: &{x} [{','.join([f'*{y}'] * 10)}]\n" for y, x in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: 1\na: 2", "2:1: key 'a' stands twice, first on line 1"),
        ("a: [1\nb: 2", "2:2: not valid YAML: expected ',' or ']', but got ':'"),
        ("a:\n\tb: 1", r"2:1: not valid YAML: found character '\t'"),
        ("a: 1\n---\nb: 1", "2:1: not valid YAML: but found another document"),
        ("a: 'x", "not valid YAML: found unexpected end of stream"),
        ("a: *nope", "1:4: not valid YAML: found undefined alias 'nope'"),
        ("1: a", "1:1: keys are text here; put quotes around this one"),
        ("a:\n  true: b", "2:3: keys are text here"),
        ("? [a]\n: b", "1:3: keys are text here"),
        ("a: !!python/object:os.system {}", "1:4: tags like !!python/object:os.system are not read here"),
        ("a: !!set {b}", "1:4: tags like !!set are not read here"),
        ("a: !!int x", "1:4: tags like !!int are not read here; quotes make a value text"),
        ("a: 1e999", "1:4: this number is too large"),
        ("a: " + "9" * 5000, "1:4: this number is too long"),
        ("b: 1\na: \x07", "2: holds a control character (0x07)"),
        (r'a: "\0"', "1:4: holds a character that is no text"),
        (r'a: "\ud800"', "1:4: holds a character that is no text"),
        ("a: &x\n  b: *x", "nested more than 40 deep, or within itself"),
        ("[" * 5000, "nested more than 40 deep"),
        (BOMB, "more than 20000 values, aliases counted"),
    ],
)  # fmt: skip
def test_what_is_no_plain_document_is_refused_with_its_place(text, said):
    began = time.process_time()
    with pytest.raises(ConfigError) as caught:
        read(text)
    assert said in str(caught.value)
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-5", 1e-5), ("1.5e3", 1500.0), (".5", 0.5), ("-3.", -3.0), ("+1_000", 1000), ("010", 10), ("08", 8),
        ("0x1f", 31), ("true", True), ("False", False), ("~", None), ("", None), ("null", None), ("yes", "yes"),
        ("on", "on"), ("2024-01-01", "2024-01-01"), ("12:30", "12:30"), ("1.2.3", "1.2.3"), (".inf", ".inf"),
        ("'5'", "5"), ("你好", "你好"), ("[a, [b]]", ["a", ["b"]]),
    ],
)  # fmt: skip
def test_values_are_what_they_look_like(text, value):
    found = read(f"key: {text}")[0]["key"]
    assert found == value
    assert type(found) is type(value)


def test_an_alias_stands_for_its_value_and_a_merge_for_its_keys(write):
    text = yaml.safe_dump(settings()) + "training: &t {steps: 3}\n"
    assert read("a: &x {b: 1}\nc: *x\nd: {<<: *x, e: 2}")[0] == {"a": {"b": 1}, "c": {"b": 1}, "d": {"b": 1, "e": 2}}
    assert load(write, text).training.steps == 3


def test_no_bytes_lead_to_anything_but_a_config_or_a_config_error(write):
    whole = bytearray(yaml.safe_dump(settings()).encode())
    source, refusals = random.Random(0), []
    for _ in range(150):
        damaged = bytearray(whole)
        for _ in range(source.randrange(1, 4)):
            damaged[source.randrange(len(damaged))] = source.choice(b"\x00\xff\t:-[]{}&*!|>%@`'\"\n #a0")
        try:
            load_config(write(bytes(damaged)))
        except ConfigError as error:
            refusals.append(str(error))
    assert len(refusals) > 50
    assert all("run.yaml" in said for said in refusals)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "run.yaml: expected a mapping with the keys run, store, seed"),
        ("- a", 'found ["a"]'),
        ("text", 'found "text"'),
        (b"\xff\xfe\x00", "run.yaml: is not UTF-8 text (byte 0)"),
        (b"#" * (MAX_CONFIG_BYTES + 1), "run.yaml: larger than 1048576 bytes"),
        (settings(sampling=None), "run.yaml:10: sampling: expected a mapping with the keys adaptive, "),
        (settings(run=5), 'run.yaml:1: run: expected text, found 5; with quotes, "5", it is text'),
        (settings(run="A b"), 'run.yaml:1: run: found "A b". Name of the run: lower-case letters'),
        (settings(sampling__wrokers=2), "run.yaml:14: sampling.wrokers: unknown key; did you mean workers?"),
        (settings(num_candidates=2), "num_candidates: unknown key here; did you mean sampling.num_candidates?"),
        (settings(nonsense=2), "nonsense: unknown key; known here: acceptance, budget, cluster, "),
        (settings(prompts__paths="a.jsonl"), 'expected a list, found "a.jsonl"; one entry is written ["a.jsonl"]'),
        (settings(scoring__constraints=[]), "scoring.constraints: expected a list of at least 1, found []"),
        (settings(scoring__constraints=[{"name": "a"}]), "scoring.constraints.0.use: is missing. A built-in's name"),
        (settings(scoring__constraints=["length", "length"]), "constraints share the name ['length']"),
        (settings(acceptance={"rule": 5}), "expected a plug-in's name, or a mapping with the keys params, use"),
        (settings(sampling__workers="4"), 'expected a whole number, found "4"; without the quotes it is one'),
        (settings(sampling__workers=True), "sampling.workers: expected a whole number, found true"),
        (settings(sampling__workers=1.5), "sampling.workers: expected a whole number, found 1.5"),
        (settings(sampling__workers=0), "sampling.workers: expected a number of at least 1, found 0"),
        (settings(sampling__workers={"min": 1}), "sampling.workers.max: is missing. Most actors, reached as"),
        (settings(scoring__workers={"min": 3, "max": 2}), "scoring.workers: min is 3, which is above max = 2"),
        (settings(sampling__workers={"min": 1, "maxx": 2}), "sampling.workers.maxx: unknown key; did you mean max?"),
        (settings(sampling__top_p=0), "sampling.top_p: expected a number above 0, found 0"),
        (settings(sampling__top_p=1.5), "sampling.top_p: expected a number of at most 1, found 1.5"),
        (settings(sampling__min_p=1), "sampling.min_p: expected a number below 1, found 1"),
        (settings(sampling__temperature=0), "sampling: temperature 0 is greedy"),
        (settings(training={"steps": 1, "epochs": 1}), "training: set steps or epochs, not both"),
        (settings(training={"betas": [0.9]}), "training.betas.1: is missing"),
        (settings(training={"betas": [0.9, 0.9, 1]}), "training.betas: expected a list of 2, found [0.9, 0.9, 1]"),
        (settings(training={"zero_stage": 4}), "training.zero_stage: expected 0, 1, 2 or 3, found 4"),
        (
            settings(training={"rejection": {"weight": 0.5}}),
            "training.rejection: weight 0.5 is above 0.3: what unlearning gains is small and had at 0.1; larger "
            "weights were measured to slow learning or to make the policy collapse",
        ),
        (
            settings(training={"zero_stage": 3, "kl_weight": 0.1}),
            "training: kl_weight: the policy of round 0 lies whole on a worker, and zero_stage 3",
        ),
        (settings(training={"zero_stage": 3, "ema_decay": 0.9}), "training: ema_decay: the mean of the weights lies"),
        (settings(training={"learning_rate": "small"}), 'expected a number, found "small"'),
        (settings(acceptance={"dedupe": "yes"}), 'acceptance.dedupe: expected true or false, found "yes"'),
        (settings(policy__dtype="float16"), "policy.dtype: expected 'float32' or 'bfloat16', found \"float16\""),
        (settings(evaluation__k=99), "evaluation: k = 99 needs at least so many samples; num_samples is 8"),
        (settings(policy__model="~no-such-user/model"), "run.yaml: a path in it cannot be used"),
    ],
)  # fmt: skip
def test_a_mistake_names_place_key_value_and_what_would_be_right(write, content, said):
    message = refusal(write, content)
    assert said in message
    for jargon in ("Input should", "validation error", "errors.pydantic", "Value error"):
        assert jargon not in message


def test_what_is_missing_is_told_with_its_meaning(write):
    message = refusal(write, {"run": "a"})
    assert "scoring: is missing. How candidates are judged." in message
    assert message.count("\n") == 3  # policy, prompts, scoring and evaluation, a line each


def test_all_mistakes_are_told_at_once_but_no_more_than_can_be_read(write):
    message = refusal(write, settings(**{f"k{i}": i for i in range(30)}))
    assert len(message.splitlines()) == 21
    assert message.endswith("and 10 more mistakes")


def test_a_long_value_is_cut_in_the_message(write):
    assert len(refusal(write, settings(sampling__workers="x" * 10_000))) < 300


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sampling.workers", "--set sampling.workers: expected key=value, like sampling.workers=4"),
        ("=3", "--set =3: expected key=value"),
        ("sampling..workers=3", "expected key=value"),
        ("sampling.wrokers=3", "--set sampling.wrokers=3: sampling.wrokers: unknown key; did you mean workers?"),
        ("sampling.workers=two", '--set sampling.workers=two: sampling.workers: expected a whole number, found "two"'),
        ("sampling.workers=", "expected a whole number, found null"),
        ("sampling.workers=[1", "--set sampling.workers=[1: the value, as YAML: 1:3: not valid YAML"),
        ("run.name=a", "run is \"sums\", which has nothing named 'name' in it; set run as a whole"),
        ("prompts.paths.7=a", "prompts.paths is a list of 1, counted from 0; there is no entry '7'"),
        ("prompts.paths.a=b", "prompts.paths is a list of 1, counted from 0; there is no entry 'a'"),
    ],
)
def test_a_wrong_override_is_told_as_the_override(write, override, said):
    assert said in refusal(write, None, override)


def test_overrides_are_typed_nested_and_in_order(write):
    config = load(
        write, None, "sampling.workers=3", "training.learning_rate=1e-4", "prompts.paths.0=/a.jsonl", "seed=1",
        "seed=2", "cluster.address=10.0.0.1:6379", "acceptance={rule: {use: threshold, params: {min_score: 0.5}}}",
        "acceptance.rule.params.min_score=0.75", "scoring.constraints.0={use: length, params: {min: 2}}",
        "training.deepspeed.zero_optimization.reduce_bucket_size=500",
    )  # fmt: skip
    assert config.sampling.workers == 3
    assert load(write, None, "scoring.workers={min: 2, max: 5}").scoring.workers == WorkerRange(min=2, max=5)
    assert config.training.learning_rate == 1e-4
    assert config.prompts.paths == ("/a.jsonl",)
    assert config.seed == 2
    assert config.cluster.address == "10.0.0.1:6379"
    assert config.acceptance.rule.params == {"min_score": 0.75}
    assert config.scoring.constraints[0].params == {"min": 2}
    assert config.training.deepspeed == {"zero_optimization": {"reduce_bucket_size": 500}}


def test_an_override_wins_over_the_files_mistake(write):
    assert load(write, settings(sampling__workers="x"), "sampling.workers=2").sampling.workers == 2


def test_a_config_survives_the_way_through_json(write, tmp_path):
    config = load(write, settings(acceptance={"rule": {"use": "threshold", "params": {"min_score": 0.5}}}))
    (tmp_path / "config.json").write_text(config.model_dump_json(indent=1))
    assert load_config(tmp_path / "config.json") == config


def test_defaults_are_stored_whole(write):
    dumped = json.loads(load(write).model_dump_json())
    assert set(dumped) == set(RunConfig.model_fields)
    assert dumped["training"]["learning_rate"] == 1e-5
    assert dumped["acceptance"]["rule"] == {"use": "all_passed", "params": {}}
    assert dumped["scoring"]["constraints"][1]["name"] == "answer_matches"


def test_relative_paths_begin_where_the_config_lies_and_the_stores_where_the_user_stands(write, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    changed = settings(policy__chat_template="chat.jinja", training={"replay": "../worked.jsonl"})
    config = load(write, changed)
    assert config.policy.model == str(tmp_path / "model")
    assert config.policy.chat_template == str(tmp_path / "chat.jinja")
    assert config.prompts.paths == (str(tmp_path / "prompts.jsonl"),)
    assert config.evaluation.prompts.paths == (str(tmp_path / "held_out.jsonl"),)
    assert config.training.replay == str(tmp_path.parent / "worked.jsonl")
    assert config.store == str(elsewhere / "runs")


def test_uris_home_folders_and_hub_ids_stay_what_they_are(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    changed = settings(store="s3://bucket/runs", policy__model="org/model", training={"replay": "~/worked.jsonl"})
    config = load(write, changed, "prompts.paths=[gs://bucket/*.parquet]")
    assert config.store == "s3://bucket/runs"
    assert config.policy.model == "org/model"
    assert config.training.replay == "/home/somebody/worked.jsonl"
    assert config.prompts.paths == ("gs://bucket/*.parquet",)


def test_a_bare_name_is_a_folder_where_there_is_one(write, tmp_path):
    (tmp_path / "tiny").mkdir()
    assert load(write, settings(policy__model="tiny")).policy.model == str(tmp_path / "tiny")


def test_a_byte_order_mark_is_no_mistake(write):
    assert load(write, b"\xef\xbb\xbf" + yaml.safe_dump(settings()).encode()).run == "sums"


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.yaml: there is no such config file"):
        load_config(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match="is a folder; expected a YAML file"):
        load_config(tmp_path)


def test_parsing_needs_no_file():
    config = parse_config(settings(), origins={(): "here"}, base=Path("/project"))
    assert config.prompts.paths == ("/project/prompts.jsonl",)
    with pytest.raises(ConfigError, match="here: policy: is missing"):
        parse_config({"run": "a"}, origins={(): "here"}, base=Path("/project"))


def test_the_json_schema_accepts_what_loads_and_refuses_what_does_not():
    schema = json.loads(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    validator.validate(settings(training={"learning_rate": 1e-4, "betas": [0.9, 0.99]}))
    for wrong in (settings(sampling__wrokers=1), settings(sampling__workers=0), settings(policy=None), {"run": "a"}):
        assert not validator.is_valid(wrong)


def test_the_json_schema_explains_every_key():
    schema = json.loads(json_schema())
    for name, part in schema["$defs"].items():
        unexplained = [key for key, node in part["properties"].items() if "description" not in node]
        assert not unexplained, f"{name}: {unexplained}"


@pytest.mark.parametrize(
    ("dtype", "num_gpus", "fine"), [("float32", 0, True), ("bfloat16", 0, False), ("float32", 1, False)]
)
def test_independence_of_the_neighbours_is_promised_only_where_it_holds(dtype, num_gpus, fine):
    content = settings()
    content["policy"] = {**content["policy"], "dtype": dtype}
    content["sampling"] = {**content.get("sampling", {}), "num_gpus": num_gpus, "determinism": "sample"}
    if fine:
        assert RunConfig.model_validate(content).sampling.mixes_units
        return
    with pytest.raises(ValueError, match="holds in float32 on CPUs"):
        RunConfig.model_validate(content)


FAIR = {"protected": {"gender": ["f", "m"]}, "decision": "(yes|no)", "positive": "yes"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decision": "(yes"}, r"decision '\(yes' is no regular expression"),
        ({"decision": "yes|no"}, "decision 'yes|no' has no group; put parentheses"),
        ({"protected": {"gender": ["f"]}}, "protected.gender needs at least two different values"),
        ({"cells": "equalised_odds"}, "cells: equalised_odds needs `merit`"),
    ],
)
def test_a_fairness_config_that_cannot_work_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        FairnessConfig.model_validate({**FAIR, **change})


def test_combinations_of_protected_values_stand_in_a_fixed_order():
    fairness = FairnessConfig.model_validate({**FAIR, "protected": {"a": ["x", "y"], "b": ["1", "2"]}})
    assert fairness.combinations[:2] == ({"a": "x", "b": "1"}, {"a": "x", "b": "2"})
    assert fairness.num_swaps == 4
    assert fairness.observing().num_swaps == 1


def test_weights_of_cells_are_refused_beside_what_would_undo_them():
    values = settings(fairness={**FAIR, "cells": "demographic_parity"})
    with pytest.raises(ValidationError, match=r"undo it; set \['acceptance.dedupe: false', 'training.per_prompt: fal"):
        RunConfig.model_validate(values)
    holds = {"training": {"per_prompt": False, "accumulate": False}, "acceptance": {"dedupe": False}}
    RunConfig.model_validate({**values, **holds})
    capped = {**holds, "acceptance": {"dedupe": False, "max_per_prompt": 4}}
    with pytest.raises(ValidationError, match=r"set \['acceptance.max_per_prompt: null'\]"):
        RunConfig.model_validate({**values, **capped})
    RunConfig.model_validate(settings(fairness=FAIR))

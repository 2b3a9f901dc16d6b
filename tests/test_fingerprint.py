"""The fingerprint: what may change between two invocations of a run and what may not.

Adversarially checked: every key of the config is changed in turn; each is either operational or refused by name.
"""

from copy import deepcopy
from functools import reduce
from operator import getitem

import pytest
from factories import write_jsonl
from projects import settings, sums

from rsft_cluster.config import OPERATIONAL, RunConfig, flatten, is_operational
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import PolicyRef
from rsft_cluster.runs.fingerprint import claim_run, fingerprint
from rsft_cluster.store import Store

POLICY = PolicyRef(name="round-0000", uri="/model", digest="d" * 32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("fingerprint")
    for name in ("prompts", "held_out", "other"):
        write_jsonl(made / f"{name}.jsonl", sums(3))
    (made / "chat.jinja").write_text("{{ messages }}")
    return made


@pytest.fixture(scope="module")
def whole(folder):
    """A config as JSON in which every key can be changed alone."""
    given = settings(
        prompts__paths=[str(folder / "prompts.jsonl")],
        evaluation__prompts__paths=[str(folder / "held_out.jsonl")],
        scoring__constraints=["finished"],
        acceptance={"rule": {"use": "threshold", "params": {"min_score": 0.5}}},
        sampling__num_candidates=1,
    )
    return RunConfig.model_validate(given).model_dump(mode="json")


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def parts_of(values, policy=POLICY):
    return fingerprint(RunConfig.model_validate(values), policy)


def begin(store, parts):
    """Claim a run and plan its first round."""
    claim_run(store, parts)
    store.create("rounds/0000/evaluation/plan/plan.json", b"{}")


def another(key, value, folder):
    """A valid value for a key, other than the one it has."""
    special = {
        "policy.dtype": "bfloat16", "policy.attention": "eager", "policy.chat_template": str(folder / "chat.jinja"),
        "training.schedule": "linear", "training.init": "previous", "training.zero_stage": 1, "training.epochs": 2.0,
        "training.replay": str(folder / "other.jsonl"), "training.betas": [0.9, 0.99], "sampling.min_p": 0.25,
        "sampling.stop_token_ids": [7], "scoring.constraints": [{"use": "finished", "weight": 2.0}], "run": "other",
        "cluster.address": "auto", "policy.revision": "abc", "prompts.system": "Be brief.", "prompts.columns.id": "id",
        "policy.adapter": "/adapter", "sampling.determinism": "none", "sampling.adaptive": {"kind": "soft"},
        "acceptance.near_duplicates": 0.5, "acceptance.prefer": "score",
        "acceptance.schedule": {"min_score": [0.1, 0.2]},
        "budget.allocation": "variance", "budget.wave_size": 1, "controls.arms": ["random"], "controls.rounds": "first",
        "nightly.at": "03:00", "nightly.weekdays": ["mon"], "nightly.prompts": "all", "nightly.unfinished": "abandon",
        "training.rejection": {"weight": 0.2}, "training.unlikelihood": {},
        "training.deepspeed": {"wall_clock_breakdown": True},
        "scoring.canaries": [{"completion": "x", "passes": True}],
        "pilot": {"temperatures": [1.0]}, "promotion.health.hold_on": ["length"], "fairness": {
            "protected": {"sex": ["f", "m"]}, "decision": "(yes|no)", "positive": "yes"
        },
    }  # fmt: skip
    key = key.removeprefix("evaluation.") if key.startswith("evaluation.prompts") else key
    if key in special:
        return special[key]
    if key == "prompts.paths":
        return [str(folder / "other.jsonl")]
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        return value / 2 if value else 0.5
    kinds = {int: lambda: value + 1, str: lambda: value + "x", list: lambda: [*value, "x"], dict: lambda: {"a": 1}}
    return kinds[type(value)]() if value is not None else 5 if "system" not in key else "text"


def changed(whole, key, value):
    values = deepcopy(whole)
    *path, leaf = key.split(".")
    node = values
    for part in path:
        node = node[part]
    node[leaf] = value
    return values


KEYS = sorted(flatten(RunConfig.model_validate(settings()).model_dump(mode="json")))


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_either_operational_or_refused_by_name(whole, folder, store, key):
    before = reduce(getitem, key.split("."), whole)
    begin(store, parts_of(whole))
    after = parts_of(changed(whole, key, another(key, before, folder)))
    if is_operational(key):
        claim_run(store, after)
        return
    with pytest.raises(ConfigError) as refused:
        claim_run(store, after)
    assert f"  config.{key}" in str(refused.value)
    assert "was begun with another configuration" in str(refused.value)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("micro_batch_size", 1), ("gradient_checkpointing", True), ("zero_stage", 3), ("threads", 2),
        ("deepspeed", {"zero_optimization": {"reduce_bucket_size": 5e8}}),
    ],
)  # fmt: skip
def test_a_run_that_ran_out_of_memory_in_training_may_be_given_what_mends_it(whole, store, key, value):
    begin(store, parts_of(whole))
    claim_run(store, parts_of(changed(whole, f"training.{key}", value)))


def test_the_message_tells_both_values_and_what_to_do(whole, store):
    begin(store, parts_of(whole))
    with pytest.raises(ConfigError, match=r"config\.seed: was 0, is 7") as refused:
        claim_run(store, parts_of(changed(whole, "seed", 7)))
    assert "Put these back, or give the new configuration a `run` name of its own" in str(refused.value)
    assert len(str(refused.value).splitlines()) == 2


def test_a_parameter_of_a_plugin_is_named_in_full(whole, store):
    begin(store, parts_of(whole))
    with pytest.raises(ConfigError, match=r"config\.acceptance\.rule\.params\.min_score: was 0\.5, is 0\.75"):
        claim_run(store, parts_of(changed(whole, "acceptance.rule.params.min_score", 0.75)))


def test_other_bytes_in_a_file_are_noticed(whole, folder, store, tmp_path):
    prompts = write_jsonl(tmp_path / "p.jsonl", sums(3))
    values = changed(whole, "prompts.paths", [str(prompts)])
    begin(store, parts_of(values))
    write_jsonl(prompts, sums(4))
    with pytest.raises(ConfigError, match=r"prompts\.file .*p\.jsonl: was "):
        claim_run(store, parts_of(values))


def test_other_weights_are_noticed(whole, store):
    begin(store, parts_of(whole))
    with pytest.raises(ConfigError, match=r"policy\.digest: was \"ddd"):
        claim_run(store, parts_of(whole, POLICY.model_copy(update={"digest": "e" * 32})))


def test_the_versions_of_the_engines_belong_to_it(whole):
    parts = parts_of(whole)
    assert {k for k in parts if k.startswith("version.")} >= {"version.torch", "version.transformers"}


def test_the_digest_depends_on_the_parts_and_not_on_their_order(whole, store):
    parts = parts_of(whole)
    assert claim_run(store, parts) == claim_run(store, dict(reversed(parts.items())))


def test_a_run_that_planned_nothing_may_be_begun_anew(whole, store):
    claim_run(store, parts_of(whole))
    store.create("config.json", b"old")
    store.create("prompts/train.json", b"old")
    claim_run(store, parts_of(changed(whole, "seed", 7)))
    assert not store.exists("config.json")
    assert not store.exists("prompts/train.json")
    begin(store, parts_of(changed(whole, "seed", 7)))
    with pytest.raises(ConfigError, match="was 7, is 8"):
        claim_run(store, parts_of(changed(whole, "seed", 8)))


@pytest.mark.parametrize("damage", [b"", b"{", b"[1]", b"\xff"])
def test_a_damaged_fingerprint_is_a_matter_of_the_store(whole, store, damage):
    begin(store, parts_of(whole))
    store.write("fingerprint.json", damage)
    with pytest.raises(StoreError, match=r"fingerprint\.json: damaged"):
        claim_run(store, parts_of(whole))


def test_operational_keys_are_keys_and_cover_what_lies_below_them():
    sections = {key.rsplit(".", 1)[0] for key in KEYS} | set(KEYS)
    assert sections >= OPERATIONAL
    assert is_operational("cluster.address")
    assert is_operational("sampling.workers")
    assert is_operational("scoring.workers.max")
    assert not is_operational("sampling.workers_of_another_kind")
    assert not is_operational("sampling")
    assert not is_operational("clusters")

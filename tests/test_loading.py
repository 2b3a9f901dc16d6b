"""A policy with a LoRA adapter: merged as it loads, known by both its files, refused where it cannot be merged."""

from pathlib import Path

import models
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from projects import settings
from safetensors.torch import load_file, save_file
from test_generators import drawn, keys_of, raw
from transformers import AutoModelForCausalLM

from rsft_cluster.config import PolicyConfig, RunConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.engine.engine import Engine
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.policies.loading import load_model
from rsft_cluster.policies.references import base_policy, policy_spec, verify
from rsft_cluster.policies.spec import PolicySpec

IDS = torch.arange(3, 20)[None]


def write_adapter(model, folder, *, targets=("q_proj", "v_proj", "down_proj"), seed=0):
    """Save a LoRA adapter whose differences are not zero, as they are before any training."""
    torch.manual_seed(seed)
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(model), LoraConfig(r=4, target_modules=list(targets)))
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.3)
    adapted.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return models.tiny_llama(tmp_path_factory.mktemp("llama"))


@pytest.fixture(scope="module")
def adapter(llama, tmp_path_factory):
    return write_adapter(llama, tmp_path_factory.mktemp("adapter"))


@torch.inference_mode()
def test_a_merged_adapter_gives_the_logits_of_the_adapted_model(llama, adapter):
    base = AutoModelForCausalLM.from_pretrained(llama)
    plain = base(IDS).logits
    adapted = PeftModel.from_pretrained(base, adapter)(IDS).logits
    merged = load_model(PolicySpec(llama, adapter=adapter))(IDS).logits
    assert (adapted - plain).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, atol=1e-3, rtol=1e-3)


def test_a_policy_with_an_adapter_goes_through_the_engine_and_draws_what_its_merged_folder_draws(
    llama, adapter, tmp_path
):
    load_model(PolicySpec(llama, adapter=adapter)).save_pretrained(tmp_path)
    models.tokenizer().save_pretrained(tmp_path)
    prompts = raw("a", "bcd")
    keys, decoding = keys_of(prompts, 6), Decoding(max_tokens=20)
    adapted = TransformersGenerator(PolicySpec(llama, adapter=adapter))
    assert isinstance(adapted.decoder, Engine)
    found = drawn(adapted, prompts, decoding, keys)
    assert found == drawn(TransformersGenerator(PolicySpec(str(tmp_path))), prompts, decoding, keys)
    assert found != drawn(TransformersGenerator(PolicySpec(llama)), prompts, decoding, keys)


def test_a_policy_is_known_by_its_model_and_its_adapter(llama, adapter, tmp_path):
    plain = base_policy(PolicyConfig(model=llama))
    other = write_adapter(llama, tmp_path, seed=1)
    adapted, changed = (base_policy(PolicyConfig(model=llama, adapter=folder)) for folder in (adapter, other))
    assert len({plain.digest, adapted.digest, changed.digest}) == 3
    verify(changed)
    write_adapter(llama, tmp_path, seed=2)
    with pytest.raises(StoreError, match="these are not the weights of round-0000"):
        verify(changed)
    spec = policy_spec(adapted, PolicyConfig(model=llama), trust_remote_code=False, threads=1, gpu=False)
    assert spec.adapter == adapter


@pytest.mark.parametrize(
    ("name", "said"),
    [("nowhere", "there is no such folder"), ("model", "holds no adapter_config.json"), ("pickled", "holds no *.safe")],
)
def test_what_is_no_adapter_is_refused_by_name(llama, tmp_path, name, said):
    folder = tmp_path / name
    if name != "nowhere":
        folder.mkdir()
        (folder / ("config.json" if name == "model" else "adapter_config.json")).write_text("{}")
    with pytest.raises(ConfigError) as caught:
        base_policy(PolicyConfig(model=llama, adapter=str(folder)))
    assert f"policy.adapter: {folder}: {said}" in str(caught.value)


def test_an_adapter_of_another_model_is_refused(adapter, tmp_path):
    other = models.tiny_llama(tmp_path, hidden_size=64)
    with pytest.raises(ConfigError, match=r"policy\.adapter .* does not fit"):
        load_model(PolicySpec(other, adapter=adapter))


def test_an_adapter_whose_weights_have_other_names_is_refused_and_not_taken_for_nothing(llama, adapter, tmp_path):
    weights = load_file(f"{adapter}/adapter_model.safetensors")
    renamed = {name.replace("base_model.model.", "base_model.model._orig_mod."): w for name, w in weights.items()}
    save_file(renamed, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(Path(adapter, "adapter_config.json").read_text())
    with pytest.raises(ConfigError, match="missing adapter keys"):
        load_model(PolicySpec(llama, adapter=str(tmp_path)))


def test_an_adapter_is_not_merged_into_shards():
    config = settings()
    config["policy"] = {**config["policy"], "adapter": "/adapters/a"}
    RunConfig.model_validate(config)
    config["training"] = {**config.get("training", {}), "zero_stage": 3}
    with pytest.raises(ValueError, match="cannot be merged into weights that are loaded in shards"):
        RunConfig.model_validate(config)

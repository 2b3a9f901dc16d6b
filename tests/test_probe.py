"""What the probe accepts and what it refuses, in float32 and in bfloat16, where rounding is more than many a fault."""

import engine_faults
import models
import pytest
import torch

from rsft_cluster.generators.engine.compiled import kernel_for
from rsft_cluster.generators.engine.probe import UnsupportedModelError, layer_shapes
from rsft_cluster.generators.engine.raising import raised
from rsft_cluster.generators.engine.trial import DISTINCT, TEXT, Trial, text_ids
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.policies.spec import PolicySpec

DTYPES = ("float32", "bfloat16")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    """Models by family and type, of bytes, so that the probe's text is text to them."""
    made = {}

    def get(family, dtype):
        if (family, dtype) not in made:
            scale = 0.3 if family in models.TIED else 1.0
            folder = models.FAMILIES[family](tmp_path_factory.mktemp(family), scale=scale)
            attention = "eager" if family in models.EAGER else "sdpa"
            policy = PolicySpec(folder, dtype=dtype, attention=attention)
            made[family, dtype] = TransformersGenerator(policy, engine="batches")
        return made[family, dtype]

    return get


def probed(generator, *, compiled=False):
    return layer_shapes(generator.model, text_ids(generator.tokenizer), compiled=compiled)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("family", [family for family in models.FAMILIES if family not in models.BATCHED])
def test_models_that_fit_are_accepted_in_any_type(loaded, family, dtype, compiled):
    generator = loaded(family, dtype)
    assert kernel_for(generator.model.dtype) is not None
    assert len(probed(generator, compiled=compiled)) == 2


CASES = [
    *(("llama", fault) for fault in engine_faults.ANYWHERE),
    ("gemma2", engine_faults.wrong_scale),
    ("mistral", engine_faults.window_that_is_left_out),
    ("mistral", engine_faults.window_of_one_token_less),
    ("gemma3", engine_faults.window_that_is_left_out),
    ("gemma3", engine_faults.window_where_there_is_none),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("family", "fault"), CASES, ids=lambda value: getattr(value, "__name__", value))
def test_what_the_engine_gets_wrong_is_found_out_in_any_type(loaded, family, fault, dtype, monkeypatch):
    generator = loaded(family, dtype)
    fault(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="its logits differ by"):
        probed(generator)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_missing_softcap_is_found_out_in_any_type(loaded, dtype, monkeypatch):
    generator = loaded("gemma2", dtype)
    for layer in generator.model.model.layers:  # random scores are far below the usual 50
        monkeypatch.setattr(layer.self_attn, "attn_logit_softcapping", 2.0)
    assert len(probed(generator)) == 2
    engine_faults.missing_softcap(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="its logits differ by"):
        probed(generator)


@pytest.mark.parametrize("fault", [engine_faults.wrong_scale, engine_faults.positions_shifted_while_decoding])
def test_what_compiled_attention_gets_wrong_is_found_out(loaded, fault, monkeypatch):
    generator = loaded("llama", "bfloat16")
    fault(monkeypatch)
    with pytest.raises(UnsupportedModelError, match="its logits differ by"):
        probed(generator, compiled=True)


def test_arithmetic_that_rounds_more_than_the_models_own_is_refused(loaded, monkeypatch):
    generator = loaded("llama", "bfloat16")
    through_blocks = Trial.through_blocks

    def rounding(trial, layers, dtype, *, compiled):
        logits = through_blocks(trial, layers, dtype, compiled=compiled)
        return [(part / 2).round() * 2 for part in logits] if dtype == torch.bfloat16 else logits

    monkeypatch.setattr(Trial, "through_blocks", rounding)
    with pytest.raises(
        UnsupportedModelError, match=r"in bfloat16, typically, .* 2 times what the model's own rounding"
    ):
        probed(generator)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral"])
def test_a_raised_model_computes_what_its_float32_copy_does_and_is_as_it_was(loaded, family):
    model = loaded(family, "bfloat16").model
    before = {name: p.clone() for name, p in model.named_parameters()}
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        with raised(model):
            logits = model(ids, use_cache=False).logits
        assert logits.dtype == torch.float32
        assert all(torch.equal(p, before[name]) and p.dtype == torch.bfloat16 for name, p in model.named_parameters())
        copy = type(model)(model.config).eval()
        copy.load_state_dict({name: p.float() for name, p in model.state_dict().items()})
        torch.testing.assert_close(copy.float()(ids, use_cache=False).logits, logits, atol=1e-5, rtol=1e-5)


def test_prompts_are_text_and_reach_beyond_a_window(loaded):
    generator = loaded("llama", "float32")
    ids = text_ids(generator.tokenizer)
    trial = Trial.of(generator.model, ids, [None, 60])
    assert trial.lengths[0] > 60 + 32
    assert generator.decode([int(token) for token in trial.prompts[0]]) in TEXT
    assert all(len({*prompt.tolist()}) > 15 for prompt in trial.prompts)


def test_a_tokenizer_that_does_not_know_the_text_is_no_reason_for_one_token_alone(loaded):
    trial = Trial.of(loaded("llama", "float32").model, [7] * 500, [None])
    assert len({*trial.prompts[0].tolist()}) >= DISTINCT

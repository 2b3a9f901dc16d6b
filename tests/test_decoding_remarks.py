"""What a generator says of its way of decoding, where that is read, and the type of numbers that it computes in."""

from dataclasses import replace

import collecting
import models
import pytest
import torch
from test_generators import keys_of, raw

from rsft_cluster.checks.model import check_model
from rsft_cluster.config import Plugin
from rsft_cluster.errors import ConfigError
from rsft_cluster.generators import arithmetic
from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.engine.engine import Engine
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.progress import Progress
from rsft_cluster.rounds.stages import reporting


class Slow(ScriptedGenerator):
    remarks = ("slowly",)


@pytest.fixture
def lfm2(tmp_path):
    """A model that the engine does not fit."""
    return models.tiny_lfm2(tmp_path)


@pytest.fixture
def slow_bfloat16(monkeypatch):
    monkeypatch.setattr(arithmetic, "bfloat16_speed", lambda: 0.9)


def narrow(tmp_path, **options):
    return TransformersGenerator(PolicySpec(models.tiny_llama(tmp_path), dtype="bfloat16"), **options)


def test_a_fall_back_is_remarked_with_its_reason_and_its_price(lfm2):
    (remark,) = TransformersGenerator(PolicySpec(lfm2)).remarks
    assert remark.startswith("decoded in plain batches, slower than the engine")
    assert remark.endswith("its cache has layers other than attention: LinearAttentionLayer")


def test_an_engine_that_is_required_refuses_what_it_does_not_fit(lfm2, tmp_path):
    with pytest.raises(ConfigError, match=r"engine: required, and .* cannot be decoded by it: its cache has layers"):
        TransformersGenerator(PolicySpec(lfm2), engine="required")
    fitting = TransformersGenerator(PolicySpec(models.tiny_llama(tmp_path / "llama")), engine="required")
    assert isinstance(fitting.decoder, Engine)
    assert fitting.remarks == ()


@pytest.mark.usefixtures("slow_bfloat16")
def test_where_bfloat16_is_not_faster_its_weights_are_computed_in_float32_and_that_is_remarked(tmp_path):
    generator = narrow(tmp_path, compute_dtype="auto")
    assert generator.remarks == ("bfloat16 weights are computed in float32",)
    assert generator.model.dtype == torch.float32
    exact = TransformersGenerator(
        PolicySpec(generator._policy.model, dtype="float32"), engine="batches"
    ).model.state_dict()
    weights = narrow(tmp_path / "again", engine="batches", compute_dtype="auto").model.state_dict()
    assert all(torch.equal(weights[name], exact[name].bfloat16().float()) for name in weights)
    prompts = raw("Some text", "more of it")
    answers = list(generator.generate(prompts, Decoding(max_tokens=8), keys_of(prompts, 2)))
    assert len(answers) == 4


@pytest.mark.parametrize("options", [{"compute_dtype": "bfloat16"}, {"compute_dtype": "auto"}, {}])
def test_weights_stay_narrow_where_that_is_faster_or_asked_for(tmp_path, monkeypatch, options):
    monkeypatch.setattr(arithmetic, "bfloat16_speed", lambda: 3.0 if options.get("compute_dtype") == "auto" else 0.9)
    generator = narrow(tmp_path, **options)
    assert generator.model.dtype == torch.bfloat16
    assert generator.remarks == ()


def test_a_type_that_would_round_the_weights_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="compute_dtype: bfloat16 would round the weights"):
        TransformersGenerator(PolicySpec(models.tiny_llama(tmp_path)), compute_dtype="bfloat16")


def test_how_fast_bfloat16_is_is_measured():
    arithmetic.bfloat16_speed.cache_clear()
    assert 0.0 <= arithmetic.bfloat16_speed() < 100.0


def test_a_check_of_a_model_tells_whether_the_engine_decodes_it(lfm2, tmp_path):
    findings = {f.about: f for f in check_model(tmp_path)}
    assert findings["sampling"].warns
    assert "plain batches" in findings["sampling"].says
    assert "engine" not in findings
    models.tiny_llama(tmp_path / "llama")
    findings = {f.about: f for f in check_model(tmp_path / "llama")}
    assert findings["engine"].says.startswith("decodes it")
    assert "tokens a second" in findings["speed"].says


def test_remarks_are_in_commits_and_in_the_manifest(tmp_path):
    collection = collecting.collection(tmp_path)
    slow = bind(Plugin(use="test_decoding_remarks:Slow"), "generators", num_leading=1)
    collection.work = replace(collection.work, generator=slow)
    assert collection.do(collection.units()[0])["remarks"] == ["slowly"]
    assert collection.finish().remarks == ("slowly",)
    assert collecting.collection(tmp_path / "plain").finish().remarks == ()


def test_remarks_are_noted_once_however_many_units_bring_them():
    class Listening:
        def __init__(self):
            self.notes = []

        def note(self, text):
            self.notes.append(text)

        def collecting(self, progress):
            self.notes.append(progress.num_prompts_done)

    listener, progress = Listening(), Progress(10)
    report = reporting(listener)
    for progress.num_prompts_done in (0, 4, 8):
        report(progress)
        progress.remarks["slowly"] = None
    assert listener.notes == [0, "sampling: slowly", 4, 8]

"""Compiled attention against plain attention in float64, how it is planned, and what happens without it."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import models
import numpy as np
import pytest
import torch
from test_engine import AROUND_A_BLOCK, LONG, engine_of, letters
from test_generators import drawn, keys_of

import rsft_cluster.generators.engine
from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.engine import compiled, cpu_kernels, layers, vectors
from rsft_cluster.generators.engine.attention import Scoring
from rsft_cluster.generators.engine.blocks import BLOCK, BlockStore, LayerShape
from rsft_cluster.generators.engine.compiled import CompiledBatch, kernel_for
from rsft_cluster.generators.engine.layers import compile_layers
from rsft_cluster.generators.engine.rows import Rows
from rsft_cluster.generators.engine.steps import CompiledSteps, PlainSteps

PROMPTS = (1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 7)
"""Tokens of prompts; rows of one follow each other in turn, so that none of a prompt stand together."""
OWN = (0, 1, BLOCK - 1, BLOCK, 2 * BLOCK + 5)
"""Tokens that a row has of its own before the step."""


@dataclass
class Case:
    """A step of rows over random keys and values, and what each row's sequence holds, in order."""

    store: BlockStore
    rows: Rows
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    sequences: list[tuple[torch.Tensor, torch.Tensor]]

    def attended(self, how):
        return CompiledBatch(self.rows, self.store).attend(0, self.query, self.key, self.value, how)


def case_of(shape, group, *, dtype=torch.float32, candidates=3, only=None):
    """Return a step with `candidates` rows for every prompt and length, or the rows in `only` of it."""
    generator = torch.Generator().manual_seed(7)

    def normal(*size):
        return torch.randn(*size, generator=generator).to(dtype)

    store = BlockStore([shape], 400, dtype=dtype, device=torch.device("cpu"))
    for tensor in (store.keys[0], store.values[0]):
        tensor.copy_(normal(*tensor.shape))
    prompts = [store.take_shared(number, length) for number, length in enumerate(PROMPTS)]
    wanted = [(number, own) for _ in range(candidates) for own in OWN for number in range(len(PROMPTS))]
    rows = Rows(len(wanted), max_tokens=4 * BLOCK, max_blocks=4)
    tokens = -(-len(wanted) // 16) * 16
    query = normal(tokens, shape.heads * group, shape.key_dim)
    key, value = (normal(tokens, shape.heads, dim) for dim in (shape.key_dim, shape.value_dim))
    sequences = []
    for i, (number, own) in enumerate(wanted):
        blocks = [store.take_private(i, start) for start in range(0, own + 1, BLOCK)]
        if only is not None and i not in only:
            continue
        row = rows.add(group=number, index=i, key=0, prompt_length=PROMPTS[number])
        rows.length[row] = own + 1
        rows.blocks[row, : len(blocks)], rows.num_blocks[row] = blocks, len(blocks)
        keys, values = (
            torch.cat([read(prompts[number], PROMPTS[number]), read(blocks, own), new[i : i + 1]])
            for read, new in (
                (lambda found, num: store.keys[0][found].permute(0, 3, 1, 2).flatten(0, 1)[:num], key),
                (lambda found, num: store.values[0][found].transpose(1, 2).flatten(0, 1)[:num], value),
            )
        )
        sequences.append((keys, values))
    if only is not None:
        query, key, value = (tensor[only] for tensor in (query, key, value))
    return Case(store, rows, *(tensor.transpose(0, 1) for tensor in (query, key, value)), sequences)


def plainly(case, how, window=None):
    """Attend row by row in float64."""
    found = []
    for row, (keys, values) in enumerate(case.sequences):
        reach = slice(-window if window else None, None)
        seen, held = (
            tensor[reach].double().repeat_interleave(case.query.shape[0] // tensor.shape[1], 1)
            for tensor in (keys, values)
        )
        scores = torch.einsum("hd,thd->ht", case.query[:, row].double(), seen) * how.scale
        if how.softcap:
            scores = torch.tanh(scores / how.softcap) * how.softcap
        found.append(torch.einsum("ht,thd->hd", scores.softmax(-1), held))
    return torch.stack(found)


SHAPES = {
    "grouped": (LayerShape(2, 64, 64), 3),
    "one head": (LayerShape(1, 16, 16), 1),
    "wide": (LayerShape(2, 128, 128), 7),
    "other values": (LayerShape(3, 24, 40), 1),
    "odd": (LayerShape(1, 7, 5), 2),
    "window within a block": (LayerShape(2, 32, 32, window=8), 2),
    "window of blocks": (LayerShape(2, 32, 32, window=2 * BLOCK), 2),
}


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize(("shape", "group"), SHAPES.values(), ids=SHAPES)
def test_it_is_attention(shape, group, softcap):
    case = case_of(shape, group)
    how = Scoring(shape.key_dim**-0.5, softcap)
    attended = case.attended(how)[: case.rows.num].double()
    torch.testing.assert_close(attended, plainly(case, how, shape.window), atol=3e-6, rtol=3e-6)


@pytest.mark.parametrize(("shape", "group"), [SHAPES["grouped"], SHAPES["odd"], SHAPES["window within a block"]])
def test_in_bfloat16_only_what_comes_out_is_rounded(shape, group):
    case = case_of(shape, group, dtype=torch.bfloat16)
    how = Scoring(0.3)
    attended = case.attended(how)[: case.rows.num]
    expected = plainly(case, how, shape.window)
    assert attended.dtype == torch.bfloat16
    # Half a unit in the last of eight places, and what float32 sums differ by.
    assert ((attended.double() - expected).abs() <= expected.abs() * 2.0**-8 + 1e-5).all()
    assert (attended == expected.to(torch.bfloat16)).double().mean() > 0.99


@pytest.mark.parametrize("size", [1e-3, 30.0, 3e4])
def test_scores_of_any_size_are_weighed(size):
    shape, group = SHAPES["grouped"]
    case = case_of(shape, group)
    how = Scoring(size)
    attended = case.attended(how)[: case.rows.num].double()
    assert attended.isfinite().all()
    if size < 100:  # beyond, float32 scores differ by more than their differences
        torch.testing.assert_close(attended, plainly(case, how), atol=2e-3, rtol=1e-3)


def test_new_keys_and_values_are_stored_and_nothing_else_is():
    shape, group = SHAPES["other values"]
    case = case_of(shape, group)
    before = [tensor.clone() for tensor in (case.store.keys[0], case.store.values[0])]
    case.attended(Scoring(1.0))
    for row in range(case.rows.num):
        own = int(case.rows.own[row])
        block = case.rows.blocks[row, own // BLOCK]
        before[0][block, :, :, own % BLOCK] = case.key[:, row]
        before[1][block, :, own % BLOCK] = case.value[:, row]
    assert torch.equal(case.store.keys[0], before[0])
    assert torch.equal(case.store.values[0], before[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["grouped", "odd", "window within a block"])
def test_not_a_bit_depends_on_other_rows_or_on_threads(name, dtype, monkeypatch):
    how = Scoring(0.2)
    case = case_of(*SHAPES[name], dtype=dtype)
    whole = case.attended(how)[: case.rows.num]
    for only in ([3], [5, 30, 50], list(range(0, 75, 2))):
        assert torch.equal(case_of(*SHAPES[name], dtype=dtype, only=only).attended(how), whole[only])
    for threads in (2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert torch.equal(case_of(*SHAPES[name], dtype=dtype).attended(how)[: case.rows.num], whole)


def test_what_no_row_sees_is_not_read():
    shape, group = SHAPES["grouped"]
    case, spoilt = case_of(shape, group), case_of(shape, group)
    held = {int(block) for row in range(75) for block in case.rows.blocks[row, : case.rows.num_blocks[row]]}
    others = [b for b in range(case.store.num_blocks) if b not in held and case.store.kind[b] == 0]
    spoilt.store.keys[0][others] = torch.nan
    spoilt.store.values[0][others] = torch.nan
    for row in range(75):
        block, offset = divmod(int(case.rows.own[row]), BLOCK)
        spoilt.store.keys[0][case.rows.blocks[row, block], :, :, offset + 1 :] = torch.nan
        spoilt.store.values[0][case.rows.blocks[row, block], :, offset + 1 :] = torch.nan
    assert torch.equal(spoilt.attended(Scoring(0.2)), case.attended(Scoring(0.2)))


# Where it is not to be had


@pytest.fixture
def forgotten():
    """Let what can be compiled be found out anew, before and after."""
    kernel_for.cache_clear()
    yield
    kernel_for.cache_clear()


def test_where_it_can_be_it_is(tmp_path):
    assert type(engine_of(models.load_family("llama", tmp_path)).steps) is CompiledSteps


@pytest.mark.usefixtures("forgotten")
def test_where_it_cannot_be_compiled_torch_attends_and_that_is_said_once(tmp_path, monkeypatch, caplog):
    prompts = letters(*AROUND_A_BLOCK)
    keys = keys_of(prompts, 3)
    expected = drawn(models.load_family("llama", tmp_path), prompts, LONG, keys)

    def broken(*_types):
        raise RuntimeError("no such processor\nmore of it")

    kernel_for.cache_clear()
    monkeypatch.setattr(cpu_kernels, "compile_for", broken)
    for name in ("one", "two"):
        generator = models.load_family("llama", tmp_path / name)
        assert type(engine_of(generator).steps) is PlainSteps
        assert drawn(generator, prompts, LONG, keys) == expected
    said = [r.getMessage() for r in caplog.records if "event=attention_not_compiled" in r.getMessage()]
    assert said == ["event=attention_not_compiled reason=RuntimeError: no such processor"]


@pytest.mark.usefixtures("forgotten")
def test_without_numba_torch_attends(tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "rsft_cluster.generators.engine.cpu_kernels", None)
    monkeypatch.delattr(rsft_cluster.generators.engine, "cpu_kernels")
    assert type(engine_of(models.load_family("llama", tmp_path)).steps) is PlainSteps
    assert "event=attention_not_compiled reason=" in caplog.text
    assert "pip install rsft-cluster[cpu]" in caplog.text


def test_it_need_not_be(tmp_path):
    generator = models.load_family("llama", tmp_path)
    plain = type(generator)(generator._policy, compiled=False)
    assert type(engine_of(plain).steps) is PlainSteps
    prompts = letters(*AROUND_A_BLOCK)
    keys = keys_of(prompts, 3)
    found, expected = (list(each.generate(prompts, LONG, keys)) for each in (plain, generator))
    assert [c.token_ids for c in found] == [c.token_ids for c in expected]
    np.testing.assert_allclose([c.logprob for c in found], [c.logprob for c in expected], atol=1e-4)


@pytest.mark.usefixtures("forgotten")
def test_where_it_must_be_a_worker_that_cannot_refuses(tmp_path, monkeypatch):
    generator = models.load_family("llama", tmp_path)
    assert type(engine_of(type(generator)(generator._policy, compiled=True)).steps) is CompiledSteps
    kernel_for.cache_clear()
    monkeypatch.setitem(sys.modules, "rsft_cluster.generators.engine.cpu_kernels", None)
    monkeypatch.delattr(rsft_cluster.generators.engine, "cpu_kernels")
    with pytest.raises(ConfigError, match=r"install rsft-cluster\[cpu\]"):
        type(generator)(generator._policy, compiled=True)


def test_a_process_that_does_not_sample_does_not_import_it():
    code = "import sys, rsft_cluster.cli.app, rsft_cluster.generators.transformers; assert 'numba' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# Norms and gated MLPs

CALM = torch.linspace(-9.0, 9.0, 24)
WILD = torch.tensor([0.0, -0.0, 1e-30, -1e-30, 79.0, -79.0, 120.0, -120.0, 3e38, -3e38, torch.inf, torch.nan])


class MLP(torch.nn.Module):
    def __init__(self, act=torch.nn.SiLU, *, bias=(False, False), factor=1.0):
        super().__init__()
        self.gate_proj, self.up_proj = (torch.nn.Linear(16, 40, bias=has_bias) for has_bias in bias)
        self.down_proj, self.act_fn = torch.nn.Linear(40, 16), act()
        self.factor = factor

    def forward(self, inputs):
        return self.down_proj(self.act_fn(self.gate_proj(inputs)) * self.up_proj(inputs)) * self.factor


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma2", "gpt2"])
def test_layers_that_answer_alike_are_compiled(family, dtype, tmp_path):
    generator = models.load_family(family, tmp_path)
    model = type(generator)(generator._policy, engine="batches").model.to(dtype)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            torch.nn.init.uniform_(module.weight, -1.0, 2.0, generator=torch.Generator().manual_seed(3))
    ids = torch.arange(3, 11)[None]
    with torch.inference_mode():
        expected = model(ids).logits
        found = compile_layers(model)
        given = model(ids).logits
    num_layers = model.config.num_hidden_layers
    # Gemma's weights of norms are what is added to 1, and its gates are no silu.
    assert found == {"llama": 3 * num_layers + 1, "qwen3": 5 * num_layers + 1}.get(family, 0)
    torch.testing.assert_close(given, expected, atol=1e-5 if dtype == torch.float32 else 0.0, rtol=1e-5)


def test_a_norm_in_name_alone_stays():
    class OtherRMSNorm(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.eps = torch.nn.Parameter(torch.ones(16)), 1e-6

        def forward(self, inputs):
            return self.weight * inputs * torch.rsqrt(inputs.pow(2).mean(-1, keepdim=True) * 1.01 + self.eps)

    assert compile_layers(torch.nn.Sequential(OtherRMSNorm())) == 0


@pytest.mark.parametrize("bias", [(False, False), (True, False), (True, True)])
def test_gate_and_up_become_one_product(bias):
    model = torch.nn.Sequential(MLP(bias=bias))
    inputs = torch.randn(3, 16)
    with torch.inference_mode():
        expected = model(inputs)
        assert compile_layers(model) == 1
        torch.testing.assert_close(model(inputs), expected, atol=1e-6, rtol=1e-6)
    assert sum(p.numel() for p in model.parameters() if p.dim() == 2) == 3 * 16 * 40


@pytest.mark.parametrize("threads", [2, 3, 7])
def test_any_number_of_threads_gates_all_rows(threads, monkeypatch):
    model = torch.nn.Sequential(MLP())
    inputs = torch.randn(5, 16)
    with torch.inference_mode():
        assert compile_layers(model) == 1
        expected = model(inputs)
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        monkeypatch.setattr(layers, "PART", 1)
        assert torch.equal(model(inputs), expected)


@pytest.mark.parametrize("other", [{"act": torch.nn.GELU}, {"factor": 1.5}])
def test_an_mlp_that_is_made_in_another_way_stays(other):
    assert compile_layers(torch.nn.Sequential(MLP(**other))) == 0


@pytest.mark.parametrize("values", [CALM, WILD], ids=["calm", "wild"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gates_are_what_torch_makes_them(dtype, values):
    gates, ups = values.to(dtype), torch.linspace(-2.0, 3.0, len(values)).to(dtype)
    rows = torch.cat([gates, ups])[None].repeat(3, 1)
    found = torch.empty(3, len(values), dtype=dtype)
    kernel_for(dtype).gate(compiled.as_array(rows), compiled.as_array(found))
    expected = (torch.nn.functional.silu(gates.double()).to(dtype) * ups).expand(3, -1)
    exactness = 1e-6 if dtype == torch.float32 else 2.0**-7
    # Far below 0 a silu is no normal float.
    far = gates < -75.0
    torch.testing.assert_close(found[:, ~far], expected[:, ~far], atol=0.0, rtol=exactness, equal_nan=True)
    assert (found[:, far].abs() < 1e-30).all()


def test_what_is_compiled_is_compiled_anew_when_a_module_of_its_changes():
    kernel_for(torch.float32)
    functions: tuple[Any, ...] = (cpu_kernels.attend, cpu_kernels.rms_norm, cpu_kernels.gate)
    for function in functions:
        own, helpers = function._cache._cache_file._source_stamp
        assert own == function._cache._impl.locator.get_source_stamp()
        assert helpers == Path(vectors.__file__).read_bytes()


def test_other_types_are_left_to_torch():
    assert kernel_for(torch.float16) is None
    assert set(compiled.STORED_AS) == {torch.float32, torch.bfloat16}

"""What only a GPU shows: recorded steps, bfloat16, speed, a round. `make test-gpu`; skips where there is none."""

import statistics
import time
from dataclasses import replace

import models
import pytest
import torch
from running import begin, finish, write_config
from test_engine import AROUND_A_BLOCK, ENGINE_FAMILIES, LONG, engine_of, letters
from test_generators import drawn, keys_of
from transformers import GenerationConfig, Qwen2Config

from rsft_cluster.generators.base import Decoding
from rsft_cluster.generators.engine.steps import GraphSteps
from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.policies.spec import PolicySpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA GPU"),
]


def on_gpu(folder, **policy):
    return TransformersGenerator(PolicySpec(str(folder), device="cuda", **policy))


@pytest.mark.parametrize("family", ENGINE_FAMILIES)
def test_recorded_steps_draw_what_one_row_at_a_time_draws_in_float32(family, tmp_path):
    on_cpu = models.load_family(family, tmp_path, num_context_tokens=128)
    attention = "eager" if family in models.EAGER else "sdpa"
    generator = on_gpu(tmp_path, attention=attention)
    assert isinstance(engine_of(generator).steps, GraphSteps)
    prompts = letters(*AROUND_A_BLOCK)
    keys = keys_of(prompts, 3)
    expected = drawn(on_cpu, prompts, LONG, keys)
    for num_rows in (4, 15, 64):
        found = drawn(generator, prompts, replace(LONG, batch_size=num_rows), keys)
        same = sum(found[place] == expected[place] for place in expected)
        assert same >= len(expected) - 1  # another device may round a draw to the other side of a tie


@pytest.fixture(scope="module")
def half_billion(tmp_path_factory):
    """A model of Qwen2.5-0.5B's shape, with random weights."""
    folder = tmp_path_factory.mktemp("half")
    config = Qwen2Config(
        vocab_size=151_936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True, pad_token_id=0, eos_token_id=2,
    )  # fmt: skip
    models.save(folder, config, models.tokenizer(), max_parameters=10**9, dtype=torch.bfloat16)
    return folder


ENDS = tuple(range(3, 3 + 151_936 // 128))
"""About one token in 128 ends an answer: lengths vary as geometric ones do."""
SHARE = {"workers": 1, "num_gpus": 0.5}
DECODING = Decoding(max_tokens=512, batch_size=256, stop_token_ids=ENDS)


def bytes_of(generator, prompts, keys):
    out = generator.generate(prompts, DECODING, keys)
    return sorted((c.prompt, c.index, c.token_ids, c.logprob, c.target_logprob) for c in out)


def test_the_same_unit_gives_the_same_bytes_in_bfloat16(half_billion):
    prompts = letters(*[60, 90, 120] * 12)
    keys = keys_of(prompts, 8)
    first = bytes_of(on_gpu(half_billion, dtype="bfloat16"), prompts, keys)
    again = on_gpu(half_billion, dtype="bfloat16")
    assert bytes_of(again, prompts, keys) == first
    bytes_of(again, prompts[5:9], keys[5:9])
    assert bytes_of(again, prompts, keys) == first


def test_five_times_the_tokens_of_batched_generate(half_billion):
    prompts = letters(*[60, 90, 120] * 32)
    keys = keys_of(prompts, 8)
    ours = on_gpu(half_billion, dtype="bfloat16")
    theirs = TransformersGenerator(PolicySpec(str(half_billion), device="cuda", dtype="bfloat16"), engine="batches")
    config = GenerationConfig(
        do_sample=True, top_k=0, max_new_tokens=DECODING.max_tokens, num_return_sequences=8, pad_token_id=0,
        eos_token_id=[2, *ENDS],
    )  # fmt: skip

    def generate():
        ids = [theirs.tokenizer(p.messages[0].content)["input_ids"] for p in prompts[:32]]
        width = max(map(len, ids))
        padded = torch.tensor([[0] * (width - len(row)) + row for row in ids], device="cuda")
        with torch.inference_mode():
            out = theirs.model.generate(padded, attention_mask=(padded != 0).long(), generation_config=config)
        ended = torch.isin(out[:, width:], torch.tensor([2, *ENDS], device="cuda"))
        return int((ended.long().cumsum(1) - ended.long() == 0).sum())

    def rate(run):
        torch.cuda.synchronize()
        began = time.perf_counter()
        tokens = run()
        torch.cuda.synchronize()
        return tokens / (time.perf_counter() - began)

    def engine():
        return sum(len(c.token_ids) for c in ours.generate(prompts, DECODING, keys))

    engine(), generate()
    ratio = statistics.median(rate(engine) / rate(generate) for _ in range(3))
    print(f"\n{torch.cuda.get_device_name()}: {rate(engine):,.0f} tokens/s, {ratio:.1f} x batched generate")
    assert ratio >= 5


def test_a_small_round_on_the_gpu(tmp_path):
    shares = {f"{stage}__{what}": value for stage in ("sampling", "training") for what, value in SHARE.items()}
    start, first = finish(begin(write_config(tmp_path, "gpu", **shares)))
    assert start["stage"] == first["stage"] == "done"
    assert first["num_accepted"] > 0

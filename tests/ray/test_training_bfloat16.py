"""Training in bfloat16: like a plain loop with float32 masters, from one training to the next; and what ends it.

The yardstick runs in this process, one example at a time.
"""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import ray
import torch
from models import EOS, tiny_llama
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsft_cluster.config import Plugin, TrainingConfig
from rsft_cluster.errors import StageError, StoreError
from rsft_cluster.policies.references import MASTER, folder_digest, master_of
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.records import PolicyRef
from rsft_cluster.schemas import ACCEPTED, candidate_id, rows_to_table
from rsft_cluster.training.batches import DataOrder, denominator, load_examples
from rsft_cluster.training.job import TrainingJob
from rsft_cluster.training.losses import learning_rate
from rsft_cluster.training.trainer import fine_tune

pytestmark = pytest.mark.ray

CONFIG = TrainingConfig(steps=6, batch_size=5, micro_batch_size=2, learning_rate=2e-3, warmup_steps=2)
SEED = 3


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    home = os.environ.get("HOME")
    own = tmp_path_factory.getbasetemp() / "home"  # Ray writes an access token there, once a process
    own.mkdir(exist_ok=True)
    os.environ["HOME"] = str(own)
    tests = {"env_vars": {"PYTHONPATH": str(Path(__file__).resolve().parent.parent)}}
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, runtime_env=tests)
    yield
    ray.shutdown()
    if home is not None:
        os.environ["HOME"] = home


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    return PolicySpec(tiny_llama(tmp_path_factory.mktemp("policy"), scale=0.2), dtype="bfloat16")


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> str:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        prompt = chr(65 + i) * int(rng.integers(1, 8))
        token_ids = [int(t) for t in rng.integers(3, 90, rng.integers(1, 9))]
        rows.append({
            "candidate_id": candidate_id(prompt, 1, 0), "prompt_id": prompt, "round": 1,
            "prompt_token_ids": [1, *(3 + ord(c) % 90 for c in prompt)], "token_ids": [*token_ids, EOS],
            "messages": [{"role": "raw", "content": prompt}], "score": 1.0, "weight": 1.0,
        })  # fmt: skip
    path = tmp_path_factory.mktemp("accepted") / "a.parquet"
    pq.write_table(rows_to_table(rows, ACCEPTED), path)
    return str(path)


def job(folder: Path, policy: PolicySpec, accepted: str, config: TrainingConfig) -> TrainingJob:
    return TrainingJob(
        name="training", policy=policy, examples=(accepted,), replay=None, config=config, seed=SEED,
        output_uri=str(folder / "model"), storage_uri=str(folder / "state"),
    )  # fmt: skip


def plain_losses(policy: PolicySpec, accepted: str) -> list[float]:
    """Return the losses of the same training in plain PyTorch: a model in bfloat16, master weights in float32."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.bfloat16)
    stored = AutoModelForCausalLM.from_pretrained(policy.model, dtype=torch.float32)
    masters = [p.detach().clone().requires_grad_() for p in stored.parameters()]
    optimizer = torch.optim.AdamW(masters, betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    examples = load_examples([accepted], per_prompt=True)
    order = DataOrder(len(examples), CONFIG.batch_size, SEED)
    losses = []
    for step in range(CONFIG.steps or 0):
        batch, whole = [examples[i] for i in order.batch_indices(step)], 0.0
        for master in masters:
            master.grad = torch.zeros_like(master)
        for e in batch:
            ids = torch.tensor([*e.prompt_ids, *e.completion_ids], dtype=torch.long)
            logits = model(input_ids=ids[None, :-1]).logits[0, len(e.prompt_ids) - 1 :].float()
            loss = torch.nn.functional.cross_entropy(logits, torch.tensor(e.completion_ids).long(), reduction="sum")
            loss = e.weight * loss / denominator(batch)
            loss.backward()
            whole += loss.item()
            for master, p in zip(masters, model.parameters(), strict=True):
                assert master.grad is not None
                if p.grad is not None:
                    master.grad += p.grad.float()
            model.zero_grad()
        torch.nn.utils.clip_grad_norm_(masters, CONFIG.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(CONFIG, step, CONFIG.steps or 0)
        optimizer.step()
        with torch.no_grad():
            for master, p in zip(masters, model.parameters(), strict=True):
                p.copy_(master)
        losses.append(whole)
    return losses


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2])
def test_every_stage_trains_in_bfloat16_like_a_plain_loop_with_float32_masters(
    tmp_path, policy, accepted, stage, workers
):
    config = CONFIG.model_copy(update={"zero_stage": stage, "workers": workers})
    outcome = fine_tune(job(tmp_path, policy, accepted, config))
    np.testing.assert_allclose([m.loss for m in outcome.metrics], plain_losses(policy, accepted), rtol=1e-3)
    rounded, whole = weights(tmp_path / "model"), weights(tmp_path / "model" / MASTER)
    for name, weight in whole.items():
        assert (weight.dtype, rounded[name].dtype) == (torch.float32, torch.bfloat16)
        assert torch.equal(weight.bfloat16(), rounded[name])


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("stage", [0, 3])
def test_two_trainings_one_after_the_other_go_as_far_as_one_of_their_length(tmp_path, policy, accepted, stage):
    small = {"learning_rate": 1e-6, "warmup_steps": 0, "schedule": "constant", "batch_size": 12, "zero_stage": stage}
    half, full = (CONFIG.model_copy(update={**small, "steps": steps}) for steps in (20, 40))
    templated = replace(policy, chat_template="{{ messages[0].content }} 3")
    fine_tune(job(tmp_path / "first", templated, accepted, half))
    first = PolicyRef(name="first", uri=str(tmp_path / "first" / "model"), digest="")
    second = replace(policy, model=first.uri, master=master_of(first))
    fine_tune(job(tmp_path / "second", second, accepted, half))
    fine_tune(job(tmp_path / "whole", policy, accepted, full))
    start = {k: v.float() for k, v in weights(Path(policy.model)).items()}
    chained, once = (weights(tmp_path / name / "model" / MASTER) for name in ("second", "whole"))
    apart = sum(float((chained[k] - once[k]).square().sum()) for k in start) ** 0.5
    update = sum(float((once[k] - start[k]).square().sum()) for k in start) ** 0.5
    assert 0 < apart < 0.05 * update

    for folder in (Path(first.uri), Path(first.uri) / MASTER):
        assert AutoTokenizer.from_pretrained(folder).chat_template == templated.chat_template
    (Path(first.uri) / MASTER / "config.json").write_text("{}")
    with pytest.raises(StoreError, match="these are not the float32 weights of first"):
        master_of(first)


def test_a_model_whose_float32_weights_are_not_kept_has_none(tmp_path, policy, accepted):
    config = CONFIG.model_copy(update={"ema_decay": 0.5})
    fine_tune(replace(job(tmp_path, policy, accepted, config), keeps_master=False))
    ref = PolicyRef(name="first", uri=str(tmp_path / "model"), digest=folder_digest(str(tmp_path / "model")))
    assert master_of(ref) is None
    assert {w.dtype for w in weights(tmp_path / "model").values()} == {torch.bfloat16}


def test_what_ran_out_of_memory_ends_at_once_and_goes_on_with_smaller_passes(tmp_path, policy, accepted):
    greedy = Plugin(use="loss_terms:Greedy", params={"marks": str(tmp_path / "marks")})
    config = CONFIG.model_copy(update={"terms": (greedy,), "workers": 2})
    start = job(tmp_path, replace(policy, dtype="float32"), accepted, config)
    with pytest.raises(StageError, match=r"out of memory: CUDA.*Set training.micro_batch_size: 1 or .*start it again"):
        fine_tune(start)
    assert 1 <= len((tmp_path / "marks").read_text().split()) <= 2
    outcome = fine_tune(replace(start, config=config.model_copy(update={"micro_batch_size": 1})))
    assert outcome.num_steps == 6


def test_what_an_engine_refuses_is_told_at_once(tmp_path, policy, accepted):
    params = {"marks": str(tmp_path / "marks"), "refuses": True}
    config = CONFIG.model_copy(update={"terms": (Plugin(use="loss_terms:Greedy", params=params),)})
    with pytest.raises(StageError, match="training cannot go on: NotImplementedError: unsupported mix of dtypes"):
        fine_tune(job(tmp_path, policy, accepted, config))
    assert len((tmp_path / "marks").read_text().split()) == 1


def test_a_checkpoint_of_another_stage_is_begun_anew_and_one_of_other_passes_is_gone_on_from(
    tmp_path, policy, accepted
):
    config = CONFIG.model_copy(update={"checkpoint_every": 2})
    outcomes = [
        fine_tune(job(tmp_path, policy, accepted, config.model_copy(update=more)))
        for more in ({}, {"micro_batch_size": 5, "gradient_checkpointing": True}, {"zero_stage": 2})
    ]
    assert [o.resumed_at for o in outcomes] == [0, 4, 0]
    for other in outcomes[1:]:
        np.testing.assert_allclose([m.loss for m in other.metrics], [m.loss for m in outcomes[0].metrics], rtol=1e-3)

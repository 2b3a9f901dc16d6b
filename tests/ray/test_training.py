"""Training on a local Ray cluster: exact at every ZeRO stage, resumed after a kill, honest about divergence.

The yardstick is a training in plain PyTorch in this process: one example at a time, no padding, no engine.
"""

import json
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet as pq
import pytest
import ray
import torch
from judging import judged, verdict, write
from models import EOS, tiny_gpt2, tiny_llama
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

from rsft_cluster.config import Plugin, TrainingConfig, UnlearningConfig
from rsft_cluster.errors import ConfigError, DivergedError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import ACCEPTED, candidate_id, rows_to_table
from rsft_cluster.training.batches import DataOrder, Example, denominator, load_examples
from rsft_cluster.training.deepspeed_engine import deepspeed_settings
from rsft_cluster.training.job import TrainingJob, TrainingOutcome
from rsft_cluster.training.losses import learning_rate
from rsft_cluster.training.rejected import Rejected, load_rejected
from rsft_cluster.training.trainer import fine_tune

pytestmark = pytest.mark.ray

# Batches of 5 in passes of 2 on 2 workers: one worker has two passes, the other one and an empty one. The
# 24 steps pass several epochs, so that a batch may hold an example twice.
CONFIG = TrainingConfig(
    steps=24, batch_size=5, micro_batch_size=2, learning_rate=2e-3, warmup_steps=3, weight_decay=0.01,
    workers=2, checkpoint_every=8,
)  # fmt: skip
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
    generation = {"eos_token_id": [EOS, 7], "temperature": 0.3}
    return PolicySpec(tiny_llama(tmp_path_factory.mktemp("policy"), scale=0.2, generation_config=generation))


def row(prompt: str, token_ids: list[int], index: int) -> dict[str, object]:
    prompt_token_ids = [1, *(3 + ord(c) % 90 for c in prompt)]
    return {
        "candidate_id": candidate_id(prompt, 1, index), "prompt_id": prompt, "round": 1,
        "prompt_token_ids": prompt_token_ids, "token_ids": token_ids,
        "messages": [{"role": "raw", "content": prompt}], "score": 1.0, "weight": 1.0,
    }  # fmt: skip


@pytest.fixture(scope="module")
def accepted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Samples of lengths 2 to 9 for prompts of lengths 2 to 8, one to three a prompt."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(12):
        prompt = chr(65 + i) * int(rng.integers(1, 8))
        for j in range(int(rng.integers(1, 4))):
            token_ids = [int(t) for t in rng.integers(3, 90, rng.integers(1, 9))]
            rows.append(row(prompt, [*token_ids, EOS], j))
    path = tmp_path_factory.mktemp("accepted") / "a.parquet"
    pq.write_table(rows_to_table(rows, ACCEPTED), path)
    return str(path)


def job(folder: Path, policy: PolicySpec, accepted: str, config: TrainingConfig, **more: object) -> TrainingJob:
    return TrainingJob(
        name=str(more.get("name", "training")), policy=policy, examples=(accepted,), replay=None, config=config,
        seed=SEED, output_uri=str(folder / "model"), storage_uri=str(folder / "state"),
    )  # fmt: skip


MoreLoss = Callable[[torch.nn.Module, int, list[Example]], Tensor]
"""What other terms add to the loss of a step over its batch."""


@cache
def plain_training(
    model_folder: str, accepted: str, num_steps: int, more: MoreLoss | None = None
) -> tuple[list[tuple[float, float]], list[dict[str, Tensor]]]:
    """Return the losses and gradient norms, and the weights after each step, of the same training in plain PyTorch."""
    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), betas=CONFIG.betas, weight_decay=CONFIG.weight_decay)
    examples = load_examples([accepted], per_prompt=True)
    order = DataOrder(len(examples), CONFIG.batch_size, SEED)
    steps, weights = [], []
    for step in range(num_steps):
        batch = [examples[i] for i in order.batch_indices(step)]
        loss = torch.stack([e.weight * nll(model, e) for e in batch]).sum() / denominator(batch)
        loss += more(model, step, batch) if more else 0.0
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), CONFIG.max_grad_norm)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(CONFIG, step, num_steps)
        optimizer.step()
        steps.append((loss.item(), norm.item()))
        weights.append({name: weight.clone() for name, weight in model.state_dict().items()})
    return steps, weights


def logits_of(model: torch.nn.Module, example: Example) -> Tensor:
    ids = torch.tensor([*example.prompt_ids, *example.completion_ids], dtype=torch.long)
    return model(input_ids=ids[None, :-1]).logits[0, len(example.prompt_ids) - 1 :]


def nll(model: torch.nn.Module, example: Example) -> Tensor:
    return cross_entropy(logits_of(model, example), torch.tensor(example.completion_ids).long(), reduction="sum")


def assert_like_plain_training(outcome: TrainingOutcome, done: TrainingJob, more: MoreLoss | None = None) -> None:
    steps, history = plain_training(done.policy.model, done.examples[0], outcome.num_steps, more)
    ages = range(outcome.num_steps - 1, -1, -1)
    shares = torch.tensor([done.config.ema_decay**age for age in ages])
    weights = {
        name: torch.stack([share * step[name] for share, step in zip(shares / shares.sum(), history, strict=True)]).sum(
            0
        )
        for name in history[0]
    }
    assert [m.step for m in outcome.metrics] == list(range(1, outcome.num_steps + 1))
    # float32: sums in another order differ in the seventh digit, and Adam's division makes that the fifth.
    np.testing.assert_allclose([(m.loss, m.grad_norm) for m in outcome.metrics], steps, rtol=5e-4)
    found = load_file(Path(done.output_uri) / "model.safetensors")
    assert set(found) == set(weights)
    for name, weight in found.items():
        torch.testing.assert_close(weight, weights[name], rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(("stage", "workers"), [(0, 1), (0, 2), (1, 2), (2, 2), (3, 2)])
def test_every_stage_and_number_of_workers_trains_like_plain_pytorch(tmp_path, policy, accepted, stage, workers):
    config = CONFIG.model_copy(update={"zero_stage": stage, "workers": workers})
    outcome = fine_tune(start := job(tmp_path, policy, accepted, config))
    assert_like_plain_training(outcome, start)
    assert (outcome.num_steps, outcome.num_workers, outcome.zero_stage) == (24, workers, stage)
    assert (outcome.first_loss, outcome.final_loss) == (outcome.metrics[0].loss, outcome.metrics[-1].loss)
    lines = (tmp_path / "state" / f"training-w{workers}" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == list(range(1, 25))
    for name in ("tokenizer.json", "generation_config.json", "chat_template.jinja"):
        assert (tmp_path / "model" / name).read_bytes() == (Path(policy.model) / name).read_bytes()


TERMS = CONFIG.model_copy(
    update={
        "rejection": UnlearningConfig(weight=0.3, batch_size=3), "kl_weight": 0.5, "ema_decay": 0.8,
        "unlikelihood": UnlearningConfig(weight=0.2, batch_size=4),
    }
)  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> PolicySpec:
    return PolicySpec(tiny_llama(tmp_path_factory.mktemp("base"), scale=0.2, seed=1))


@pytest.fixture(scope="module")
def rejected(tmp_path_factory: pytest.TempPathFactory, policy: PolicySpec) -> tuple[str, str]:
    """Ten rejected candidates, two of three with a fatal character, drawn with nearly what the policy gives them."""
    rng = np.random.default_rng(1)
    model = AutoModelForCausalLM.from_pretrained(policy.model)
    rows = []
    for i in range(10):
        prompt, token_ids = f"prompt {i % 4}", [int(t) for t in rng.integers(3, 90, rng.integers(2, 9))]
        drawn = Example(np.array([1, *prompt.encode()], np.int32), np.array(token_ids, np.int32), 1.0)
        logprob = -float(nll(model, drawn).detach()) + float(rng.uniform(-0.3, 0.3))
        said = verdict(passed=False, fatal_at=int(rng.integers(len(token_ids))) if i % 3 else None)
        rows.append(judged(prompt, token_ids, said, index=i, logprob=logprob))
    return write(tmp_path_factory.mktemp("rejected"), rows)


class PlainTerms:
    """The terms of TERMS, one example at a time and by their definitions."""

    def __init__(self, files: tuple[str, str], base: PolicySpec) -> None:
        self._base = AutoModelForCausalLM.from_pretrained(base.model)
        self._rejected = load_rejected([files], per_prompt=True)
        self._fatal = [r for r in self._rejected if r.fatal_at is not None]

    def __call__(self, model: torch.nn.Module, step: int, batch: list[Example]) -> Tensor:
        rejection = torch.stack([r.example.weight * self._tapered(model, r.example) for r in self._of(3, step)])
        num_tokens = sum(r.example.weight * len(r.example.completion_ids) for r in self._of(3, step))
        fatal = torch.stack([r.example.weight * self._unlikelihood(model, r) for r in self._of(4, step)])
        num_fatal = sum(r.example.weight for r in self._of(4, step))
        kl = torch.stack([e.weight * self._kl(model, e) for e in batch]).sum() / denominator(batch)
        return 0.3 * rejection.sum() / num_tokens + 0.2 * fatal.sum() / num_fatal + 0.5 * kl

    def _of(self, size: int, step: int) -> list[Rejected]:
        source = self._rejected if size == 3 else self._fatal
        return [source[i] for i in DataOrder(len(source), size, SEED).batch_indices(step)]

    def _tapered(self, model: torch.nn.Module, example: Example) -> Tensor:
        logprob = -nll(model, example)
        return min(1.0, math.exp(logprob.item() - example.logprob)) * logprob

    def _unlikelihood(self, model: torch.nn.Module, one: Rejected) -> Tensor:
        # A token is a character here.
        assert one.fatal_at is not None
        probabilities = logits_of(model, one.example)[one.fatal_at].softmax(0)
        return -torch.log(1 - probabilities[one.example.completion_ids[one.fatal_at]])

    def _kl(self, model: torch.nn.Module, example: Example) -> Tensor:
        own, other = (logits_of(m, example).log_softmax(1) for m in (model, self._base))
        return (own.exp() * (own - other.detach())).sum()


@pytest.mark.parametrize(("stage", "workers"), [(0, 1), (2, 2)])
def test_every_term_of_the_loss_is_exact_and_survives_a_restart(
    tmp_path, policy, accepted, base, rejected, stage, workers
):
    config = TERMS.model_copy(update={"zero_stage": stage, "workers": workers})
    start = replace(job(tmp_path, policy, accepted, config), judged=(rejected,), base=base)
    more = PlainTerms(rejected, base)
    outcome = fine_tune(start)
    assert_like_plain_training(outcome, start, more)
    first, loss = outcome.metrics[0].terms, outcome.metrics[0].loss
    assert loss == pytest.approx(
        first["nll"] + 0.3 * first["rejection"] + 0.2 * first["unlikelihood"] + 0.5 * first["kl"]
    )
    assert first["rejection"] < 0 < min(first["nll"], first["unlikelihood"], first["kl"])
    again = fine_tune(start)
    assert again.resumed_at == 16
    assert_like_plain_training(again, start, more)


def test_a_term_of_a_users_is_one_class_and_exact(tmp_path, policy, accepted):
    config = CONFIG.model_copy(update={"terms": (Plugin(use="loss_terms:Confidence", params={"weight": 0.3}),)})

    def confidence(model: torch.nn.Module, _step: int, batch: list[Example]) -> Tensor:
        values = [e.weight * -logits_of(model, e).log_softmax(1).max(1).values.sum() for e in batch]
        return 0.3 * torch.stack(values).sum() / denominator(batch)

    done = job(tmp_path, policy, accepted, config)
    outcome = fine_tune(done)
    assert_like_plain_training(outcome, done, confidence)
    first = outcome.to_rows()[0]
    assert first["loss"] == pytest.approx(first["nll"] + 0.3 * first["confidence"])
    assert (first["rejection"], first["unlikelihood"], first["kl"]) == (0, 0, 0)


def test_noise_on_embeddings_is_felt_and_the_same_in_every_attempt(tmp_path, policy, accepted):
    config = CONFIG.model_copy(update={"neftune_alpha": 5.0, "workers": 1, "steps": 4})
    one, two = (fine_tune(job(tmp_path / name, policy, accepted, config)) for name in "ab")
    assert one.metrics == two.metrics
    steps, _ = plain_training(policy.model, accepted, 4)
    assert all(abs(m.loss / loss - 1) > 1e-3 for m, (loss, _) in zip(one.metrics, steps, strict=True))


def kill_a_worker_after_a_checkpoint(state: Path, killed: list[int]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not killed:
        snapshots = [p.read_text() for p in state.glob("*/checkpoint_manager_snapshot.json")]
        if any("checkpoint_dir_name" in text for text in snapshots):
            processes = psutil.Process().children(recursive=True)
            killed.append(max(p.pid for p in processes if p.name().startswith("ray::RayTrain")))
            os.kill(killed[0], signal.SIGKILL)
        time.sleep(0.01)


def test_a_killed_worker_costs_only_the_steps_since_the_checkpoint(tmp_path, policy, accepted):
    config = CONFIG.model_copy(update={"zero_stage": 2, "steps": 80})
    killed: list[int] = []
    killer = threading.Thread(target=kill_a_worker_after_a_checkpoint, args=(tmp_path / "state", killed))
    killer.start()
    outcome = fine_tune(start := job(tmp_path, policy, accepted, config))
    killer.join()
    assert len(killed) == 1
    assert outcome.resumed_at > 0
    assert outcome.resumed_at % 8 == 0
    assert_like_plain_training(outcome, start)


def test_deepspeed_options_are_merged_deeply():
    options = {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}, "wall_clock_breakdown": True}
    settings = deepspeed_settings(TrainingConfig(deepspeed=options, zero_stage=2), "bfloat16")
    assert settings["zero_optimization"]["stage"] == 2
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert (settings["gradient_accumulation_steps"], settings["bf16"]) == (2, {"enabled": True})


def test_a_policy_that_gives_nan_is_divergence_and_leaves_no_model(tmp_path, policy, accepted):
    model = AutoModelForCausalLM.from_pretrained(policy.model)
    model.get_input_embeddings().weight.data[1] = float("nan")
    model.save_pretrained(tmp_path / "poisoned")
    poisoned = PolicySpec(str(tmp_path / "poisoned"))
    interrupt = signal.getsignal(signal.SIGINT)
    with pytest.raises(DivergedError, match="step 1: the loss is nan"):
        fine_tune(job(tmp_path, poisoned, accepted, CONFIG.model_copy(update={"workers": 1})))
    assert not (tmp_path / "model").exists()
    assert signal.getsignal(signal.SIGINT) is interrupt


def test_short_answers_are_learned_with_their_end_and_a_finished_training_can_be_repeated(tmp_path):
    alphabet = "0123456789+="
    policy = PolicySpec(tiny_gpt2(tmp_path / "policy", alphabet=alphabet, scale=0.1, adds_bos=True))
    tokens = AutoTokenizer.from_pretrained(policy.model)
    answers = {f"{a}+{b}=": str(a + b) for a in range(3) for b in range(4)}
    rows = []
    for i, (question, answer) in enumerate(answers.items()):
        ids = [*tokens(answer, add_special_tokens=False)["input_ids"], EOS]
        rows.append(row(question, ids, i) | {"prompt_token_ids": tokens(question)["input_ids"]})
    pq.write_table(rows_to_table(rows[:8], ACCEPTED), tmp_path / "a.parquet")
    replay = [{"prompt": q, "completion": a} for q, a in list(answers.items())[8:]]
    (tmp_path / "replay.jsonl").write_text("".join(json.dumps(r) + "\n" for r in replay))
    config = TrainingConfig(steps=120, batch_size=12, learning_rate=1e-2, zero_stage=3, warmup_steps=5)
    start = TrainingJob(
        "answers", policy, (str(tmp_path / "a.parquet"),), str(tmp_path / "replay.jsonl"), config, SEED,
        str(tmp_path / "model"), str(tmp_path / "state"),
    )  # fmt: skip
    outcome = fine_tune(start)
    assert (outcome.num_examples, outcome.num_replayed) == (8, 4)
    assert outcome.final_loss < outcome.first_loss / 5

    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert trained.lm_head.weight is trained.transformer.wte.weight
    written = {}
    for question in answers:
        ids = tokens(question, return_tensors="pt")
        output = trained.generate(**ids, max_new_tokens=4, do_sample=False, pad_token_id=0)[0]
        written[question] = output[ids["input_ids"].shape[1] :].tolist()
    assert all(ids[-1] == EOS for ids in written.values())
    assert {q: tokens.decode(ids[:-1]) for q, ids in written.items()} == answers

    again = fine_tune(start)
    assert (again.resumed_at, again.num_steps) == (100, 120)
    assert again.final_loss == pytest.approx(outcome.final_loss, rel=1e-4)
    with pytest.raises(ConfigError, match="is a checkpoint of another training"):
        fine_tune(replace(start, config=config.model_copy(update={"learning_rate": 1e-4})))

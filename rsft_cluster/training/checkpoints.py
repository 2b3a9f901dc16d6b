"""Checkpoints to resume from, and the model that a training ends with.

A checkpoint is DeepSpeed's state of every worker plus one marker that says what it belongs to; Ray Train makes
it visible only when all workers have reported it. The model is written in the Hugging Face layout, from any
ZeRO stage.
"""

import json
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch
from deepspeed import DeepSpeedEngine
from huggingface_hub import snapshot_download
from ray.train.torch import get_device
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rsft_cluster.config import TrainingConfig, is_operational
from rsft_cluster.errors import ConfigError, DivergedError
from rsft_cluster.policies.references import MASTER, MASTER_DIGEST, folder_digest
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import digest
from rsft_cluster.store import upload_folder
from rsft_cluster.training.averaging import WeightAverage
from rsft_cluster.training.job import StepMetrics, TrainingJob
from rsft_cluster.training.masters import full_weights

MARKER = "rsft_progress.json"
TAG = "state"

COMPANIONS = (
    "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "spiece.model",
    "sentencepiece*", "*.tiktoken", "chat_template*", "generation_config.json",
)  # fmt: skip
"""Files that go from the starting policy to the trained one byte for byte: both read and write alike."""


@dataclass(frozen=True)
class Progress:
    """How far a training has come, and which training it is."""

    step: int
    """Optimizer steps done."""
    world_size: int
    fingerprint: str
    layout: str
    """Of the state on disk (`state_layout`)."""
    first_loss: float
    last_loss: float
    metrics: tuple[StepMetrics, ...] = ()

    def to_json(self) -> str:
        """Return the marker's text."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> "Progress":
        """Parse the marker's text."""
        fields = json.loads(text)
        return cls(**{**fields, "metrics": tuple(StepMetrics(**m) for m in fields["metrics"])})


def fingerprint(job: TrainingJob, examples_digest: str) -> str:
    """Return a digest of all that shapes the result but for the workers: equal, or no resuming."""
    settings = job.config.model_dump(mode="json")
    shaping = {k: v for k, v in settings.items() if not is_operational(f"training.{k}")}
    # Not the policy's path: a store may move between two attempts.
    policy = (job.policy.name, job.policy.revision, job.policy.dtype, job.policy.attention)
    base = job.base and (job.base.name, job.base.revision)
    return digest(shaping, job.seed, examples_digest, policy, base)


def state_layout(config: TrainingConfig) -> str:
    """Return a digest of what the state on disk is laid out by: a training does not go on from another layout."""
    return digest(config.zero_stage, config.deepspeed)


def save_progress(engine: DeepSpeedEngine, progress: Progress, average: WeightAverage | None) -> None:
    """Save a checkpoint. Every worker must call it after the same step; it waits for all of them.

    Rank 0 brings the mean of the weights, where there is one.
    """
    with tempfile.TemporaryDirectory(prefix="rsft-checkpoint-") as folder:
        engine.save_checkpoint(folder, tag=TAG)
        if engine.global_rank == 0:
            Path(folder, MARKER).write_text(progress.to_json(), encoding="utf-8")
        if average is not None:
            average.save(Path(folder))
        seen = {"step": progress.step, "loss": progress.last_loss}
        ray.train.report(seen, checkpoint=ray.train.Checkpoint.from_directory(folder))


def load_progress(engine: DeepSpeedEngine, fresh: Progress, average: WeightAverage | None) -> Progress:
    """Continue from the newest whole checkpoint with the mean of the weights that it holds; return how far it is.

    `fresh` is the progress of a training that begins; so does one whose checkpoint has another layout. Raises
    ConfigError for a checkpoint of another training under the same name.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return fresh
    with checkpoint.as_directory() as folder:
        progress = Progress.from_json(Path(folder, MARKER).read_text(encoding="utf-8"))
        if (progress.fingerprint, progress.world_size) != (fresh.fingerprint, fresh.world_size):
            raise ConfigError(
                f"{checkpoint.path}: is a checkpoint of another training (fingerprint {progress.fingerprint} "
                f"on {progress.world_size} workers; this one is {fresh.fingerprint} on {fresh.world_size}). Its "
                "config, seed, policy or examples differ: remove it, or give this training another name"
            )
        if progress.layout != fresh.layout:
            return fresh
        engine.load_checkpoint(folder, tag=TAG)
        if average is not None:
            average.load(Path(folder), get_device())
    return progress


def export_model(engine: DeepSpeedEngine, job: TrainingJob, average: WeightAverage | None) -> None:
    """Write the trained model to the job's `output_uri`. All workers must call it; rank 0 has weights and mean.

    A model in bfloat16 lies there with its weights in float32 below, where the job keeps them. Raises DivergedError on
    every worker if a weight is not finite.
    """
    model: Any = engine.module
    state = gathered_state(engine, keep=engine.global_rank == 0)
    if engine.global_rank != 0:
        return
    if average is not None:
        state = average.over(state)
    with tempfile.TemporaryDirectory(prefix="rsft-model-") as name:
        folder = Path(name)
        if model.dtype == torch.bfloat16:
            if job.keeps_master:
                save_model(model, state, job.policy, folder / MASTER)
                (folder / MASTER_DIGEST).write_text(folder_digest(str(folder / MASTER)), encoding="utf-8")
            state = {name: tensor.to(torch.bfloat16) for name, tensor in state.items()}
        save_model(model, state, job.policy, folder)
        upload_folder(folder, job.output_uri)


def gathered_state(engine: DeepSpeedEngine, *, keep: bool) -> dict[str, Tensor]:
    """Return whole, finite weights on the CPU, gathered one by one from all workers; empty unless `keep`."""
    state: dict[str, Tensor] = {}
    for name, weight in full_weights(engine):  # names a tied weight once; loading ties it again
        if not bool(torch.isfinite(weight).all()):
            raise DivergedError(f"after training, {name} holds weights that are not finite")
        if keep:
            state[name] = weight.to("cpu", copy=True)
    model: Any = engine.module
    persistent = model.state_dict().keys() if keep else ()
    buffers = {name: b.detach().cpu() for name, b in model.named_buffers() if name in persistent}
    return {**state, **buffers}


def save_model(model: PreTrainedModel, state: dict[str, Tensor], policy: PolicySpec, folder: Path) -> None:
    """Write weights, config and the starting policy's tokenizer and generation settings into a folder.

    The tokenizer is given the chat template that the policy was trained with.
    """
    # The starting policy's own generation_config.json is copied below. transformers refuses to write some of
    # those that it reads, so it gets a plain one to write first.
    model.generation_config = GenerationConfig()
    model.config.use_cache = True
    model.save_pretrained(folder, state_dict=state)
    (folder / "generation_config.json").unlink(missing_ok=True)
    source = Path(policy.model)
    if not source.is_dir():
        wanted = [*COMPANIONS, "*.py"]
        source = Path(snapshot_download(policy.model, revision=policy.revision, allow_patterns=wanted))
    for pattern in (*COMPANIONS, "*.py") if policy.trust_remote_code else COMPANIONS:
        for file in sorted(source.glob(pattern)):
            if file.is_file() and not (folder / file.name).exists():
                shutil.copyfile(file, folder / file.name)
    if policy.chat_template is not None:
        (folder / "chat_template.jinja").write_text(policy.chat_template, encoding="utf-8")

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

import deepspeed
import ray.train
import torch
from deepspeed import DeepSpeedEngine
from huggingface_hub import snapshot_download
from ray.train.torch import get_device
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel

from rsft_cluster.config import is_operational
from rsft_cluster.errors import ConfigError, DivergedError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import digest
from rsft_cluster.store import upload_folder
from rsft_cluster.training.averaging import WeightAverage
from rsft_cluster.training.job import StepMetrics, TrainingJob

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


def load_progress(engine: DeepSpeedEngine, fingerprint: str, average: WeightAverage | None) -> Progress | None:
    """Continue from the newest whole checkpoint, if there is one, and with the mean of the weights that it holds.

    Raises ConfigError for a checkpoint of another training under the same name.
    """
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        progress = Progress.from_json(Path(folder, MARKER).read_text(encoding="utf-8"))
        if (progress.fingerprint, progress.world_size) != (fingerprint, engine.world_size):
            raise ConfigError(
                f"{checkpoint.path}: is a checkpoint of another training (fingerprint {progress.fingerprint} "
                f"on {progress.world_size} workers; this one is {fingerprint} on {engine.world_size}). Its "
                "config, seed, policy or examples differ: remove it, or give this training another name"
            )
        engine.load_checkpoint(folder, tag=TAG)
        if average is not None:
            average.load(Path(folder), get_device())
    return progress


def export_model(engine: DeepSpeedEngine, policy: PolicySpec, output_uri: str, average: WeightAverage | None) -> None:
    """Write the trained model to `output_uri`. Every worker must call it; rank 0 holds the weights, and their mean.

    Raises DivergedError on every worker if a weight is not finite.
    """
    model: Any = engine.module
    state = gathered_state(model, keep=engine.global_rank == 0)
    if engine.global_rank != 0:
        return
    if average is not None:
        state = average.over(state)
    with tempfile.TemporaryDirectory(prefix="rsft-model-") as folder:
        save_model(model, state, policy, Path(folder))
        upload_folder(Path(folder), output_uri)


def gathered_state(model: torch.nn.Module, *, keep: bool) -> dict[str, Tensor]:
    """Return whole, finite weights on the CPU, gathered one by one from all workers; empty unless `keep`."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():  # names a tied weight once; loading ties it again
        with deepspeed.zero.GatheredParameters([parameter]):
            if not bool(torch.isfinite(parameter).all()):
                raise DivergedError(f"after training, {name} holds weights that are not finite")
            if keep:
                state[name] = parameter.detach().to("cpu", copy=True)
    persistent = model.state_dict().keys() if keep else ()
    buffers = {name: b.detach().cpu() for name, b in model.named_buffers() if name in persistent}
    return {**state, **buffers}


def save_model(model: PreTrainedModel, state: dict[str, Tensor], policy: PolicySpec, folder: Path) -> None:
    """Write weights, config and the starting policy's tokenizer and generation settings into a folder."""
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

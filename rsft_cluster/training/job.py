"""What a training is asked to do and what came of it: plain, picklable, without an engine.

The driver fills in a `TrainingJob`; every worker gets the same one; rank 0's `TrainingOutcome` comes back.
"""

import json
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import StoreError
from rsft_cluster.metrics.meter import Meter
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.store import Store


@dataclass(frozen=True)
class TrainingJob:
    """One training: a policy, the examples it learns from, and where the result goes."""

    name: str
    """Unique per run and round, and the same on a retry: Ray Train resumes by it."""
    policy: PolicySpec
    """What to start from. A `model` with a scheme (`s3://...`) is fetched by every node."""
    examples: tuple[str, ...]
    """URIs of Parquet files of ACCEPTED rows. Their order means nothing."""
    replay: str | None
    """JSONL or Parquet file of worked examples, or None."""
    config: TrainingConfig
    seed: int
    output_uri: str
    """Folder that receives the model. It is complete when `fine_tune` returns, not before."""
    storage_uri: str
    """Folder of checkpoints and metrics; of no use once the model is published."""
    judged: tuple[tuple[str, str], ...] = ()
    """URIs of Parquet files of CANDIDATE rows, each with that of their SCORE rows in the same order. They are read
    where the loss has a term over rejected candidates."""
    base: PolicySpec | None = None
    """The policy of round 0, where the loss has a KL to it."""
    keeps_master: bool = True
    """Whether a model in bfloat16 is given its weights in float32 as well, for trainings that go on from it."""
    meter: Meter = field(default_factory=Meter)


@dataclass(frozen=True)
class StepMetrics:
    """One recorded optimizer step, over all workers."""

    step: int
    """Counted from 1."""
    loss: float
    """What is minimised: the NLL, and the other terms times their weights. Nats a token."""
    terms: dict[str, float]
    """The terms by name, unweighted; 0 where one is off."""
    learning_rate: float
    grad_norm: float
    """Before clipping."""
    num_tokens: int
    """Completion tokens of this step's batch."""


@dataclass(frozen=True)
class TrainingOutcome:
    """What a finished training reports."""

    num_examples: int
    """Accepted examples after duplicates were dropped."""
    num_replayed: int
    num_steps: int
    first_loss: float
    final_loss: float
    num_workers: int
    zero_stage: int
    resumed_at: int
    """Steps that the attempt which finished did not have to take."""
    metrics: tuple[StepMetrics, ...]
    """Evenly spaced steps, the first and the last among them."""
    phases: dict[str, float]
    """Seconds of wall time by phase on rank 0, of the attempt that finished."""

    def to_rows(self) -> list[dict[str, float]]:
        """Return the recorded steps as dictionaries, one a line of `metrics.jsonl`; each term has a key of its own."""
        return [{"step": m.step, "loss": m.loss, **m.terms, **_others(m)} for m in self.metrics]


def _others(metrics: StepMetrics) -> dict[str, float]:
    return {name: value for name, value in asdict(metrics).items() if name not in ("step", "loss", "terms")}


TOLD = "progress.json"
TELL_INTERVAL_S = 2.0
"""Seconds between two words of the workers to the driver on how far they are."""


def tell(job: TrainingJob, *, step: int, num_steps: int, loss: float) -> None:
    """Say how far a training is, for whoever shows it."""
    payload = json.dumps({"step": step, "num_steps": num_steps, "loss": loss})
    # A word that comes late, or never, costs a line of progress, and must not cost a step.
    with suppress(StoreError):
        Store(job.storage_uri).within(TELL_INTERVAL_S).write(TOLD, payload.encode())


def told(job: TrainingJob) -> tuple[int, int, float] | None:
    """Return (step, num_steps, loss) as last told, None before the first word."""
    store = Store(job.storage_uri).within(TELL_INTERVAL_S)
    if not store.exists(TOLD):
        return None
    found = json.loads(store.read(TOLD))
    return found["step"], found["num_steps"], found["loss"]

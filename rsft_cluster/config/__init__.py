"""`RunConfig`: one run, typed, frozen, whole; JSON Schema for editors.

Validating fills in every default, so what is stored says everything that will happen. This package knows what a valid
config looks like; files are `config_file.py`, whether plug-ins exist `plugins.py`, whether a cluster can serve it
`cluster.py`.
"""

import json
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from rsft_cluster.config.judging import AcceptanceConfig, FairnessConfig, ScoringConfig
from rsft_cluster.config.nightly import NightlyConfig
from rsft_cluster.config.parts import (
    Constraint,
    ConstraintField,
    Part,
    Plugin,
    PluginField,
    WorkerRange,
    Workers,
    fewest,
    most,
)
from rsft_cluster.config.prompts import Columns, PolicyConfig, PromptsConfig
from rsft_cluster.config.sampling import AdaptiveConfig, BudgetConfig, PilotConfig, SamplingConfig
from rsft_cluster.config.training import TrainingConfig, UnlearningConfig

RUN_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"

__all__ = [
    "OPERATIONAL",
    "RUN_NAME",
    "AcceptanceConfig",
    "AdaptiveConfig",
    "BudgetConfig",
    "ClusterConfig",
    "Columns",
    "Constraint",
    "ConstraintField",
    "ControlsConfig",
    "DriverConfig",
    "EvaluationConfig",
    "FairnessConfig",
    "HealthConfig",
    "NightlyConfig",
    "Part",
    "PilotConfig",
    "Plugin",
    "PluginField",
    "PolicyConfig",
    "PromotionConfig",
    "PromptsConfig",
    "RunConfig",
    "SamplingConfig",
    "ScoringConfig",
    "TrainingConfig",
    "UnlearningConfig",
    "WorkerRange",
    "Workers",
    "fewest",
    "flatten",
    "is_operational",
    "json_schema",
    "most",
]  # fmt: skip


class EvaluationConfig(Part):
    """How policies are compared, on prompts that are never trained on."""

    prompts: PromptsConfig
    """Held-out prompts. Those that also stand among the training prompts are an error."""
    num_samples: int = Field(default=8, ge=1)
    """Sampled completions a prompt, for pass@1 and pass@k."""
    k: int | None = Field(default=None, ge=1)
    """pass@k; by default num_samples."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the sampled completions; one greedy completion comes beside them."""
    workers: int | None = Field(default=None, ge=1)
    """Sampling actors of an evaluation; by default those of `sampling`. Fewer start faster where prompts are few."""

    @model_validator(mode="after")
    def _k_fits(self) -> Self:
        if self.k is not None and self.k > self.num_samples:
            raise ValueError(f"k = {self.k} needs at least so many samples; num_samples is {self.num_samples}")
        return self


class HealthConfig(Part):
    """When a challenger gives alarm."""

    hold_on: tuple[Literal["collapse", "coverage", "length", "repetition"], ...] = ("collapse", "coverage")
    """Alarms that keep the old policy, whatever the promotion rule says. The others are only reported."""
    max_pass_at_k_drop: float = Field(default=0.05, ge=0, le=1)
    """`coverage`: pass@k falls by more than this against the incumbent, though pass@1 does not."""
    max_entropy_drop: float = Field(default=0.5, gt=0, le=1)
    """`collapse`: entropy falls by more than this share of round 0's, and pass@k falls in two rounds running."""
    max_length_change: float = Field(default=1.0, gt=0)
    """`length`: answers are longer than round 0's by more than this share, or shorter by as much the other way."""
    max_distinct_drop: float = Field(default=0.5, gt=0, le=1)
    """`repetition`: distinct-2 falls by more than this share of round 0's."""


class PromotionConfig(Part):
    """When the challenger replaces the incumbent."""

    rule: PluginField = Plugin(use="paired_bootstrap")
    """The promotion rule."""
    health: HealthConfig = HealthConfig()
    """Alarms, and which of them hold a promotion."""


Arm = Literal["random", "sft_only"]


def _arms(value: object) -> object:
    """Take a list for the arms. Behind this the value is Python's and no longer JSON's: a list must be a tuple."""
    given = {"arms": value} if isinstance(value, list) else value
    if isinstance(given, dict) and isinstance(given.get("arms"), list):
        return {**given, "arms": tuple(given["arms"])}
    return given


class ControlsConfig(Part):
    """Arms that are trained beside the challenger, from the same policy in the same steps, and only compared."""

    arms: tuple[Arm, ...] = ()
    """`random` learns from as many candidates, drawn whatever their verdict; `sft_only` only from the replay file."""
    rounds: Literal["first", "all"] = "all"
    """In which rounds."""


ControlsField = Annotated[
    ControlsConfig, BeforeValidator(_arms, json_schema_input_type=tuple[Arm, ...] | ControlsConfig)
]


class DriverConfig(Part):
    """What the driver of a submitted run asks of the node that it runs on.

    If it asks for nothing, it runs on the head. Otherwise Ray places it wherever there is room: on a cluster with nodes
    that may go away, name a resource that only the others have.
    """

    num_cpus: float = Field(default=0, ge=0)
    """CPUs that are its own for as long as the run lasts."""
    memory_bytes: int = Field(default=0, ge=0)
    """Memory that is set aside for it."""
    resources: dict[str, Annotated[float, Field(gt=0)]] = {}
    """Resources of your own naming, as given to `ray start --resources`."""


class ClusterConfig(Part):
    """The Ray cluster that the run works on."""

    address: str | None = None
    """`auto` or host:port joins a cluster; without it a local one is started, or the job's own is used."""
    autoscaling: bool = False
    """The cluster adds nodes on demand. What the run needs is asked for and waited for, instead of being refused. Where
    RSFT_AUTOSCALED stands in the environment, as in our Kubernetes manifests, this holds too."""
    wait_for_nodes_s: float = Field(default=900, gt=0)
    """Seconds to wait for nodes where there is autoscaling."""
    max_idle_passes: int = Field(default=20, ge=1)
    """Passes over unfinished units without one done before the stage gives up."""
    crashes_before_split: int = Field(default=3, ge=1)
    """Crashed attempts at a unit before it is halved; a single prompt is quarantined then."""
    driver: DriverConfig = DriverConfig()
    """What the driver asks for where the run is submitted as a job."""


class RunConfig(Part):
    """One run: every round from prompts to decisions."""

    run: str = Field(pattern=RUN_NAME)
    """Name of the run: lower-case letters, digits, dot, dash and underscore."""
    store: str = "runs"
    """Folder or URI (file, s3, gs, abfs) under which runs lie. All nodes must reach it.

    How an object store is reached is the environment's to say, on every node: credentials, AWS_REGION,
    AWS_ENDPOINT_URL, and RSFT_STORE_TIMEOUT_S, the seconds for which what fails there is tried again (900)."""
    seed: int = Field(default=0, ge=0)
    """Fixes every draw and every order."""
    rounds: int = Field(default=1, ge=1)
    """Rounds after round 0, which evaluates the policy as it is."""
    policy: PolicyConfig
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    budget: BudgetConfig = BudgetConfig()
    pilot: PilotConfig | None = None
    scoring: ScoringConfig
    acceptance: AcceptanceConfig = AcceptanceConfig()
    fairness: FairnessConfig | None = None
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig
    promotion: PromotionConfig = PromotionConfig()
    controls: ControlsField = ControlsConfig()
    cluster: ClusterConfig = ClusterConfig()
    nightly: NightlyConfig = NightlyConfig()
    trackers: tuple[PluginField, ...] = ()
    """What hears of the run's progress beside the terminal; `rsft_cluster/progress.py` has the contract."""

    @model_validator(mode="after")
    def _adapters_are_merged_whole(self) -> Self:
        if self.policy.adapter is not None and self.training.zero_stage == 3:
            raise ValueError(
                "policy.adapter cannot be merged into weights that are loaded in shards; choose training.zero_stage 2, "
                "or merge it into a model folder first"
            )
        return self

    @model_validator(mode="after")
    def _sft_has_examples(self) -> Self:
        if "sft_only" in self.controls.arms and self.training.replay is None:
            raise ValueError("controls: sft_only learns from training.replay alone, and none is given")
        return self

    @model_validator(mode="after")
    def _budget_fits(self) -> Self:
        most = self.sampling.num_candidates
        for name in ("wave_size", "until_accepted"):
            count = getattr(self.budget, name) if self.budget.wave_size is not None else None
            if count is not None and count > most:
                raise ValueError(
                    f"budget.{name} is {count}, but a prompt gets sampling.num_candidates = {most} at most"
                )
        return self

    @model_validator(mode="after")
    def _sample_determinism_is_kept(self) -> Self:
        sampling, dtype = self.sampling, self.policy.dtype
        holds = dtype == "float32" and sampling.num_gpus == 0 and sampling.threads == 1
        if sampling.determinism == "sample" and not holds:
            raise ValueError(
                "sampling.determinism: sample holds in float32 on CPUs, with one thread a worker, alone; with "
                f"{dtype}, {sampling.num_gpus:g} GPUs and {sampling.threads} threads choose unit or none"
            )
        return self

    @model_validator(mode="after")
    def _weights_of_cells_last(self) -> Self:
        if self.fairness is None or self.fairness.cells == "none":
            return self
        acceptance, training = self.acceptance, self.training
        needed = {
            "acceptance.dedupe: false": not acceptance.dedupe,
            "acceptance.near_duplicates: null": acceptance.near_duplicates is None,
            "acceptance.max_per_prompt: null": acceptance.max_per_prompt is None,
            "acceptance.drop_all_passed: false": not acceptance.drop_all_passed,
            "budget.wave_size: null": self.budget.wave_size is None,
            "training.per_prompt: false": not training.per_prompt,
            "training.accumulate: false": not training.accumulate,
        }
        missing = [setting for setting, holds in needed.items() if not holds]
        if missing:
            raise ValueError(
                f"fairness.cells: {self.fairness.cells} weighs candidates so that decisions become independent of "
                f"protected values, and what thins them out or weighs them afterwards would undo it; set {missing}"
            )
        return self


OPERATIONAL = frozenset(
    {
        "store",
        "rounds",
        "cluster",
        "nightly",
        "trackers",
        "sampling.workers",
        "sampling.num_cpus",
        "sampling.num_gpus",
        "sampling.unit_timeout_s",
        "scoring.workers",
        "scoring.num_cpus",
        "scoring.num_gpus",
        "scoring.max_error_rate",
        "scoring.canaries",
        "scoring.audit_share",
        "training.workers",
        "training.num_cpus",
        "training.num_gpus",
        "training.threads",
        "training.micro_batch_size",
        "training.gradient_checkpointing",
        "training.zero_stage",
        "training.deepspeed",
        "training.max_failures",
        "training.checkpoint_every",
        "evaluation.workers",
        "acceptance.min_accepted",
    }
)
"""Keys that may change between two invocations of one run: they move work, not results."""


def json_schema() -> str:
    """Return the JSON Schema of a run config, for editors."""
    return json.dumps(RunConfig.model_json_schema(), indent=2)


def flatten(value: object, prefix: str = "") -> dict[str, object]:
    """Return nested mappings as one level of dotted keys; lists stay values."""
    if not isinstance(value, dict) or not value:
        return {prefix: value}
    flat: dict[str, object] = {}
    for key, child in value.items():
        flat.update(flatten(child, f"{prefix}.{key}" if prefix else str(key)))
    return flat


def is_operational(key: str) -> bool:
    """Say whether a dotted key may change while a run is resumed."""
    return any(key == o or key.startswith(o + ".") for o in OPERATIONAL)

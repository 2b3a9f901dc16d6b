"""`RunConfig`: one run, typed, frozen, whole; JSON Schema for editors.

Validating fills in every default, so what is stored says everything that will happen. This module knows what a valid
config looks like; files are `config_file.py`, whether plug-ins exist `plugins.py`, whether a cluster can serve it
`cluster.py`.
"""

import json
import re
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

RUN_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Plugin(_Part):
    """A plug-in by name and the parameters it is bound with."""

    use: str
    """A built-in's name, or `package.module:attribute` for your own."""
    params: dict[str, Any] = {}
    """Keyword arguments; checked against the plug-in's signature when the config loads."""


def _plugin(value: object) -> object:
    return {"use": value} if isinstance(value, str) else value


PluginField = Annotated[Plugin, BeforeValidator(_plugin, json_schema_input_type=str | Plugin)]


class Constraint(Plugin):
    """A constraint and the part it plays in the score."""

    name: str = ""
    """How verdicts name it; by default the last part of `use`. Unique within a run."""
    required: bool = True
    """A candidate passes only if every required constraint passed."""
    weight: float = Field(default=1.0, ge=0)
    """Share in the weighted mean that is the score; 0 leaves it out of the score."""

    @model_validator(mode="before")
    @classmethod
    def _default_name(cls, value: object) -> object:
        if isinstance(value, dict) and not value.get("name") and isinstance(value.get("use"), str):
            return {**value, "name": re.split(r"[.:]", value["use"])[-1]}
        return value


ConstraintField = Annotated[Constraint, BeforeValidator(_plugin, json_schema_input_type=str | Constraint)]


class PolicyConfig(_Part):
    """The model that the run starts from."""

    model: str
    """A folder with a Hugging Face causal language model in safetensors, or a hub id."""
    revision: str | None = None
    """A commit of the hub repository. Without it the hub's `main` is resolved once, at the start of the run."""
    adapter: str | None = None
    """A folder with a LoRA adapter for `model`, in safetensors; it is merged into the weights as they load."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of weights while sampling and training. Use bfloat16 on GPUs."""
    chat_template: str | None = None
    """A Jinja file used instead of the tokenizer's own chat template."""
    attention: Literal["sdpa", "eager", "flash_attention_2"] = "sdpa"
    """Attention implementation of transformers."""


class Columns(_Part):
    """Which fields of the source rows mean what. Dots reach into nested fields."""

    prompt: str = "prompt"
    """Raw text, used where a row has no messages column."""
    messages: str = "messages"
    """Chat messages: a list of {role, content}."""
    reference: str | None = None
    """The known right answer; never shown to the policy."""
    id: str | None = None
    """An id of the source's own. Rows that share one must have the same content."""
    attributes: tuple[str, ...] = ()
    """Fields kept as attributes of the prompt, as text."""


class PromptsConfig(_Part):
    """Where prompts come from."""

    source: PluginField = Plugin(use="files")
    """The prompt source; `files` reads JSONL and Parquet from `paths`."""
    paths: tuple[str, ...] = ()
    """Files, folders or globs, relative to the config file. Read in sorted order."""
    columns: Columns = Columns()
    """How source fields map to prompts."""
    system: str | None = None
    """A system message put before the messages of every chat prompt that has none."""
    as_chat: bool = False
    """Put raw text to the policy as a user message, through the chat template."""
    max_bad_rate: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the lines is unusable."""
    limit: int | None = Field(default=None, ge=1)
    """Use only the first so many prompts."""


class SamplingConfig(_Part):
    """How the policy answers. Every setting is explicit: a checkpoint's own defaults never apply."""

    generator: PluginField = Plugin(use="transformers")
    """What produces completions."""
    num_candidates: int = Field(default=8, ge=1)
    """K, the candidates a prompt."""
    temperature: float = Field(default=1.0, ge=0)
    """Divides the logits. 0 is greedy and needs num_candidates = 1."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Keep the smallest set of tokens with at least this probability. 1 keeps all."""
    top_k: int = Field(default=0, ge=0)
    """Keep the k likeliest tokens. 0 keeps all."""
    min_p: float = Field(default=0.0, ge=0, lt=1)
    """Drop tokens less likely than this times the likeliest. 0 keeps all."""
    max_tokens: int = Field(default=256, ge=1)
    """Longest completion; one that reaches it without a stop is `length`, not finished."""
    stop: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Strings that end a completion; the stop string stays in the text."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a completion, beside the tokenizer's end-of-sequence tokens."""
    unit_size: int = Field(default=64, ge=1)
    """Prompts a unit: what is sampled, retried and committed as a whole."""
    batch_size: int = Field(default=128, ge=1)
    """Candidates decoded at once by one worker, each finished one followed by the next; halved when memory runs out."""
    determinism: Literal["unit", "sample", "none"] = "unit"
    """What an accepted set depends on. `unit`: on the units, not on workers, crashes and retries. `sample`: not on the
    units either, in float32 on CPUs, mixtures of experts excepted. `none`: last bits may depend on what was decoded
    together. With the last two, workers decode several units at once, so that no row idles while a unit ends."""
    workers: int = Field(default=1, ge=1)
    """Sampling actors."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs an actor."""
    num_cpus: float = Field(default=1, ge=0)
    """CPUs an actor."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of an actor's matrix products, where it has no GPU."""
    unit_timeout_s: float = Field(default=3600, gt=0)
    """A unit that takes longer counts as crashed."""

    @model_validator(mode="after")
    def _greedy_is_single(self) -> Self:
        if self.temperature == 0 and self.num_candidates > 1:
            raise ValueError("temperature 0 is greedy: all candidates would be equal; set num_candidates: 1")
        return self

    @property
    def mixes_units(self) -> bool:
        """Whether candidates of several units may be decoded together."""
        return self.determinism != "unit"

    @property
    def independent_rows(self) -> bool:
        """Whether not a bit of a candidate may depend on those that are decoded with it."""
        return self.determinism == "sample"


class ScoringConfig(_Part):
    """How candidates are judged."""

    constraints: tuple[ConstraintField, ...] = Field(min_length=1)
    """All of them judge every candidate."""
    workers: int = Field(default=1, ge=1)
    """Scoring actors."""
    num_cpus: float = Field(default=1, gt=0)
    """CPUs an actor."""
    max_error_rate: float = Field(default=0.01, ge=0, le=1)
    """The run stops when more than this share of the verdicts are errors."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> Self:
        names = [c.name for c in self.constraints]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"constraints share the name {twice}; give each its own `name`")
        return self


class AcceptanceConfig(_Part):
    """Which candidates become training examples."""

    rule: PluginField = Plugin(use="all_passed")
    """The acceptance rule."""
    max_per_prompt: int | None = Field(default=None, ge=1)
    """Keep at most so many a prompt, by score and then by index."""
    dedupe: bool = True
    """Keep one of several candidates with the same token ids, the one with the lowest index."""
    min_accepted: int = Field(default=1, ge=1)
    """Fewer accepted candidates than this in a round end the run with exit code 65."""


class TrainingConfig(_Part):
    """How the policy learns from accepted candidates."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Set this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the examples; 1 where neither is set."""
    batch_size: int = Field(default=32, ge=1)
    """Examples a step, over all workers."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Examples in one forward pass of one worker; the rest of the batch is accumulated."""
    learning_rate: float = Field(default=1e-5, gt=0)
    """Peak learning rate."""
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape after the warm-up; cosine and linear end at `final_learning_rate`."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of linear warm-up from 0."""
    final_learning_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of the peak at the last step."""
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's decoupled decay."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's moments."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are clipped to this norm."""
    init: Literal["base", "previous"] = "base"
    """Start from the policy of round 0, or from the incumbent."""
    accumulate: bool = True
    """Learn from the accepted candidates of all rounds so far, not of this one alone."""
    per_prompt: bool = True
    """Weight each example by 1 / (accepted candidates of its prompt), so that prompts count equally."""
    replay: str | None = None
    """A JSONL or Parquet file of worked examples (prompt or messages, and completion), mixed into training."""
    replay_weight: float = Field(default=1.0, gt=0)
    """Weight of a replayed example against a prompt's accepted ones."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel training workers."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs a worker; 0 trains on CPUs."""
    num_cpus: float = Field(default=1, gt=0)
    """CPUs a worker."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a worker's matrix products, where it has no GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed options merged over the generated ones."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter slower."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; a killed worker loses at most these."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures that training survives."""
    divergence_ratio: float = Field(default=10.0, gt=1)
    """Training stops when the loss exceeds the first step's, or 0.1 where that is lower, by this factor."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self


class EvaluationConfig(_Part):
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


class PromotionConfig(_Part):
    """When the challenger replaces the incumbent."""

    rule: PluginField = Plugin(use="paired_bootstrap")
    """The promotion rule."""


class ClusterConfig(_Part):
    """The Ray cluster that the run works on."""

    address: str | None = None
    """`auto` or host:port joins a cluster; without it a local one is started, or the job's own is used."""
    max_idle_passes: int = Field(default=20, ge=1)
    """Passes over unfinished units without one done before the stage gives up."""
    crashes_before_split: int = Field(default=3, ge=1)
    """Crashed attempts at a unit before it is halved; a single prompt is quarantined then."""


class RunConfig(_Part):
    """One run: every round from prompts to decisions."""

    run: str = Field(pattern=RUN_NAME)
    """Name of the run: lower-case letters, digits, dot, dash and underscore."""
    store: str = "runs"
    """Folder or URI (file, s3, gs, abfs) under which runs lie. All nodes must reach it."""
    seed: int = Field(default=0, ge=0)
    """Fixes every draw and every order."""
    rounds: int = Field(default=1, ge=1)
    """Rounds after round 0, which evaluates the policy as it is."""
    policy: PolicyConfig
    prompts: PromptsConfig
    sampling: SamplingConfig = SamplingConfig()
    scoring: ScoringConfig
    acceptance: AcceptanceConfig = AcceptanceConfig()
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig
    promotion: PromotionConfig = PromotionConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _adapters_are_merged_whole(self) -> Self:
        if self.policy.adapter is not None and self.training.zero_stage == 3:
            raise ValueError(
                "policy.adapter cannot be merged into weights that are loaded in shards; choose training.zero_stage 2, "
                "or merge it into a model folder first"
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


OPERATIONAL = frozenset(
    {
        "store",
        "rounds",
        "cluster",
        "sampling.workers",
        "sampling.num_cpus",
        "sampling.num_gpus",
        "sampling.unit_timeout_s",
        "scoring.workers",
        "scoring.num_cpus",
        "scoring.max_error_rate",
        "training.workers",
        "training.num_cpus",
        "training.num_gpus",
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

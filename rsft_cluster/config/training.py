"""`training:`: how the policy learns."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rsft_cluster.config.deepspeed import check_deepspeed
from rsft_cluster.config.parts import Part, PluginField

MAX_UNLEARNING = 0.3
"""Most that unlearning may count against learning."""


class UnlearningConfig(Part):
    """A term of the loss over rejected candidates."""

    weight: float = Field(default=0.1, gt=0)
    """Against the accepted examples' loss, at most 0.3."""
    batch_size: int = Field(default=32, ge=1)
    """Rejected candidates a step, over all workers."""

    @model_validator(mode="after")
    def _does_little(self) -> Self:
        if self.weight > MAX_UNLEARNING:
            raise ValueError(
                f"weight {self.weight:g} is above {MAX_UNLEARNING:g}: what unlearning gains is small and had at 0.1; "
                "larger weights were measured to slow learning or to make the policy collapse"
            )
        return self


class TrainingConfig(Part):
    """How the policy learns from accepted candidates."""

    steps: int | None = Field(default=None, ge=1)
    """Optimizer steps. Set this or `epochs`."""
    epochs: float | None = Field(default=None, gt=0)
    """Passes over the examples; 1 where neither is set."""
    batch_size: int = Field(default=32, ge=1)
    """Examples a step, over all workers."""
    micro_batch_size: int = Field(default=8, ge=1)
    """Most examples in one forward pass of one worker; the rest of the batch is accumulated."""
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
    """Learn from the accepted candidates of all rounds so far, not only of this one."""
    per_prompt: bool = True
    """Weight each example by 1 / (accepted candidates of its prompt), so that prompts count equally."""
    end_stopped: bool = False
    """Learn an end-of-sequence token after completions that a stop string ended, so that the policy also ends where
    nothing stops it. By default they are learned as they were sampled."""
    replay: str | None = None
    """A JSONL or Parquet file of worked examples (prompt or messages, and completion), mixed into training."""
    replay_weight: float = Field(default=1.0, gt=0)
    """Weight of a replayed example against a prompt's accepted ones."""
    rejection: UnlearningConfig | None = None
    """Lower also the expected rejection: the probability of candidates that were judged and did not pass, each counted
    by how likely the policy still makes it (TOPR, Le Roux et al. 2025). `{}` turns it on. Off by default."""
    unlikelihood: UnlearningConfig | None = None
    """Unlearn the one token with which a rejected candidate went wrong for good, where a constraint names its place
    (`Verdict.fatal_at`; unlikelihood, Welleck et al. 2020). `{}` turns it on. Off by default."""
    kl_weight: float = Field(default=0.0, ge=0)
    """Weight of KL(policy || policy of round 0) on the completions that are learned, in nats a token: keeps the style
    that the policy came with. Above 0 each worker also holds the policy of round 0."""
    terms: tuple[PluginField, ...] = ()
    """Terms of your own in the loss, beside the ones above: classes, see `rsft_cluster/training/terms/base.py`."""
    neftune_alpha: float = Field(default=0.0, ge=0)
    """Noise on the embeddings of what is learned, uniform within alpha / sqrt(tokens x embedding size) (NEFTune, Jain
    et al. 2023, where 5 is usual). A KL is that of the policy so disturbed."""
    ema_decay: float = Field(default=0.0, ge=0, lt=1)
    """The trained policy is the mean of the weights after each step, one of n steps ago counting decay^n. 0 takes the
    last weights."""
    workers: int = Field(default=1, ge=1)
    """Data-parallel training workers."""
    num_gpus: float = Field(default=0, ge=0)
    """GPUs a worker; 0 trains on CPUs."""
    num_cpus: float = Field(default=1, gt=0)
    """CPUs a worker."""
    threads: int = Field(default=1, ge=1)
    """CPU threads of a worker's matrix products, where it has no GPU."""
    zero_stage: Literal[0, 1, 2, 3] = 0
    """DeepSpeed ZeRO stage: 1 shards optimizer states, 2 also gradients, 3 also parameters. In bfloat16 0 is 1."""
    deepspeed: dict[str, Any] = {}
    """DeepSpeed options merged over the generated ones: those that only move work, such as
    `{zero_optimization: {offload_optimizer: {device: cpu}}}`; `rsft_cluster/config/deepspeed.py` lists them."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a quarter slower."""
    checkpoint_every: int = Field(default=100, ge=1)
    """Steps between checkpoints; a killed worker loses at most these."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures that training survives."""
    divergence_ratio: float = Field(default=10.0, gt=1)
    """Training stops when the loss of what is learned exceeds the first step's, or 0.1 where that is lower, by this
    factor. Terms over rejected candidates and the KL do not count there."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.steps is not None and self.epochs is not None:
            raise ValueError("set steps or epochs, not both")
        return self

    @model_validator(mode="after")
    def _deepspeed_takes_its_options(self) -> Self:
        check_deepspeed(self.deepspeed, zero_stage=self.zero_stage)
        return self

    @model_validator(mode="after")
    def _whole_weights_are_there(self) -> Self:
        for key, whose in (("kl_weight", "the policy of round 0"), ("ema_decay", "the mean of the weights")):
            if self.zero_stage == 3 and getattr(self, key):
                raise ValueError(
                    f"{key}: {whose} lies whole on a worker, and zero_stage 3 is for models that do not fit there; "
                    f"choose zero_stage 2, or {key}: 0"
                )
        return self

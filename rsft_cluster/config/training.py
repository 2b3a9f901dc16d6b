"""`training:`: how the policy learns."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from rsft_cluster.config.parts import Part


class TrainingConfig(Part):
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

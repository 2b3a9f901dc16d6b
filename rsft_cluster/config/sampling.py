"""`sampling:` and `budget:`: how the policy answers, and how often."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from rsft_cluster.config.parts import Part, Plugin, PluginField, Workers


class AdaptiveConfig(Part):
    """Rejections are remembered while sampling: what was rejected once is not drawn again (adaptive rejection).

    It pays where completions are short or repeat. What is accepted still follows the rule's target exactly, if the
    constraints give equal completions equal verdicts; how often a prompt is rejected says less about it. A constraint
    that tells from which character on a completion was lost (`fatal_at`) rules out all that begin so.
    """

    kind: Literal["hard", "soft"] = "hard"
    """`hard` takes off the proposal what the acceptance rule never keeps; `soft` all that it rejects on average, so
    that a completion seen before is drawn as often as it is kept, and kept for sure."""
    draws_at_once: int = Field(default=4, ge=1)
    """Candidates of one prompt drawn before their verdicts are taken into account. A prompt is read again for each
    such lot, so long prompts ask for more."""


class SamplingConfig(Part):
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
    adaptive: AdaptiveConfig | None = None
    """Adaptive rejection sampling, for short or repeating outputs; decodes in plain batches. Off by default."""
    workers: Workers = 1
    """Sampling actors: a number, or {min, max}."""
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

    @model_validator(mode="after")
    def _adaptive_has_a_law(self) -> Self:
        if self.adaptive is not None and self.temperature == 0:
            raise ValueError(
                "adaptive: temperature 0 draws nothing at random, so nothing can be taken off; leave it out"
            )
        if self.adaptive is not None and self.determinism == "sample":
            raise ValueError(
                "adaptive decodes in plain batches, whose last bits depend on the unit: choose determinism unit"
            )
        return self

    @property
    def mixes_units(self) -> bool:
        """Whether candidates of several units may be decoded together."""
        return self.determinism != "unit"

    @property
    def independent_rows(self) -> bool:
        """Whether not a bit of a candidate may depend on those that are decoded with it."""
        return self.determinism == "sample"


class BudgetConfig(Part):
    """How candidates are spread over prompts, wave by wave."""

    wave_size: int | None = Field(default=None, ge=1)
    """Candidates that a prompt gets in one wave. Without it every prompt gets `sampling.num_candidates` at once; with
    it, that is the most a prompt gets in a round."""
    until_accepted: int = Field(default=1, ge=1)
    """k: a prompt with k accepted candidates gets no more, and its k lowest indices are kept."""
    futile_below: float = Field(default=0.0, ge=0, lt=1)
    """Give a prompt up when the chance that the candidates it may still get bring it to k accepted ones is below this,
    by the Beta posterior of its acceptance. 0 never gives up."""
    allocation: Literal["uniform", "difficulty", "variance"] = "uniform"
    """`difficulty` lets easy prompts keep fewer than k, in proportion to 1 - acceptance (DART-Math); `variance` gives a
    wave to prompts in proportion to 1 / sqrt(acceptance), which keeps the gradient's variance small (GVM-RAFT)."""
    skip_solved: bool = False
    """Leave out prompts that already had k accepted candidates in an earlier round."""
    max_candidates: int | None = Field(default=None, ge=1)
    """Most candidates sampled for training over the whole run."""
    max_tokens: int | None = Field(default=None, ge=1)
    """Most tokens sampled for training over the whole run; kept to by the mean length so far, before
    the first wave by `sampling.max_tokens`."""

    @property
    def is_set(self) -> bool:
        """Whether candidates are spread over prompts at all."""
        return self.wave_size is not None or self.skip_solved or (self.max_candidates or self.max_tokens) is not None


class PilotConfig(Part):
    """Temperature and threshold of each round, found on a few prompts first (B-STaR, Zeng et al. 2025)."""

    temperatures: tuple[Annotated[float, Field(gt=0)], ...] = Field(default=(0.7, 1.0, 1.3), min_length=1)
    """Temperatures to try."""
    min_scores: tuple[Annotated[float, Field(ge=0, le=1)], ...] = ()
    """Thresholds to try, for the acceptance rule `threshold`; they replace its min_score."""
    num_prompts: int = Field(default=64, ge=1)
    """Prompts that are sampled at every temperature, the first ones."""
    wanted: int = Field(default=4, ge=1)
    """Distinct passing candidates of a prompt that are enough: n* of the balance score."""

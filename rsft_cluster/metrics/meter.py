"""What a run tells Prometheus: every metric by name, and the `Meter` that stages speak to.

Ray serves them on each node's metrics port, as `ray_` and the name. Labels are the run, the stage and a few fixed
words: never a prompt, a text or an id of one, so that the number of series stays small. Stages speak once a unit or a
step, never once a candidate. This module knows no engine: what is said goes nowhere unless `exported.py` carries it.
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Metric:
    """One metric: how Prometheus knows it."""

    name: str
    kind: Literal["counter", "gauge"]
    says: str
    labels: tuple[str, ...] = ("run", "stage")


CANDIDATES = Metric(
    "rsft_candidates_total", "counter", "Candidates, by state: generated, then committed.", ("run", "stage", "state")
)
TOKENS = Metric(
    "rsft_tokens_total",
    "counter",
    "Tokens of candidates, by state: generated, then committed. What is done twice is generated twice.",
    ("run", "stage", "state"),
)
GENERATING = Metric("rsft_generating_seconds_total", "counter", "Seconds that sampling actors were generating.")
BUSY = Metric(
    "rsft_sampling_busy_ratio",
    "gauge",
    "Share of the time since its last unit that a sampling actor was generating: what its GPU is busy.",
)
VERDICTS = Metric("rsft_verdicts_total", "counter", "Verdicts of constraints, errors among them.")
ERRORS = Metric(
    "rsft_verdict_errors_total", "counter", "Verdicts that are errors, by constraint.", ("run", "stage", "constraint")
)
FAILED_UNITS = Metric("rsft_failed_units_total", "counter", "Attempts at a unit that reported a failure.")
UNITS_IN_FLIGHT = Metric(
    "rsft_units_in_flight", "gauge", "Units that an actor works on, by step: sample or score.", ("run", "stage", "step")
)
PROMPTS_LEFT = Metric("rsft_prompts_left", "gauge", "Prompts of the plan without a commit.")
UNITS_LEFT = Metric("rsft_units_left", "gauge", "Units of the current pass without a commit.")
PASS_RATIO = Metric("rsft_pass_ratio", "gauge", "Passed by all candidates, at the seal.")
SOLVE_RATIO = Metric("rsft_solve_ratio", "gauge", "Prompts with a passing candidate by all prompts, at the seal.")
ACCEPTANCE_RATIO = Metric("rsft_acceptance_ratio", "gauge", "Accepted by all candidates, at the seal.")
LOSS = Metric("rsft_training_loss", "gauge", "What is minimised, nats a token.", ("run",))
STEP = Metric("rsft_training_step", "gauge", "Optimizer steps taken.", ("run",))
TRAINING_TOKENS = Metric("rsft_training_tokens_total", "counter", "Completion tokens learned from.", ("run",))
PROMOTED = Metric("rsft_promoted", "gauge", "1 where the last decision promoted the challenger, 0 where not.", ("run",))
LAST_PROMOTION = Metric(
    "rsft_last_promotion_timestamp_seconds", "gauge", "When a challenger was promoted last, Unix time.", ("run",)
)
ROUND = Metric("rsft_round", "gauge", "The round that was decided last.", ("run",))

METRICS = (
    CANDIDATES, TOKENS, GENERATING, BUSY, VERDICTS, ERRORS, FAILED_UNITS, UNITS_IN_FLIGHT, PROMPTS_LEFT, UNITS_LEFT,
    PASS_RATIO, SOLVE_RATIO, ACCEPTANCE_RATIO, LOSS, STEP, TRAINING_TOKENS, PROMOTED, LAST_PROMOTION, ROUND,
)  # fmt: skip


class Meter:
    """Takes what a stage says of itself; this one keeps it to itself."""

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Count so much more; the labels are those beside `run` and `stage`."""

    def put(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge."""

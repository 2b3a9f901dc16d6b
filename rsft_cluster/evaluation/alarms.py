"""Is a policy collapsing? Alarms from the evaluations of a run so far; pure.

What a gain in pass@1 may hide: answers that all become the same, prompts that no sample solves any more, answers that
grow or shrink without end. Every alarm is reported; those named in `promotion.health.hold_on` keep a challenger from
being promoted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from rsft_cluster.config import HealthConfig
from rsft_cluster.records import Evaluation


@dataclass(frozen=True)
class Alarm:
    """A sign of collapse in a challenger."""

    name: str
    """`collapse`, `coverage`, `length` or `repetition`."""
    says: str


def alarms(history: Sequence[Evaluation], incumbent: Evaluation, config: HealthConfig) -> list[Alarm]:
    """Return the alarms about the newest policy of a run.

    `history` are the evaluations of all rounds in order, round 0 first and the challenger last. A fall of pass@k is
    judged against the incumbent, drifts against round 0.
    """
    first, new = history[0], history[-1]
    checked = [
        _coverage(incumbent, new, config.max_pass_at_k_drop),
        _collapse(history, config.max_entropy_drop),
        _length(first, new, config.max_length_change),
        _repetition(first, new, config.max_distinct_drop),
    ]
    return [alarm for alarm in checked if alarm is not None]


def _coverage(old: Evaluation, new: Evaluation, limit: float) -> Alarm | None:
    """Return an alarm where pass@k fell and pass@1 did not: the answers have become more alike."""
    if old.pass_at_k - new.pass_at_k <= limit or new.pass_at_1 < old.pass_at_1:
        return None
    return Alarm("coverage", f"pass@{new.k} fell from {old.pass_at_k:.3f} to {new.pass_at_k:.3f} while pass@1 did not")


def _collapse(history: Sequence[Evaluation], limit: float) -> Alarm | None:
    """Return an alarm where entropy is far below round 0's, and pass@k fell in two rounds running."""
    if len(history) < 3:
        return None
    first, before, old, new = history[0], *history[-3:]
    if new.entropy >= (1.0 - limit) * first.entropy or not before.pass_at_k > old.pass_at_k > new.pass_at_k:
        return None
    return Alarm(
        "collapse",
        f"entropy is {new.entropy:.3f} nats a token, from {first.entropy:.3f} in round 0, and pass@{new.k} fell in two "
        f"rounds running: {before.pass_at_k:.3f}, {old.pass_at_k:.3f}, {new.pass_at_k:.3f}",
    )


def _length(first: Evaluation, new: Evaluation, limit: float) -> Alarm | None:
    ratio = new.mean_tokens / max(first.mean_tokens, 1e-9)
    if 1.0 / (1.0 + limit) <= ratio <= 1.0 + limit:
        return None
    return Alarm("length", f"answers have {new.mean_tokens:.1f} tokens on average, {first.mean_tokens:.1f} in round 0")


def _repetition(first: Evaluation, new: Evaluation, limit: float) -> Alarm | None:
    if new.distinct_2 >= (1.0 - limit) * first.distinct_2:
        return None
    return Alarm(
        "repetition",
        f"distinct-2 fell from {first.distinct_2:.3f} in round 0 to {new.distinct_2:.3f}, self-BLEU is now "
        f"{new.self_bleu:.3f}",
    )

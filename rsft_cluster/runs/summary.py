"""What is known of every round of a run, read from its records."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rsft_cluster.records import (
    Decision,
    Evaluation,
    FairnessReport,
    Manifest,
    TrainingResult,
)
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout


@dataclass(frozen=True)
class RoundSummary:
    """What is known of a round; None where it has not come so far."""

    round: int
    manifest: Manifest | None = None
    training: TrainingResult | None = None
    evaluation: Evaluation | None = None
    decision: Decision | None = None
    controls: Mapping[str, Evaluation] = field(default_factory=dict)
    """Control arms of the round by name, evaluated as the challenger was."""
    stage: str = "done"
    """The stage that is to be done next, or `done`."""
    fairness: FairnessReport | None = None

    def row(self) -> dict[str, object]:
        """Return the figures that the table shows, by name, for scripts."""
        totals, evaluation = self.manifest and self.manifest.totals, self.evaluation
        return {
            "round": self.round,
            "stage": self.stage,
            "num_prompts": totals.num_prompts if totals else None,
            "num_quarantined": totals.num_prompts_quarantined if totals else None,
            "num_candidates": totals.num_candidates if totals else None,
            "pass_rate": _share(totals.num_passed, totals.num_candidates) if totals else None,
            "solve_rate": _share(totals.num_solved, totals.num_prompts) if totals else None,
            "num_accepted": totals.num_accepted if totals else None,
            "final_loss": self.training.final_loss if self.training else None,
            "greedy_accuracy": evaluation.greedy_accuracy if evaluation else None,
            "pass_at_1": evaluation.pass_at_1 if evaluation else None,
            "pass_at_k": evaluation.pass_at_k if evaluation else None,
            "k": evaluation.k if evaluation else None,
            "mean_tokens": evaluation.mean_tokens if evaluation else None,
            "entropy": evaluation.entropy if evaluation else None,
            "distinct_2": evaluation.distinct_2 if evaluation else None,
            "self_bleu": evaluation.self_bleu if evaluation else None,
            "promoted": self.decision.promoted if self.decision else None,
            "reason": self.decision.reason if self.decision else None,
            "alarms": list(self.decision.alarms) if self.decision else None,
            "controls": {name: control.pass_at_1 for name, control in self.controls.items()},
            "num_waves": self.manifest.num_waves if self.manifest else None,
            "target": self.manifest.rule if self.manifest else None,
            "chosen": self.manifest.chosen if self.manifest else None,
            "accepted_digest": self.manifest.accepted_digest if self.manifest else None,
            "content": self.manifest.content if self.manifest else None,
        }


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


STAGES = ("sample", "train", "evaluate", "promote")


def summary(store: Store, number: int) -> RoundSummary:
    """Return what the store holds of a round."""
    layout = RunLayout(store).round(number)
    manifest = store.find_record(layout.manifest, Manifest)
    training = store.find_record(layout.training, TrainingResult)
    evaluation = store.find_record(layout.evaluation.record, Evaluation)
    fairness = store.find_record(layout.evaluation.fairness, FairnessReport)
    decision = store.find_record(layout.decision, Decision)
    if number == 0:
        stage = "done" if evaluation else "evaluate"
    else:
        made = (manifest, training, evaluation, decision)
        stage = next((name for name, record in zip(STAGES, made, strict=True) if record is None), "done")
    return RoundSummary(number, manifest, training, evaluation, decision, _controls(store, number), stage, fairness)


def _controls(store: Store, number: int) -> dict[str, Evaluation]:
    evaluations = {
        arm.name: store.find_record(arm.round(number).evaluation.record, Evaluation)
        for arm in RunLayout(store).controls()
    }
    return {name: evaluation for name, evaluation in evaluations.items() if evaluation}


def summaries(store: Store) -> list[RoundSummary]:
    """Return all rounds that the store knows of, in order."""
    return [summary(store, number) for number in RunLayout(store).round_numbers()]

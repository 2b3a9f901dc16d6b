"""Tables of a run: a row a round, from the records in the store."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich import box
from rich.table import Table

from rsft_cluster.records import Decision, Evaluation, FairnessReport, Manifest, TrainingResult


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
            "controls": {name: found.pass_at_1 for name, found in self.controls.items()},
            "num_waves": self.manifest.num_waves if self.manifest else None,
            "target": self.manifest.rule if self.manifest else None,
            "chosen": self.manifest.chosen if self.manifest else None,
            "accepted_digest": self.manifest.accepted_digest if self.manifest else None,
            "content": self.manifest.content if self.manifest else None,
        }


def rounds_table(rounds: Sequence[RoundSummary], *, title: str = "") -> Table:
    """Return a table with a row a round."""
    k = next((r.evaluation.k for r in rounds if r.evaluation), "k")
    # No padding beside the box's own spaces: ten columns have to fit into 80 characters.
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for name in ("round", "prompts", "candidates", "passed", "solved", "accepted", "greedy", "pass@1", f"pass@{k}"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("decision")
    for summary in rounds:
        row = summary.row()
        table.add_row(
            str(summary.round),
            _count(row["num_prompts"]),
            _count(row["num_candidates"]),
            _percent(row["pass_rate"]),
            _percent(row["solve_rate"]),
            _count(row["num_accepted"]),
            _decimal(row["greedy_accuracy"]),
            _decimal(row["pass_at_1"]),
            _decimal(row["pass_at_k"]),
            _decision(summary),
        )
    return table


def as_json(rounds: Sequence[RoundSummary]) -> list[dict[str, object]]:
    """Return the rounds' figures as plain data."""
    return [r.row() for r in rounds]


def _decision(summary: RoundSummary) -> str:
    if summary.stage != "done":
        return f"[dim]next: {summary.stage}[/dim]"
    if summary.decision is None:
        return "start"
    return "promoted" if summary.decision.promoted else "kept old"


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else ""


def _decimal(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""

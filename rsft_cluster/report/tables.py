"""Tables of a run: a row a round, from the records in the store."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from rsft_cluster.runs.summary import RoundSummary


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


def _count(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else ""


def _percent(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float) else ""


def _decimal(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else ""

"""The control arms beside the challengers: the same start, the same steps, other examples."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from rsft_cluster.records import Evaluation
from rsft_cluster.runs.summary import RoundSummary

NAMES = {"random": "random candidates", "sft_only": "worked examples alone"}


def comparison_table(rounds: Sequence[RoundSummary]) -> Table:
    """Return a table with the challenger and the control arms of every round that has some."""
    k = next((r.evaluation.k for r in rounds if r.evaluation), "k")
    table = Table(
        title="Controls: the same start and steps, other examples", title_justify="left", box=box.SIMPLE_HEAD,
        pad_edge=False, collapse_padding=True,
    )  # fmt: skip
    table.add_column("round", justify="right")
    table.add_column("learned from")
    for name in ("greedy", "pass@1", f"pass@{k}", "entropy", "distinct-2", "self-BLEU"):
        table.add_column(name, justify="right")
    for summary in rounds:
        if not summary.controls or summary.evaluation is None:
            continue
        table.add_row(str(summary.round), "accepted candidates", *_figures(summary.evaluation))
        for name, evaluation in summary.controls.items():
            table.add_row("", NAMES.get(name, name), *_figures(evaluation))
    return table


def _figures(e: Evaluation) -> list[str]:
    values = (e.greedy_accuracy, e.pass_at_1, e.pass_at_k, e.entropy, e.distinct_2, e.self_bleu)
    return [f"{value:.3f}" for value in values]

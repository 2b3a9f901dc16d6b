"""How decisions fall by protected values, as people read it: a row a group, a row a gap, and the whole below."""

from typing import Literal

from rich import box
from rich.table import Table

from rsft_cluster.records import DecisionFigures, Estimate, FairnessReport, Gap, GroupFigures

Decoding = Literal["greedy", "sampled"]
FOUR_FIFTHS = 0.8
"""A selection rate below this share of the highest is taken as a sign of adverse impact."""


def fairness_table(report: FairnessReport, *, decoding: Decoding = "greedy", title: str = "") -> Table:
    """Return the table of the greedy decisions, or of the sampled ones."""
    figures = report.greedy if decoding == "greedy" else report.sampled
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column(f"{decoding} decisions")
    for name in ("number", report.positive, "where merited", "where not"):
        table.add_column(name, justify="right", no_wrap=True)
    for attribute in figures.attributes:
        for group in attribute.groups:
            table.add_row(*_group(group))
        gaps = (attribute.selection, attribute.true_positives, attribute.false_positives)
        table.add_row(f"gap of {attribute.attribute}", "", *map(_gap, gaps), style="bold")
        table.add_row("lowest ÷ highest", "", _ratio(attribute.selection), "", "", end_section=True)
    table.caption, table.caption_justify = _whole(figures), "left"
    return table


def _group(group: GroupFigures) -> tuple[str, ...]:
    rates = (group.selection_rate, group.true_positive_rate, group.false_positive_rate)
    return (group.group, f"{group.num_decisions:,}", *map(_shown, rates))


def _gap(gap: Gap | None) -> str:
    return _shown(gap.difference) if gap else ""


def _ratio(gap: Gap | None) -> str:
    if gap is None or gap.ratio is None:
        return ""
    ratio = _shown(gap.ratio)
    return f"[red]below 4/5: {ratio}[/red]" if gap.ratio.value < FOUR_FIFTHS else ratio


def _whole(figures: DecisionFigures) -> str:
    parts = [f"in all {figures.num_decisions:,}", f"{_shown(figures.selection_rate)} selected"]
    if figures.num_undecided:
        parts.append(f"{figures.num_undecided:,} undecided")
    if figures.merit_accuracy:
        parts.append(f"{_shown(figures.merit_accuracy)} as merited")
    if figures.flip_rate:
        parts.append(f"{_shown(figures.flip_rate)} flip under swaps")
    return ", ".join(parts) + "; in parentheses 95 % bootstrap intervals"


def _shown(estimate: Estimate | None) -> str:
    return f"{estimate.value:.3f} ({estimate.low:.3f} to {estimate.high:.3f})" if estimate else ""

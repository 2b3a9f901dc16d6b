"""A decision made again, as people read it: the funnel, why the rest was rejected, and what changed."""

from collections.abc import Mapping

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible
from rsft_cluster.review.records import Change, Funnel

STEPS = {
    "num_candidates": "candidates",
    "num_judged": "judged",
    "num_passed": "passed",
    "num_drawn": "drawn",
    "num_distinct": "distinct",
    "num_within_caps": "within the caps",
    "num_accepted": "accepted",
}
"""The funnel's counts, in order, and their labels."""
BAR_WIDTH = 24
NUM_REASONS = 8


def show_decision(console: Console, title: str, funnel: Funnel, reasons: Mapping[str, int], change: Change) -> None:
    """Print what a decision keeps, and what it keeps otherwise than the sealed one."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print(_funnel(funnel))
    covered = _share(funnel.num_prompts_accepted, funnel.num_prompts)
    console.print(f"prompts with something accepted: {funnel.num_prompts_accepted:,} ({covered})\n", highlight=False)
    if reasons:
        console.print(_reasons(reasons))
    gained, lost = change.num_after - change.num_both, change.num_before - change.num_both
    console.print(
        f"against the sealed decision: {change.num_before:,} kept before, {change.num_after:,} now, "
        f"{change.num_both:,} both; {gained:,} new, {lost:,} no longer",
        highlight=False,
        soft_wrap=True,
    )
    show_examples(console, "new", change.gained)
    show_examples(console, "no longer", change.lost)


def show_examples(console: Console, label: str, ids: tuple[str, ...]) -> None:
    """Print the beginnings of some candidates' ids, as `rsft explain` takes them."""
    if ids:
        console.print(f"  {label}, for example: {' '.join(i[:12] for i in ids)}", highlight=False, soft_wrap=True)


def _funnel(funnel: Funnel) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, justify in (("step", "left"), ("candidates", "right"), ("of all", "right"), ("", "left")):
        table.add_column(name, justify=justify, no_wrap=True)  # pyright: ignore[reportArgumentType]
    for name, label in STEPS.items():
        number = getattr(funnel, name)
        width = round(BAR_WIDTH * number / funnel.num_candidates) if funnel.num_candidates else 0
        table.add_row(label, f"{number:,}", _share(number, funnel.num_candidates), Text("█" * width, style="green"))
    return table


def _reasons(reasons: Mapping[str, int]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("rejected, since")
    table.add_column("candidates", justify="right", no_wrap=True)
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    for reason, number in ordered[:NUM_REASONS]:
        table.add_row(Text(visible(reason)), f"{number:,}")
    if rest := ordered[NUM_REASONS:]:
        table.add_row(f"{len(rest)} other reasons", f"{sum(n for _, n in rest):,}")
    return table


def _share(part: int, whole: int) -> str:
    return f"{part / whole:.1%}" if whole else ""

"""What another scoring says otherwise, as people read it."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible
from rsft_cluster.report.decisions import show_examples
from rsft_cluster.review.records import Rejudged


def show_rejudged(console: Console, title: str, found: Rejudged) -> None:
    """Print passed before and after, in all and by constraint, and some candidates that flipped."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("passed")
    for name in ("before", "after", "now passed", "no longer"):
        table.add_column(name, justify="right", no_wrap=True)
    counts = (found.num_passed_before, found.num_passed_after, found.num_gained, found.num_lost)
    table.add_row(f"of {found.num_candidates:,} candidates", *map(_count, counts), style="bold", end_section=True)
    for one in found.constraints:
        both = one.num_passed_before is not None and one.num_passed_after is not None
        flips = (one.num_gained, one.num_lost) if both else (None, None)
        table.add_row(
            Text(visible(one.constraint)), *map(_count, (one.num_passed_before, one.num_passed_after, *flips))
        )
    console.print(table)
    if found.num_errors_before or found.num_errors_after:
        console.print(
            f"not judged, for errors: {found.num_errors_before:,} before, {found.num_errors_after:,} after",
            highlight=False,
        )
    show_examples(console, "now passed", found.gained)
    show_examples(console, "no longer", found.lost)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"

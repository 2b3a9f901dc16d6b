"""What another scoring says otherwise, as people read it."""

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible
from rsft_cluster.report.decisions import show_examples
from rsft_cluster.review.records import Rejudged


def show_rejudged(console: Console, title: str, rejudged: Rejudged) -> None:
    """Print passed before and after, in all and by constraint, and some candidates that flipped."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("passed")
    for name in ("before", "after", "now passed", "no longer"):
        table.add_column(name, justify="right", no_wrap=True)
    counts = (rejudged.num_passed_before, rejudged.num_passed_after, rejudged.num_gained, rejudged.num_lost)
    table.add_row(f"of {rejudged.num_candidates:,} candidates", *map(_count, counts), style="bold", end_section=True)
    for change in rejudged.constraints:
        both = change.num_passed_before is not None and change.num_passed_after is not None
        flips = (change.num_gained, change.num_lost) if both else (None, None)
        table.add_row(
            Text(visible(change.constraint)), *map(_count, (change.num_passed_before, change.num_passed_after, *flips))
        )
    console.print(table)
    if rejudged.num_errors_before or rejudged.num_errors_after:
        console.print(
            f"not judged, for errors: {rejudged.num_errors_before:,} before, {rejudged.num_errors_after:,} after",
            highlight=False,
        )
    show_examples(console, "now passed", rejudged.gained)
    show_examples(console, "no longer", rejudged.lost)


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"

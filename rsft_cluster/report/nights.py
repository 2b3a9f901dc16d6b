"""A table of nights."""

from collections.abc import Sequence

from rich import box
from rich.table import Table

from rsft_cluster.nightly.records import NightRecord

COLOURS = {"promoted": "green", "nothing_accepted": "yellow", "diverged": "red", "abandoned": "red"}


def nights_table(records: Sequence[NightRecord], *, title: str = "") -> Table:
    """Return a table with a row a night; nights that were missed stand before the one that noticed."""
    table = Table(title=title or None, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    table.add_column("night", no_wrap=True)
    for name in ("prompts", "accepted", "pass@1", "after", "hours"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("policy after", no_wrap=True)
    table.add_column("outcome")
    for record in records:
        for night in record.missed:
            table.add_row(night, *[""] * 6, "missed", style="dim")
        worked = record.num_prompts and record.outcome != "nothing_new"
        table.add_row(
            record.date,
            f"{record.num_prompts:,}",
            f"{record.num_accepted:,}" if worked else "",
            _decimal(record.before),
            _decimal(record.after),
            f"{record.hours:.2f}" if worked else "",
            record.policy,
            f"[{COLOURS.get(record.outcome, 'default')}]{record.outcome.replace('_', ' ')}[/]",
        )
    return table


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"

"""What other settings would keep, as people read it: a row a setting, and how scores and lengths lie."""

from rich import box
from rich.columns import Columns
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible
from rsft_cluster.review.records import Histogram, Preview

BAR_WIDTH = 28
MARKS = (("kept", "█", "green"), ("passed", "▓", "yellow"), ("failed", "░", "red"))
"""The parts of a bar: told apart by pattern, and by colour where there is some."""


def show_preview(console: Console, title: str, preview: Preview) -> None:
    """Print the settings and the histograms; the current setting stands first."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print(_settings(preview))
    console.print(
        Columns([_histogram("score", preview.scores, "{:.1f}"), _histogram("tokens", preview.lengths, "{:,.0f}")],
                padding=(0, 4))
    )  # fmt: skip
    legend = Text("bars: ")
    for (_, mark, colour), says in zip(MARKS, ("kept now", "passed, not kept", "did not pass"), strict=True):
        legend.append(mark, style=colour).append(f" {says}  ")
    console.print(legend)


def _settings(preview: Preview) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("setting")
    for name in ("accepted", "of all", "prompts", "coverage", "score", "tokens"):
        table.add_column(name, justify="right", no_wrap=True)
    for forecast in preview.forecasts:
        table.add_row(
            Text(visible(forecast.setting) + (" (now)" if forecast.is_current else "")),
            f"{forecast.num_accepted:,}",
            f"{forecast.acceptance_rate:.1%}",
            f"{forecast.num_prompts_accepted:,}",
            f"{forecast.prompt_coverage:.1%}",
            "" if forecast.mean_score is None else f"{forecast.mean_score:.3f}",
            "" if forecast.mean_tokens is None else f"{forecast.mean_tokens:,.1f}",
            style="bold" if forecast.is_current else "",
            end_section=forecast.is_current,
        )
    return table


def _histogram(title: str, histogram: Histogram, shown: str) -> Group:
    parts = list(zip(histogram.kept, histogram.passed, histogram.failed, strict=True))
    most = max((sum(part) for part in parts), default=0)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 1, 0, 0))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True, width=BAR_WIDTH)
    table.add_column(justify="right", no_wrap=True)
    for i, part in enumerate(parts):
        low, high = (shown.format(edge) for edge in histogram.edges[i : i + 2])
        table.add_row(Text(f"{low} - {high}"), _bar(part, most), f"{sum(part):,}")
    return Group(Text(title, style="bold"), table)


def _bar(part: tuple[int, int, int], most: int) -> Text:
    """Return a bar; its parts end where the sums so far do, so that rounding does not add up."""
    bar, total, end = Text(), 0, 0
    for number, (_, mark, colour) in zip(part, MARKS, strict=True):
        total += number
        until = round(BAR_WIDTH * total / most) if most else 0
        bar.append(mark * (until - end), style=colour)
        end = until
    if total and not end:
        bar.append("▏")
    return bar

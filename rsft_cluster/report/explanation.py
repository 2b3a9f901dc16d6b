"""A decision as people read it: the prompt, the completion, each step with its mark, and the end."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible

MARKS = {True: Text("+", style="green"), False: Text("-", style="red"), None: Text(" ")}


class _Step(Protocol):
    @property
    def title(self) -> str: ...
    @property
    def says(self) -> str: ...
    @property
    def holds(self) -> bool | None: ...


def show_explanation(
    console: Console, line: Mapping[str, Any], messages: Sequence[Mapping[str, str]], steps: Sequence[_Step]
) -> None:
    """Print why a candidate was kept or not."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column()
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=28)
    grid.add_column(overflow="fold")
    for message in messages:
        grid.add_row("", Text(visible(message["role"]), style="dim"), Text(visible(message["content"])))
    grid.add_row("", Text("completion", style="dim"), Text(visible(line["text"]), style="bold"))
    for step in steps:
        grid.add_row(MARKS[step.holds], Text(visible(step.title)), Text(visible(step.says)))
    kept = line["accepted"]
    end = "kept as an example for training" if kept else f"not kept: {line['reason']}"
    grid.add_row("", "", "")
    grid.add_row("", Text("decision", style="dim"), Text(visible(end), style="bold green" if kept else "bold red"))
    title = f"candidate {line['candidate_id'][:12]} · round {line['round']} · index {line['index']} · {line['policy']}"
    console.print(Panel(grid, title=Text(visible(title)), title_align="left", border_style="green" if kept else "red"))

"""Candidates as people read them: prompt, completion, every verdict and the reason of the decision."""

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

COLOURS = {"accepted": "green", "rejected": "red", "error": "yellow", "quarantined": "magenta"}


def show_candidate(console: Console, row: dict[str, Any], *, with_prompt: bool = True) -> None:
    """Print one row of `inspection.inspect`; without its prompt where that was shown just before."""
    grid = Table.grid(padding=(0, 1))
    grid.add_column(no_wrap=True, overflow="ellipsis", max_width=28)
    grid.add_column(overflow="fold")
    for label, text in _lines(row, with_prompt=with_prompt):
        grid.add_row(Text(label, style="dim") if isinstance(label, str) else label, text)
    title = Text(visible(_title(row)))
    console.print(Panel(grid, title=title, title_align="left", border_style=COLOURS[row["state"]]))


def visible(text: str) -> str:
    """Return the text with control characters made visible: a terminal must not obey what a model wrote."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def json_line(row: dict[str, Any]) -> str:
    """Return a row as one line of JSON, readable in any script, with nothing in it that a terminal obeys."""
    text = json.dumps(row, ensure_ascii=False)
    return "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in text)


def _lines(row: dict[str, Any], *, with_prompt: bool) -> Iterator[tuple[str | Text, str | Text]]:
    if with_prompt:
        for message in row["messages"]:
            yield visible(message["role"]), Text(visible(message["content"]))
        if row["reference"] is not None:
            yield "reference", Text(visible(row["reference"]))
    verdicts = row.get("verdicts", ())
    if "text" in row:
        yield "completion", Text(visible(row["text"]), style="bold")
        for verdict in verdicts:
            yield _verdict(verdict)
    # Where a constraint failed, the decision's reason is that constraint's, which stands above already.
    if row["reason"] not in [f"{v['constraint']}: {v['reason']}" for v in verdicts]:
        yield "reason", Text(visible(row["reason"]))


def _verdict(verdict: dict[str, Any]) -> tuple[Text, Text]:
    name, reason = visible(verdict["constraint"]), visible(verdict["reason"] or "")
    if verdict["error"] is not None:
        return Text(f"! {name}", style="yellow"), Text(reason)
    if verdict["score"] is None:
        return Text(f"  {name}", style="dim"), Text(reason, style="dim")
    mark, colour = ("+", "green") if verdict["passed"] else ("-", "red")
    return Text(f"{mark} {name}", style=colour), Text(f"{verdict['score']:.3g}  {reason}")


def _title(row: dict[str, Any]) -> str:
    origin = f"{row['source']['file'].rsplit('/', 1)[-1]}:{row['source']['line']}"
    if "index" not in row:
        return f"{row['state']} · {origin}"
    score = "no score" if row["score"] is None else f"score {row['score']:.3g}"
    chance = f"p {row['acceptance_probability']:.3g}"
    tokens = f"{row['num_tokens']:,} token{'' if row['num_tokens'] == 1 else 's'}"
    return f"{row['state']} · {origin} #{row['index']} · {score} · {chance} · {tokens}"

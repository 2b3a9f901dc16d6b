"""Candidates as people read them: prompt, completion, every verdict and the reason of the decision."""

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.text import Text

COLOURS = {"accepted": "green", "rejected": "red", "error": "yellow", "quarantined": "magenta"}


def show_candidate(console: Console, row: dict[str, Any]) -> None:
    """Print one row of `inspection.inspect`."""
    body = Text()
    for message in row["messages"]:
        body.append(f"{message['role']}: ", style="dim")
        body.append(_visible(message["content"]) + "\n")
    if row["reference"] is not None:
        body.append("reference: ", style="dim")
        body.append(_visible(row["reference"]) + "\n")
    if "text" in row:
        body.append("completion: ", style="dim")
        body.append(_visible(row["text"]) + "\n", style="bold")
        for verdict in row["verdicts"]:
            _append_verdict(body, verdict)
    body.append("reason: ", style="dim")
    body.append(_visible(row["reason"]))
    console.print(Panel(body, title=_title(row), title_align="left", border_style=COLOURS[row["state"]]))


def _append_verdict(body: Text, verdict: dict[str, Any]) -> None:
    if verdict["error"] is not None:
        body.append("  ! ", style="yellow")
        body.append(f"{verdict['constraint']}: {_visible(verdict['reason'])}\n")
        return
    body.append("  + " if verdict["passed"] else "  - ", style="green" if verdict["passed"] else "red")
    reason = f": {_visible(verdict['reason'])}" if verdict["reason"] else ""
    body.append(f"{verdict['constraint']} {verdict['score']:.3g}{reason}\n")


def _title(row: dict[str, Any]) -> str:
    place = f"{row['source']['file'].rsplit('/', 1)[-1]}:{row['source']['line']}"
    if "index" not in row:
        return escape(f"{row['state']} · {place}")
    score = "no score" if row["score"] is None else f"score {row['score']:.3g}"
    chance = f"p {row['acceptance_probability']:.3g}"
    return escape(f"{row['state']} · {place} #{row['index']} · {score} · {chance} · {row['num_tokens']} tokens")


def _visible(text: str) -> str:
    """Return the text with control characters made visible: a terminal must not obey what a model wrote."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)

"""Progress of a running stage, on stderr: a live line on a terminal, a line now and then anywhere else.

Stages tell a `Reporter` what they did; whether and how it is shown is decided here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

PLAIN_INTERVAL_S = 15.0
"""Seconds between two lines where the output is no terminal."""


@dataclass
class Progress:
    """Counts of a collection while it runs."""

    num_prompts: int
    num_prompts_done: int = 0
    num_prompts_found: int = 0
    """Of those done, the ones that earlier invocations had committed."""
    num_solved: int = 0
    num_candidates: int = 0
    num_passed: int = 0
    num_accepted: int = 0
    num_tokens: int = 0
    sampling_s: float = 0.0
    failures: list[str] = field(default_factory=list)
    first_error: tuple[str, str] | None = None
    """Constraint and traceback of the first verdict that is an error."""
    started: float = field(default_factory=time.monotonic)

    def describe(self) -> str:
        """Return one line: how far, how fast, how well, and how long still."""
        elapsed = max(time.monotonic() - self.started, 1e-9)
        fresh = self.num_prompts_done - self.num_prompts_found
        parts = [f"{self.num_prompts_done:,}/{self.num_prompts:,} prompts"]
        if self.num_candidates:
            parts += [
                f"{self.num_candidates / elapsed:,.0f} candidates/s",
                f"{self.num_tokens / elapsed:,.0f} tokens/s",
                f"passed {self.num_passed / self.num_candidates:.0%}",
            ]
            # Where the round decides at its seal, nothing is accepted before.
            parts += [f"accepted {self.num_accepted:,}"] if self.num_accepted else []
        if fresh and self.num_prompts_done < self.num_prompts:
            parts.append(f"{duration((self.num_prompts - self.num_prompts_done) * elapsed / fresh)} left")
        if self.failures:
            parts.append(f"{len(self.failures)} failed attempts")
        return " · ".join(parts)


class Reporter:
    """Shows stages and their progress; everything goes to stderr, results belong to stdout."""

    def __init__(self, console: Console | None = None, *, quiet: bool = False) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._quiet = quiet
        self._bar: Bar | None = None
        self._last = 0.0
        self._title = ""
        self._words = ""

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        """Show a stage for the length of the block, and how long it took when it is over."""
        start = time.monotonic()
        self._title, self._last = title, start
        live = self.console.is_terminal and not self._quiet
        if live:
            self._bar = Bar(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TimeElapsedColumn(),
                TextColumn("{task.fields[said]}"),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(title, total=None, said="")
            self._bar.start()
        last_words = ""
        try:
            yield
            last_words = self._said()
        finally:
            if self._bar:
                self._bar.stop()
                self._bar = None
        if not self._quiet:
            seconds = duration(time.monotonic() - start)
            self.console.print(f"{title:<28} {seconds:>8}  [dim]{last_words}[/dim]", highlight=False)

    def collecting(self, progress: Progress) -> None:
        """Show how far a collection is."""
        self._show(progress.describe(), progress.num_prompts_done, progress.num_prompts)

    def training(self, step: int, num_steps: int, loss: float) -> None:
        """Show how far training is."""
        self._show(f"step {step}/{num_steps} · loss {loss:.3f}", step, num_steps)

    def note(self, text: str) -> None:
        """Say something that should be read."""
        if not self._quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _show(self, said: str, done: int, total: int) -> None:
        self._words = said
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, said=said)
        elif not self._quiet and time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self.console.print(f"{self._title:<28} {said}", highlight=False)

    def _said(self) -> str:
        words, self._words = self._words, ""
        return words


def duration(seconds: float) -> str:
    """Return seconds as people write them: 8.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

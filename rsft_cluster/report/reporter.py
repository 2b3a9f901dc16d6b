"""Progress of a running stage, on stderr: a live line on a terminal, a line now and then anywhere else.

Stages tell a `Reporter` what they did; whether and how it is shown is decided here.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from rsft_cluster.progress import Progress, duration

PLAIN_INTERVAL_S = 15.0
"""Seconds between two lines where the output is no terminal."""


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
                TextColumn("{task.fields[words]}"),
                console=self.console,
                transient=True,
            )
            self._bar.add_task(title, total=None, words="")
            self._bar.start()
        last_words = ""
        try:
            yield
            last_words = self._last_words()
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

    def decided(self, round_number: int, figures: Mapping[str, object]) -> None:
        """Show nothing: the table of all rounds follows at the end."""

    def note(self, text: str) -> None:
        """Say something that should be read."""
        if not self._quiet:
            self.console.print(text, highlight=False, soft_wrap=True)

    def _show(self, words: str, done: int, total: int) -> None:
        self._words = words
        if self._bar:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, words=words)
        elif not self._quiet and time.monotonic() - self._last >= PLAIN_INTERVAL_S:
            self._last = time.monotonic()
            self.console.print(f"{self._title:<28} {words}", highlight=False)

    def _last_words(self) -> str:
        words, self._words = self._words, ""
        return words

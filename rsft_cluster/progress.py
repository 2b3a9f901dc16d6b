"""What a running stage tells whoever listens: counts of a collection, steps of a training, words for a person."""

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Protocol


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
    remarks: dict[str, None] = field(default_factory=dict)
    """What the generators said about how they decode, each once."""
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


class Listener(Protocol):
    """What a run tells its progress to: a terminal, a notebook, a tracker.

    A tracker is a class that offers these methods and is built with the run's config, then its own parameters. It is
    named in the config, `trackers: [{use: my_tracker:Tracker, params: {...}}]`, and lives in the driver's process. One
    that raises is left out from there on; the run goes on without it.
    """

    def stage(self, title: str) -> AbstractContextManager[None]:
        """Return a context that lasts as long as the stage."""
        ...

    def collecting(self, progress: Progress) -> None:
        """Take in how far a collection is; called after every unit."""
        ...

    def training(self, step: int, num_steps: int, loss: float) -> None:
        """Take in how far a training is; called after optimizer steps, the loss in nats a token."""
        ...

    def decided(self, round_number: int, figures: Mapping[str, object]) -> None:
        """Take in the figures of a finished round, by the names of `rsft status --json`."""
        ...

    def note(self, text: str) -> None:
        """Take in a line that a person should read."""
        ...


def duration(seconds: float) -> str:
    """Return seconds as people write them: 8.4 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"

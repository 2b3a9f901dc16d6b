"""Trackers that tests name in configs."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rsft_cluster.config import RunConfig
from rsft_cluster.progress import Progress


class Written:
    """Writes what it hears to a file, a line of JSON each."""

    def __init__(self, config: RunConfig, *, path: str) -> None:
        self._path, self._run = Path(path), config.run

    @contextmanager
    def stage(self, title: str) -> Iterator[None]:
        self._write("begin", title)
        yield
        self._write("end", title)

    def collecting(self, progress: Progress) -> None:
        self._write("collecting", progress.num_prompts_done)

    def training(self, step: int, num_steps: int, loss: float) -> None:
        self._write("training", [step, num_steps, loss])

    def decided(self, round_number: int, figures: Mapping[str, object]) -> None:
        self._write("decided", [round_number, figures["promoted"]])

    def note(self, text: str) -> None:
        self._write("note", text)

    def _write(self, event: str, value: object) -> None:
        with self._path.open("a") as file:
            file.write(json.dumps([self._run, event, value]) + "\n")


class Unreachable(Written):
    """Fails as one does whose server is away."""

    def _write(self, event: str, value: object) -> None:
        raise ConnectionError("the server is away")

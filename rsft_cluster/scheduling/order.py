"""What a schedule is made from, what it is made of, and its times as cron and systemd write them. All times are UTC."""

import shlex
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from rsft_cluster.config import NightlyConfig, RunConfig
from rsft_cluster.nightly.dates import WEEKDAYS


@dataclass(frozen=True, slots=True)
class File:
    """One ready file."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Kubernetes:
    """Where in a Kubernetes cluster nights run."""

    image: str
    namespace: str = "rsft"
    claim: str = "rsft"
    """A PersistentVolumeClaim that all pods mount where the config names local paths."""
    mount: str = "/shared"
    """Where they mount it."""
    secret: str | None = None
    """A Secret whose keys become environment variables: credentials of an object store, a hub token."""
    queue: str | None = None
    """A Kueue LocalQueue. Kueue admits clusters of a fixed size only: with it there is no autoscaling."""


@dataclass(frozen=True, slots=True)
class Order:
    """A config whose nights are to be scheduled."""

    config: RunConfig
    path: Path
    """The config's file, absolute."""
    words: tuple[str, ...]
    """The words after `rsft nightly CONFIG`: overrides, --trust-remote-code."""
    python: str
    """The interpreter, absolute: schedulers know no virtual environment."""
    folder: Path
    """Where the command was given; a relative store lies there."""
    kubernetes: Kubernetes
    night: date
    """The night that a single job is for."""

    @property
    def run(self) -> str:
        """Name of the run."""
        return self.config.run

    def arguments(self) -> list[str]:
        """Return the command of one night, word by word."""
        return [self.python, "-m", "rsft_cluster", "nightly", str(self.path), *self.words]

    def command(self) -> str:
        """Return the command of one night for a shell."""
        return shlex.join(self.arguments())


def cron_schedule(nightly: NightlyConfig) -> str:
    """Return the five fields of a crontab line, for a cron that reads them as UTC."""
    hour, minute = map(int, nightly.at.split(":"))
    return f"{minute} {hour} * * {_cron_days(nightly)}"


def _cron_days(nightly: NightlyConfig) -> str:
    # Sunday is 0 in every cron, 7 in some.
    days = sorted((WEEKDAYS.index(day) + 1) % 7 for day in set(nightly.weekdays))
    return "*" if len(days) == 7 else ",".join(map(str, days))


def on_calendar(nightly: NightlyConfig) -> str:
    """Return the time of nights as a systemd timer takes it."""
    days = [day for day in WEEKDAYS if day in nightly.weekdays]
    prefix = "" if len(days) == 7 else ",".join(day.capitalize() for day in days) + " "
    return f"{prefix}*-*-* {nightly.at}:00 UTC"

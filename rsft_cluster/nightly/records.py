"""Records of nights: what a night takes and begins from, and what became of it."""

from typing import Literal

from rsft_cluster.records import PolicyRef, Record
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout


class Taken(Record):
    """The prompts that a night took, copied aside."""

    path: str
    """Parquet file of PROMPT rows."""
    num_prompts: int
    num_seen: int
    """Prompts that earlier nights had taken."""
    num_bad: int
    content: str
    """Digest over the prompt ids in order."""


class NightPlan(Record):
    """What a night works on, fixed when it begins."""

    policy: PolicyRef
    taken: Taken
    missed: tuple[str, ...] = ()
    """Earlier dates on which a night was due and none began."""


class NightRecord(Record):
    """What became of a night; a date that has one is over."""

    date: str
    """UTC, the day on which the night was to begin."""
    outcome: Literal["promoted", "kept", "nothing_new", "nothing_accepted", "diverged", "abandoned"]
    reason: str
    policy: str
    """The name of the policy that is current after it."""
    num_prompts: int = 0
    num_accepted: int = 0
    before: float | None = None
    """pass@1 of the policy that the night began with, on held-out prompts."""
    after: float | None = None
    """pass@1 of what it trained last."""
    missed: tuple[str, ...] = ()
    hours: float = 0.0
    ended_at: str
    """UTC, ISO 8601."""


def record_of(store: Store, night: str) -> NightRecord | None:
    """Return what became of a night, None while it is not over."""
    return store.find_record(RunLayout(store).night(night).record, NightRecord)


def records(store: Store) -> list[NightRecord]:
    """Return the nights that are over, oldest first."""
    return [store.read_record(path, NightRecord) for path in RunLayout(store).night_records()]

"""A run in the store: what it is made of, which artefacts stand, who may write.

`keep` is the only way in which a round resumes: an artefact that stands is opened, another is made and then put.
Nothing here needs a cluster; reading a run's state needs this module alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import (
    PilotChoice,
    PolicyRef,
    Record,
)
from rsft_cluster.runs.lease import Lease
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

R = TypeVar("R", bound=Record)


@dataclass(frozen=True)
class Run:
    """A run that this process may write to."""

    config: RunConfig
    store: Store
    lease: Lease
    fingerprint: str
    base: PolicyRef
    trust_remote_code: bool = False
    arm: str = "rounds"
    """Where its rounds lie: `rounds`, or `controls/<name>` for an arm that is only compared, never promoted."""

    def round(self, number: int) -> Folder:
        """Return the folder of a round's candidates, scores, accepted samples and model."""
        return Folder(self.store, f"{self.arm}/{number:04d}")

    def evaluation(self, number: int) -> Folder:
        """Return the folder of the evaluation of what a round trained."""
        return Folder(self.store, f"{self.arm}/{number:04d}/evaluation")

    @property
    def log(self) -> PromotionLog:
        """The run's promotions."""
        return PromotionLog(self.store)

    def keep(self, path: str, kind: type[R], make: Callable[[], R]) -> R:
        """Open the artefact at `path`, or make it and put it there."""
        if not self.store.exists(path):
            record = make()
            self.lease.check()
            self.store.create(path, record.to_json())
        return self.store.read_record(path, kind)


def pilot_path(number: int) -> str:
    """Return where the choice of a round's pilot is kept."""
    return f"rounds/{number:04d}/pilot.json"


def pilot_choice(store: Store, number: int) -> PilotChoice | None:
    """Return what a round's pilot chose, None where there was none or it is not done."""
    return read_record(store, pilot_path(number), PilotChoice)


def recorded_config(store: Store) -> RunConfig:
    """Return the config that a run was begun with."""
    return RunConfig.model_validate_json(store.read("config.json"))


def round_of(policy: PolicyRef) -> int:
    """Return the round that made a policy."""
    return int(policy.name.removeprefix("round-"))


def read_record(store: Store, path: str, kind: type[R]) -> R | None:
    """Return the record at `path`, None while there is none."""
    return store.read_record(path, kind) if store.exists(path) else None


def open_store(config: RunConfig) -> Store:
    """Return the store of a config's run, written to and found able; raises StoreError otherwise."""
    store = Store(f"{config.store.rstrip('/')}/{config.run}")
    store.probe()
    return store


def find_run(uri: str) -> Store:
    """Return the store of a run named by its folder; raises ConfigError where none is."""
    store = Store(uri)
    if not store.exists("config.json"):
        raise ConfigError(f"{uri}: there is no run here (no config.json); expected a folder like runs/my-run")
    return store

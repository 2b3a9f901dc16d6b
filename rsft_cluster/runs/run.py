"""A run in the store: what it is made of, which artefacts stand, who may write.

`keep` is the only way in which a round resumes: an artefact that stands is opened, another is made and then put.
Nothing here needs a cluster; reading a run's state needs only this module.
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
from rsft_cluster.store.layout import ArmLayout, RoundLayout, RunLayout

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
    control: str | None = None
    """The control arm that this stands for: its rounds are only compared, never promoted; None for the run itself."""

    @property
    def layout(self) -> RunLayout:
        """Where things lie in the run's store."""
        return RunLayout(self.store)

    @property
    def arm(self) -> ArmLayout:
        """Where the rounds lie, of the run or of its control arm."""
        return self.layout.control(self.control) if self.control else self.layout.rounds

    def round(self, number: int) -> RoundLayout:
        """Return where a round lies, of the run or of its control arm."""
        return self.arm.round(number)

    @property
    def log(self) -> PromotionLog:
        """The run's promotions."""
        return PromotionLog(self.store)

    def keep(self, path: str, kind: type[R], make: Callable[[], R]) -> R:
        """Open the artefact at `path`, or make it and put it there."""
        if not self.store.exists(path):
            self.lease.publish(path, make())
        return self.store.read_record(path, kind)


def pilot_choice(store: Store, number: int) -> PilotChoice | None:
    """Return what a round's pilot chose, None where there was none or it is not done."""
    return store.find_record(RunLayout(store).round(number).pilot_choice, PilotChoice)


def recorded_config(store: Store) -> RunConfig:
    """Return the config that a run was begun with."""
    return RunConfig.model_validate_json(store.read(RunLayout(store).config))


def round_of(policy: PolicyRef) -> int:
    """Return the round that made a policy."""
    return int(policy.name.removeprefix("round-"))


def open_store(config: RunConfig) -> Store:
    """Return the store of a config's run, written to and found able; raises StoreError otherwise."""
    store = Store(f"{config.store.rstrip('/')}/{config.run}")
    store.probe()
    return store


def find_run(uri: str) -> Store:
    """Return the store of a run named by its folder; raises ConfigError where none is."""
    store = Store(uri)
    if not store.exists(RunLayout(store).config):
        raise ConfigError(f"{uri}: there is no run here (no config.json); expected a folder like runs/my-run")
    return store

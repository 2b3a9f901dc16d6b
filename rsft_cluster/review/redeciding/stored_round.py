"""A sealed round: its units in order, with their files and the scores of any of its scorings."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from rsft_cluster.acceptance.piloted import config_of_round
from rsft_cluster.collection.plan import halves, planned_units
from rsft_cluster.collection.whole_round import JudgedUnit
from rsft_cluster.config import RUN_NAME, Constraint, RunConfig, ScoringConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import FileRef, Manifest, Plan, Unit
from rsft_cluster.review.records import Scoring, Settings
from rsft_cluster.runs.fingerprint import differing_keys
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store
from rsft_cluster.store.layout import (
    DecisionSetLayout,
    Folder,
    RoundLayout,
    RunLayout,
    ScoringLayout,
    collection_of,
    unit_of,
)

SEALED = "sealed"
"""The name of the scoring, and of the decision, that the round was sealed with."""


@dataclass(frozen=True)
class StoredUnit:
    """A unit with its files."""

    name: str
    """The unit's name in the manifest, unique in the round."""
    wave: str
    """Folder of the collection that sampled it."""
    judged: JudgedUnit
    """The unit with its candidates and the scores of the chosen scoring."""
    sealed: FileRef
    """The sealed scores, with the sealed decision."""


@dataclass(frozen=True)
class StoredRound:
    """A sealed round."""

    store: Store
    number: int
    config: RunConfig
    plan: Plan
    manifest: Manifest

    @property
    def folder(self) -> RoundLayout:
        """Return the round's folder."""
        return RunLayout(self.store).round(self.number)

    @cached_property
    def candidates_digest(self) -> str:
        """Digest over all candidates' files."""
        return digest([ref.sha256 for ref in self.manifest.candidates])

    def scoring(self, name: str) -> Scoring:
        """Return a finished scoring; raises ConfigError where there is none of that name."""
        scoring = self.store.find_record(self.folder.scoring(checked_name(name, "--scoring")).record, Scoring)
        if scoring is None:
            names = ", ".join([SEALED, *self.folder.scorings()])
            raise ConfigError(f"--scoring {name}: round {self.number} has {names}")
        return scoring

    def units(self, scoring: str = SEALED) -> Iterator[StoredUnit]:
        """Yield the units that have candidates, in the order of the manifest, with the scores of a scoring."""
        manifest = self.manifest
        scores = manifest.scores if scoring == SEALED else self.scoring(scoring).scores
        planned: dict[str, Mapping[str, Unit]] = {}
        for candidates, sealed, ref in zip(manifest.candidates, manifest.scores, scores, strict=True):
            wave, unit = collection_of(candidates.path), unit_of(candidates.path)
            if wave not in planned:
                planned[wave] = self._planned(Folder(self.store, wave))
            yield StoredUnit(
                unit_of(sealed.path), wave, JudgedUnit(_part(planned[wave], unit), candidates, ref), sealed
            )

    def _planned(self, folder: Folder) -> Mapping[str, Unit]:
        plan = self.store.read_record(folder.plan, Plan)
        return {unit.unit: unit for unit in planned_units(folder, plan)}


def stored_round(store: Store, number: int | None) -> StoredRound:
    """Return a sealed round, by default the newest; raises ConfigError where it is not sealed."""
    sealed = RunLayout(store).sealed_rounds()
    if not sealed:
        raise ConfigError(f"{store.uri}: no round is sealed yet")
    if number is None:
        number = sealed[-1]
    if number not in sealed:
        raise ConfigError(f"{store.uri}: round {number} is not sealed; sealed rounds: {', '.join(map(str, sealed))}")
    folder = RunLayout(store).round(number)
    plan, manifest = store.read_record(folder.plan, Plan), store.read_record(folder.manifest, Manifest)
    return StoredRound(store, number, config_of_round(store, number), plan, manifest)


def constraints_of(stored: StoredRound, scoring: str) -> tuple[Constraint, ...]:
    """Return the constraints of a scoring, in the order of its verdicts."""
    if scoring == SEALED:
        return stored.config.scoring.constraints
    settings = stored.scoring(scoring).settings
    return ScoringConfig.model_validate({"constraints": settings["scoring.constraints"]}).constraints


def checked_name(name: str, option: str) -> str:
    """Return a name that is fit for a path; raises ConfigError for another."""
    if not re.fullmatch(RUN_NAME, name):
        raise ConfigError(f"{option} {name}: lower-case letters, digits, dot, dash and underscore make a name")
    return name


def new_name(name: str) -> str:
    """Return a name that is fit for `--name`; raises ConfigError for another, and for SEALED."""
    if name == SEALED:
        raise ConfigError(f"--name {SEALED}: names what the round was sealed with; choose another")
    return checked_name(name, "--name")


def claim_name(folder: ScoringLayout | DecisionSetLayout, title: str, settings: Mapping[str, object]) -> None:
    """Record the settings that a folder's name stands for, unless another process has done so.

    Raises ConfigError naming every setting that differs from the recorded one.
    """
    folder.store.create(folder.settings, Settings(settings=dict(settings)).to_json())
    recorded = folder.store.read_record(folder.settings, Settings).settings
    if differing := differing_keys(recorded, settings):
        lines = [f"  {k}: was {recorded.get(k, 'absent')}, is {settings.get(k, 'absent')}" for k in differing]
        raise ConfigError(f"{title} was made with other settings; give this one another --name:\n" + "\n".join(lines))


def _part(planned: Mapping[str, Unit], name: str) -> Unit:
    """Return a unit of a plan, or the part of one that was split, by its name."""
    whole, *parts = name.split("-")
    if whole not in planned:
        raise StoreError(f"unit {name}: is not in the plan of its round")
    unit = planned[whole]
    for part in parts:
        unit = halves(unit)[int(part)]
    return unit

"""Where everything lies in a run's store; no path of a run is spelled anywhere else.

    config.json  fingerprint.json
    lease/000007.json          who holds epoch 7
    promotions/000003.json     which policy is current since
    prompts/train.parquet      and its record and unusable lines beside it; held_out and imported alike
    rounds/0003/               RoundLayout: a collection of candidates, and what was made of it
    controls/random/0003/      the same round of a control arm
    nights/2026-08-01.json     what became of a night; nights/2026-08-01/ is the run that it did
    seen/2026-08-01.parquet    ids of the prompts that the night took

A layout names paths, relative to the store, and lists those that are there; it reads no record.
"""

from dataclasses import dataclass

from rsft_cluster.store import Store


class _Below:
    """A path below the folder of the layout that it is an attribute of."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __get__(self, layout: "_Layout", _: type) -> str:
        return layout.at(self._path)


@dataclass(frozen=True)
class _Layout:
    store: Store
    path: str
    """The folder, relative to the store."""

    def at(self, *parts: str) -> str:
        """Return a path below the folder."""
        return "/".join([self.path, *parts] if self.path else parts)

    @property
    def name(self) -> str:
        """The last part of the folder's path."""
        return self.path.rpartition("/")[2]


class _UnitsLayout(_Layout):
    commits = _Below("commits")
    """The folder of finished units."""

    def commit(self, name: str, *, is_faulty: bool = False) -> str:
        """Return the record of a finished unit; one with too many errors counts only for whoever made it."""
        return self.at("commits", f"{name}{'.faulty' if is_faulty else ''}.json")

    def is_faulty(self, commit: str) -> bool:
        """Return whether a path is that of a commit with too many errors."""
        return commit.endswith(".faulty.json")

    def table(self, part: str, name: str) -> str:
        """Return the Parquet file of a unit's `candidates`, `judged` or decided `scores`, or `accepted` samples."""
        return self.at(part, f"{name}.parquet")


class Folder(_UnitsLayout):
    """A collection: the candidates of a round, a wave, a pilot or an evaluation, unit by unit."""

    units = _Below("plan/units.parquet")
    """The list of units."""
    plan = _Below("plan/plan.json")
    """The plan's record, written after the units."""
    manifest = _Below("manifest.json")
    """The seal."""
    attempts = _Below("attempts")
    """The folder of attempts at units that were begun."""
    splits = _Below("splits")
    """The folder of units that are done in halves."""

    def attempt(self, name: str) -> str:
        """Return the mark of an attempt, put before its work."""
        return self.at("attempts", f"{name}.json")

    def failure(self, name: str) -> str:
        """Return the error of an attempt that reported one."""
        return self.at("attempts", f"{name}.failed.json")

    def split(self, unit: str) -> str:
        """Return the mark of a unit that is done in halves."""
        return self.at("splits", f"{unit}.json")


class WaveLayout(Folder):
    """One wave of a round."""

    prompts = _Below("prompts.parquet")
    """The ASKED rows: the wave's prompts, and how often it asks each."""


class EvaluationLayout(Folder):
    """A policy's answers to the held-out prompts, and the figures over them."""

    record = _Below("evaluation.json")
    """The Evaluation."""
    fairness = _Below("fairness.json")
    """The FairnessReport, where fairness is configured."""
    per_prompt = _Below("per_prompt.parquet")
    """A row a prompt: what the promotion rule compares."""


class ScoringLayout(_UnitsLayout):
    """Another scoring of a sealed round's candidates."""

    settings = _Below("settings.json")
    """The Settings that the name stands for, put by whoever comes first."""
    record = _Below("scoring.json")
    """The Scoring, written last."""
    judged = _Below("judged")
    """The folder of undecided scores; deleted, as the commits are, once the record stands."""


class DecisionSetLayout(_UnitsLayout):
    """Another decision on a sealed round's candidates."""

    settings = _Below("settings.json")
    """The Settings that the name stands for, put by whoever comes first."""
    record = _Below("decision.json")
    """The DecisionSet, written last."""


class RoundLayout(Folder):
    """A round: its candidates as a collection, what was trained on them, and what was decided."""

    imported = _Below("imported.json")
    """The record of what was brought in, where a round's candidates are from elsewhere."""
    audit = _Below("audit.json")
    """The AuditHead: the end of the round's chain of audit lines."""
    pilot_prompts = _Below("pilot/prompts.parquet")
    """The prompts that the pilot asks."""
    pilot_choice = _Below("pilot.json")
    """The PilotChoice."""
    model = _Below("model")
    """The folder of the policy that was trained."""
    checkpoints = _Below("training")
    """The folder that training keeps its checkpoints and metrics in."""
    training = _Below("training.json")
    """The TrainingResult; the model is whole once this stands."""
    decision = _Below("decision.json")
    """The Decision whether the challenger replaces the incumbent."""

    @property
    def evaluation(self) -> EvaluationLayout:
        """The evaluation of what was trained; in round 0, of the policy that the run starts from."""
        return EvaluationLayout(self.store, self.at("evaluation"))

    def pilot(self, temperature: float) -> Folder:
        """Return what the pilot sampled at a temperature."""
        return Folder(self.store, self.at("pilot", f"{temperature:g}"))

    def wave(self, number: int) -> WaveLayout:
        """Return a wave; only rounds that are decided as a whole have some."""
        return WaveLayout(self.store, self.at("waves", f"{number:04d}"))

    def waves(self) -> list[WaveLayout]:
        """Return the waves that were begun, in order."""
        return [WaveLayout(self.store, path) for path in self.store.folders(self.at("waves"))]

    def scoring(self, name: str) -> ScoringLayout:
        """Return another scoring of the round."""
        return ScoringLayout(self.store, self.at("scorings", name))

    def scorings(self) -> list[str]:
        """Return the names of the scorings that are finished."""
        scorings = [ScoringLayout(self.store, path) for path in self.store.folders(self.at("scorings"))]
        return [scoring.name for scoring in scorings if self.store.exists(scoring.record)]

    def decision_set(self, name: str) -> DecisionSetLayout:
        """Return another decision on the round."""
        return DecisionSetLayout(self.store, self.at("decisions", name))

    def decision_sets(self) -> list[str]:
        """Return the names of the other decisions that are finished."""
        decisions = [DecisionSetLayout(self.store, path) for path in self.store.folders(self.at("decisions"))]
        return [decision.name for decision in decisions if self.store.exists(decision.record)]


class ArmLayout(_Layout):
    """Rounds that follow on one another: the run's own, or those of a control arm."""

    def round(self, number: int) -> RoundLayout:
        """Return a round of the arm."""
        return RoundLayout(self.store, self.at(f"{number:04d}"))


@dataclass(frozen=True)
class PromptsLayout:
    """A set of prompts."""

    record: str
    """The PromptSet."""
    table: str
    """The PROMPT rows; a row group holds whole units."""
    quarantine: str
    """The lines that could not be used."""


class NightLayout(_Layout):
    """A night: its folder is a run like any other, with what only nights have beside it."""

    plan = _Below("night.json")
    """The NightPlan."""
    starts = _Below("starts")
    """The folder with a file for every start of the night."""
    taken = _Below("taken.parquet")
    """The PROMPT rows that the night works on."""
    quarantine = _Below("taken.quarantine.jsonl")
    """The lines that could not be used."""

    @property
    def record(self) -> str:
        """The NightRecord, written last."""
        return f"{self.path}.json"

    def start(self, epoch: int) -> str:
        """Return the mark of the start under an epoch of the lease."""
        return self.at("starts", f"{epoch:06d}.json")

    def run(self) -> Store:
        """Return the store of the night's run."""
        return Store(self.store.uri_of(self.path))


@dataclass(frozen=True)
class RunLayout(_Layout):
    """A run, or the nights of `rsft nightly`."""

    path: str = ""
    config = _Below("config.json")
    """The config that the run was begun with; of nights, that of the newest."""
    fingerprint = _Below("fingerprint.json")
    """The settings that the run stands for, as flat keys."""
    lease = _Below("lease")
    """The folder of leases; that of the highest epoch counts."""
    promotions = _Below("promotions")
    """The folder of the promotions log; the entry of the highest number counts."""
    prompt_sets = _Below("prompts")
    """The folder of all sets of prompts."""
    nights = _Below("nights")
    """The folder of nights; the store of their runs."""
    seen = _Below("seen")
    """The folder of the ids of prompts that nights took."""

    def lease_of(self, epoch: int) -> str:
        """Return the lease of an epoch."""
        return self.at("lease", f"{epoch:06d}.json")

    def promotion(self, number: int) -> str:
        """Return an entry of the promotions log."""
        return self.at("promotions", f"{number:06d}.json")

    def prompts(self, name: str) -> PromptsLayout:
        """Return a set of prompts: `train`, `held_out` or `imported`."""
        stem = self.at("prompts", name)
        return PromptsLayout(f"{stem}.json", f"{stem}.parquet", f"{stem}.quarantine.jsonl")

    @property
    def rounds(self) -> ArmLayout:
        """The run's own rounds."""
        return ArmLayout(self.store, self.at("rounds"))

    def round(self, number: int) -> RoundLayout:
        """Return one of the run's own rounds."""
        return self.rounds.round(number)

    def round_numbers(self) -> list[int]:
        """Return the rounds of which a file is stored, in order."""
        return sorted({int(path.split("/")[1]) for path in self.store.files(self.rounds.path, recursive=True)})

    def sealed_rounds(self) -> list[int]:
        """Return the rounds that are sealed, in order."""
        numbers = sorted(int(path.rpartition("/")[2]) for path in self.store.folders(self.rounds.path))
        return [number for number in numbers if self.store.exists(self.round(number).manifest)]

    def control(self, name: str) -> ArmLayout:
        """Return a control arm: its rounds are only compared, never promoted."""
        return ArmLayout(self.store, self.at("controls", name))

    def controls(self) -> list[ArmLayout]:
        """Return the control arms that were begun."""
        return [ArmLayout(self.store, path) for path in self.store.folders(self.at("controls"))]

    def night(self, date: str) -> NightLayout:
        """Return the night of a date."""
        return NightLayout(self.store, self.at("nights", date))

    def begun_nights(self) -> list[NightLayout]:
        """Return the nights that have a folder, oldest first."""
        return [NightLayout(self.store, path) for path in self.store.folders(self.nights)]

    def night_records(self) -> list[str]:
        """Return the records of the nights that are over, oldest first."""
        return self.store.files(self.nights)

    def seen_on(self, date: str) -> str:
        """Return the SEEN rows of a night."""
        return self.at("seen", f"{date}.parquet")


def collection_of(table: str) -> str:
    """Return the folder of the collection that a Parquet file of one of its units lies in."""
    return table.rsplit("/", 2)[0]


def unit_of(table: str) -> str:
    """Return the unit that a Parquet file of a collection is about."""
    return table.rpartition("/")[2].split(".")[0]

"""A run in the store: what it is made of, which artefacts stand, who may write.

`keep` is the only way in which a round resumes: an artefact that stands is opened, another is made and then put.
Nothing here needs a cluster; reading a run's state needs this module alone.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, TypeVar

import pyarrow as pa

from rsft_cluster.collection.plan import Folder, write_prompts
from rsft_cluster.config import PromptsConfig, RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.lease import Lease
from rsft_cluster.promotion import PromotionLog
from rsft_cluster.prompts import BadLine, read_prompts
from rsft_cluster.prompts.held_out import HeldOut
from rsft_cluster.records import (
    Decision,
    Evaluation,
    FairnessReport,
    Manifest,
    PilotChoice,
    PolicyRef,
    PromptSet,
    Record,
    TrainingResult,
)
from rsft_cluster.report.tables import RoundSummary
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store

R = TypeVar("R", bound=Record)
STAGES = ("sample", "train", "evaluate", "promote")


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


def config_of_round(config: RunConfig, store: Store, number: int) -> RunConfig:
    """Return the config with what the round's pilot chose in it, where there was one."""
    if config.pilot is None or not store.exists(pilot_path(number)):
        return config
    choice = store.read_record(pilot_path(number), PilotChoice)
    acceptance = config.acceptance
    if choice.min_score is not None:
        params = {**acceptance.rule.params, "min_score": choice.min_score}
        acceptance = acceptance.model_copy(update={"rule": acceptance.rule.model_copy(update={"params": params})})
    sampling = config.sampling.model_copy(update={"temperature": choice.temperature})
    return config.model_copy(update={"sampling": sampling, "acceptance": acceptance})


def config_of(store: Store, number: int) -> RunConfig:
    """Return the config that a run was begun with, as a round has it."""
    return config_of_round(RunConfig.model_validate_json(store.read("config.json")), store, number)


def round_of(policy: PolicyRef) -> int:
    """Return the round that made a policy."""
    return int(policy.name.removeprefix("round-"))


def read_record(store: Store, path: str, kind: type[R]) -> R | None:
    """Return the record at `path`, None while there is none."""
    return store.read_record(path, kind) if store.exists(path) else None


def summary(store: Store, number: int, *, arm: str = "rounds") -> RoundSummary:
    """Return what the store holds of a round."""
    folder = Folder(store, f"{arm}/{number:04d}")
    manifest = read_record(store, folder.manifest, Manifest)
    training = read_record(store, folder.at("training.json"), TrainingResult)
    evaluation = read_record(store, folder.at("evaluation", "evaluation.json"), Evaluation)
    fairness = read_record(store, folder.at("evaluation", "fairness.json"), FairnessReport)
    decision = read_record(store, folder.at("decision.json"), Decision)
    if number == 0:
        stage = "done" if evaluation else "evaluate"
    else:
        made = (manifest, training, evaluation, decision)
        stage = next((name for name, record in zip(STAGES, made, strict=True) if record is None), "done")
    return RoundSummary(number, manifest, training, evaluation, decision, _controls(store, number), stage, fairness)


def _controls(store: Store, number: int) -> dict[str, Evaluation]:
    found = {}
    for arm in store.folders("controls"):
        path = f"{arm}/{number:04d}/evaluation/evaluation.json"
        if record := read_record(store, path, Evaluation):
            found[arm.rpartition("/")[2]] = record
    return found


def summaries(store: Store) -> list[RoundSummary]:
    """Return all rounds that the store knows of, in order."""
    numbers = {int(p.split("/")[1]) for p in store.files("rounds", recursive=True)}
    return [summary(store, n) for n in sorted(numbers)]


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


def take_in(run: Run) -> tuple[PromptSet, PromptSet]:
    """Read the training and the held-out prompts into the store, once; return what was found.

    Raises ConfigError when a held-out prompt also stands among the training prompts.
    """
    held_out = _take_in(run, "held_out", run.config.evaluation.prompts, HeldOut())
    return _take_in(run, "train", run.config.prompts, held_out_in(run.store, held_out)), held_out


def held_out_in(store: Store, prompts: PromptSet) -> HeldOut:
    """Return what was taken in as held-out prompts, to hold others against."""
    return HeldOut(store.read_batches(prompts.path, ["messages"]))


def _take_in(run: Run, name: str, config: PromptsConfig, held_out: HeldOut) -> PromptSet:
    def make() -> PromptSet:
        path, whole = f"prompts/{name}.parquet", hashlib.sha256()
        with quarantine(run.store, f"prompts/{name}.quarantine.jsonl") as (on_bad, where):
            intake = read_prompts(config, on_bad=on_bad, quarantine=where, fairness=run.config.fairness)
            batches = watched(intake, whole, held_out)
            write_prompts(run.store, path, batches, PROMPT, unit_size=run.config.sampling.unit_size)
        return PromptSet(
            path=path,
            num_lines=intake.num_lines,
            num_prompts=intake.num_prompts,
            num_duplicates=intake.num_duplicates,
            num_bad=intake.num_bad,
            content=whole.hexdigest()[:32],
        )

    return run.keep(f"prompts/{name}.json", PromptSet, make)


@contextmanager
def quarantine(store: Store, path: str) -> Iterator[tuple[Callable[[BadLine], None], str]]:
    """Yield what to call for each bad line, and where they are to be found; put them there when the block ends."""
    with tempfile.TemporaryFile() as bad:
        try:
            yield lambda line: _append(bad, line), store.uri_of(path)
        finally:
            if bad.tell():
                bad.seek(0)
                store.write(path, bad.read())


def _append(file: IO[bytes], line: BadLine) -> None:
    file.write(line.to_json().encode() + b"\n")


def watched(batches: Iterator[pa.RecordBatch], whole: "hashlib._Hash", held_out: HeldOut) -> Iterator[pa.RecordBatch]:
    """Pass batches of PROMPT on, their ids taken into a digest; ConfigError for one that is held out."""
    for batch in batches:
        whole.update("".join(batch.column("prompt_id").to_pylist()).encode())
        place = held_out.first_of(batch.column("messages"))
        if place is not None:
            source = batch.column("source")[place].as_py()
            raise ConfigError(
                f"{source['file']}:{source['line']}: this prompt also stands among the held-out prompts; a "
                "policy must not be trained on what it is evaluated on"
            )
        yield batch

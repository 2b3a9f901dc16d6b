"""Other constraints on the candidates of a sealed round: judged unit by unit, decided, and compared with the seal.

Processes of this machine judge: a constraint wants CPUs and no cluster, and whatever may hang or crash in it is caught
where it runs. Every unit is committed when it is judged, so what is killed goes on with the units that are missing.
Then all is decided, as `rsft accept` decides, and the record is written last. Two that make the same scoring write to
names of their own; the first record stands.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from multiprocessing import get_context
from uuid import uuid4

import pyarrow as pa

from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.driver import Tally, UnitCounts, UnitsLeft, bring_to_commits
from rsft_cluster.collection.plan import read_prompts_of
from rsft_cluster.collection.score_table import as_candidates, undecided_table, with_decisions
from rsft_cluster.config import RunConfig, flatten, is_operational
from rsft_cluster.errors import RsftError, StageError, StoreError
from rsft_cluster.metrics.meter import Meter
from rsft_cluster.progress import Progress
from rsft_cluster.records import FileRef, Record
from rsft_cluster.review.records import Scoring
from rsft_cluster.review.redeciding.group_blocks import in_order
from rsft_cluster.review.redeciding.outcome import decided_blocks, empty_outcome
from rsft_cluster.review.redeciding.stored_round import StoredRound, StoredUnit, claim_name, new_name, stored_round
from rsft_cluster.schemas import SCORE, digest
from rsft_cluster.scoring.error_limits import too_many_errors
from rsft_cluster.scoring.guarded_judge import GuardedJudge
from rsft_cluster.scoring.judge import Judge
from rsft_cluster.store import Store
from rsft_cluster.store.layout import ScoringLayout


class JudgedFile(Record):
    """A unit that is judged and not decided yet."""

    scores: FileRef
    num_verdicts: int
    num_errors: int
    first_error: tuple[str, str] | None
    num_passed: int
    num_tokens: int


@dataclass(frozen=True)
class ScoringTask:
    """What a scoring process needs to know. The config is JSON, so that tasks can be told apart."""

    store_uri: str
    number: int
    name: str
    config: str


def settings_of(stored: StoredRound, config: RunConfig) -> dict[str, object]:
    """Return all that a scoring depends on, as flat keys."""
    parts = config.model_dump(mode="json", include={"scoring", "acceptance"})
    kept = {key: value for key, value in flatten(parts).items() if not is_operational(key)}
    return {**kept, "candidates": stored.candidates_digest}


def rejudge(
    stored: StoredRound,
    config: RunConfig,
    selection: SelectionRules,
    name: str | None = None,
    *,
    workers: int = 1,
    report: Callable[[Progress], None] = lambda _: None,
) -> Scoring:
    """Judge the candidates by the constraints of a config, decide by `selection`, and publish the scoring; or open it.

    Raises ConfigError where the name stands for other settings, StageError where too many verdicts are errors.
    """
    settings = settings_of(stored, config)
    name = new_name(name or f"scoring-{digest(settings)[:8]}")
    folder = stored.folder.scoring(name)
    Judge(config.scoring.constraints)
    claim_name(folder, f"scoring {name}", settings)
    path = folder.record
    if not stored.store.exists(path):
        task = ScoringTask(stored.store.uri, stored.number, name, config.model_dump_json())
        try:
            judged = _judge_all(stored, config, task, workers, report)
            stored.store.create(path, _decided(stored, folder, name, settings, judged, selection).to_json())
        except StoreError:
            # Who is done first removes what was judged, under all who are not done.
            if not stored.store.exists(path):
                raise
    for leftover in (folder.judged, folder.commits):
        # What another process removes or writes just now is of no use to anybody, and goes when this is opened next.
        with suppress(StoreError):
            stored.store.delete_folder(leftover)
    return stored.store.read_record(path, Scoring)


def _judge_all(
    stored: StoredRound, config: RunConfig, task: ScoringTask, workers: int, report: Callable[[Progress], None]
) -> dict[str, JudgedFile]:
    """Bring every unit to a commit; return them by the units' names."""
    folder, units = stored.folder.scoring(task.name), list(stored.units())
    for path in stored.store.files(folder.commits):
        if folder.is_faulty(path):
            _remove(stored.store, path)
    there = set(stored.store.files(folder.commits))
    done = {u.name: stored.store.read_record(p, JudgedFile) for u in units if (p := folder.commit(u.name)) in there}
    num_prompts = sum(unit.judged.unit.num_prompts for unit in units)
    tally = Tally(num_prompts, report, max_error_rate=config.scoring.max_error_rate, meter=Meter())
    tally.resume(sum(unit.judged.unit.num_prompts for unit in units if unit.name in done))

    def left() -> UnitsLeft[StoredUnit] | None:
        chosen = [unit for unit in units if unit.name not in done]
        return UnitsLeft(chosen, True, chosen[0].name) if chosen else None

    def supply(units: Sequence[StoredUnit], *, are_fresh: bool) -> Iterator[UnitCounts | RsftError]:
        for unit, judged in zip(units, _judged(task, units, workers), strict=True):
            done[unit.name] = judged
            yield _counts(unit, judged)

    bring_to_commits(left, supply, tally, name=f"scoring {task.name}", max_idle_passes=1)
    num_verdicts, num_errors = (sum(getattr(j, n) for j in done.values()) for n in ("num_verdicts", "num_errors"))
    tally.check(num_verdicts=num_verdicts, num_errors=num_errors)
    return done


def _remove(store: Store, path: str) -> None:
    """Remove a file that another process may have removed meanwhile."""
    try:
        store.delete(path)
    except StoreError:
        if store.exists(path):
            raise


def _counts(unit: StoredUnit, judged: JudgedFile) -> UnitCounts:
    return UnitCounts(
        num_prompts=unit.judged.unit.num_prompts,
        num_candidates=judged.scores.num_rows,
        num_passed=judged.num_passed,
        num_tokens=judged.num_tokens,
        num_verdicts=judged.num_verdicts,
        num_errors=judged.num_errors,
        first_error=judged.first_error,
    )


def _judged(task: ScoringTask, units: Sequence[StoredUnit], workers: int) -> Iterator[JudgedFile]:
    if workers == 1:
        with closing(_Worker(task)) as worker:
            yield from map(worker.judge, units)
        return
    try:
        with ProcessPoolExecutor(min(workers, len(units) or 1), mp_context=get_context("spawn")) as pool:
            yield from in_order(pool, partial(_judge_one, task), units, 2 * workers)
    except BrokenProcessPool as error:
        raise StageError(
            "a scoring process died; the same command goes on with the units that are missing. With --workers 1 its "
            "last words are seen here"
        ) from error


def _judge_one(task: ScoringTask, unit: StoredUnit) -> JudgedFile:
    return _worker(task).judge(unit)


@cache
def _worker(task: ScoringTask) -> "_Worker":
    """Return this process's worker: constraints are built once."""
    return _Worker(task)


class _Worker:
    """Judges units."""

    def __init__(self, task: ScoringTask) -> None:
        self._config = RunConfig.model_validate_json(task.config)
        self._stored = stored_round(Store(task.store_uri), task.number)
        self._folder = self._stored.folder.scoring(task.name)
        self._judge = GuardedJudge(self._config.scoring)

    def close(self) -> None:
        """End the processes that constraints run in."""
        self._judge.close()

    def judge(self, unit: StoredUnit) -> JudgedFile:
        """Judge a unit and commit it; return what is committed, by whomever."""
        store = self._stored.store
        prompts, candidates = read_prompts_of(store, unit.judged.unit), store.read_table(unit.judged.candidates)
        judgements = self._judge.judge(as_candidates(prompts, candidates))
        scores = undecided_table(candidates, judgements, self._stored.plan, self._config.fairness)
        errors = [error for judgement in judgements for error in judgement.errors]
        judged = JudgedFile(
            scores=store.write_table(self._folder.table("judged", f"{unit.name}.{uuid4().hex[:12]}"), scores, SCORE),
            num_verdicts=sum(j.num_verdicts for j in judgements),
            num_errors=len(errors),
            first_error=errors[0] if errors else None,
            num_passed=sum(bool(j.passed) for j in judgements),
            num_tokens=sum(scores.column("num_tokens").to_pylist()),
        )
        is_faulty = too_many_errors(judged.num_errors, judged.num_verdicts, self._config.scoring)
        path = self._folder.commit(unit.name, is_faulty=is_faulty)
        if store.create(path, judged.to_json()) or is_faulty:
            return judged
        return store.read_record(path, JudgedFile)


def _decided(
    stored: StoredRound,
    folder: ScoringLayout,
    name: str,
    settings: dict[str, object],
    judged: Mapping[str, JudgedFile],
    selection: SelectionRules,
) -> Scoring:
    """Decide on what is judged and write it, a file a unit; return the record."""
    units = [replace(unit, judged=replace(unit.judged, scores=judged[unit.name].scores)) for unit in stored.units()]
    outcome = empty_outcome(stored)
    waiting: dict[str, list[pa.Table]] = {}
    written: dict[str, FileRef] = {}
    for block, decided in decided_blocks(stored, selection, outcome, units):
        start = 0
        for piece in block.pieces:
            # Waves cut units across blocks: one is written when its last piece has come.
            parts = waiting.setdefault(piece.unit.name, [])
            parts.append(decided.slice(start, piece.num_rows))
            start += piece.num_rows
            if sum(part.num_rows for part in parts) == piece.unit.judged.candidates.num_rows:
                rows = pa.concat_tables(waiting.pop(piece.unit.name))
                scores = with_decisions(stored.store.read_table(piece.unit.judged.scores), rows)
                written[piece.unit.name] = _write(stored.store, folder, piece.unit, scores)
    for unit in units:
        if unit.name not in written and not unit.judged.candidates.num_rows:
            written[unit.name] = _write(stored.store, folder, unit, SCORE.empty_table())
    return Scoring(
        name=name,
        settings=settings,
        scores=tuple(written[unit.name] for unit in units),
        num_candidates=outcome.funnel.num_candidates,
        num_passed=outcome.funnel.num_passed,
        num_accepted=outcome.funnel.num_accepted,
        num_verdicts=sum(one.num_verdicts for one in judged.values()),
        num_errors=sum(one.num_errors for one in judged.values()),
        chosen=outcome.chosen,
    )


def _write(store: Store, folder: ScoringLayout, unit: StoredUnit, scores: pa.Table) -> FileRef:
    """Write scores to a name that no other process writes to."""
    return store.write_table(folder.table("scores", f"{unit.name}.{uuid4().hex[:12]}"), scores, SCORE)

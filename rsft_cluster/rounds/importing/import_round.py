"""The first round of a run from candidates made elsewhere: planned, judged, committed and sealed like any other.

Nothing is drawn, so the plan has no passes, and the manifest says where the candidates are from. What a file does not
say is null (`logprob`, `target_logprob`): rules that look at it refuse. Killed and begun again it goes on.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from rsft_cluster.acceptance.decide import selection_rules
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.collection.actors import ScoreAndCommit, Work, outcome_of, sampled_row
from rsft_cluster.collection.collect import collect
from rsft_cluster.collection.driver import Supplier, UnitCounts
from rsft_cluster.collection.plan import read_prompts_of, write_plan
from rsft_cluster.collection.whole_round import decide_round, decide_waves, load_wave
from rsft_cluster.errors import ConfigError, RsftError
from rsft_cluster.plugins import Bound
from rsft_cluster.policies.references import policy_spec
from rsft_cluster.policies.tokens import UnencodablePromptError
from rsft_cluster.progress import Listener
from rsft_cluster.prompts import BadLine
from rsft_cluster.prompts.mapping import ColumnMapping
from rsft_cluster.prompts.paths import find_files
from rsft_cluster.prompts.rows import Refused
from rsft_cluster.prompts.source import prompt_row, read_rows
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import Manifest, Plan, Record, Unit
from rsft_cluster.rounds.importing.candidate_database import CandidateDatabase, candidate_database
from rsft_cluster.rounds.importing.completions import NAMES, ImportedCompletion, parse_line
from rsft_cluster.rounds.importing.requirements import asked_of, check_asked, check_tokens
from rsft_cluster.rounds.importing.tokens import Encoder
from rsft_cluster.runs.prompt_sets import checked_and_digested, held_out_in, ingest_prompts
from rsft_cluster.runs.run import Run
from rsft_cluster.sampling.unit_sampler import SampledUnit
from rsft_cluster.schemas import CANDIDATE, PROMPT, candidate_id, rows_to_table, to_messages
from rsft_cluster.store.layout import Folder

NUMBER = 1
STREAM = f"round-{NUMBER:04d}"
EARLY = 100
"""So many bad lines are enough evidence to stop in the middle of a file."""
PROMPTS = "imported"


class Imported(Record):
    """What was brought in."""

    files: tuple[str, ...]
    num_lines: int
    num_bad: int
    num_prompts: int
    num_candidates: int
    content: str
    """Digest over the candidates and their prompts, in order."""


def import_candidates(run: Run, files: Sequence[str], listener: Listener) -> tuple[Imported, Manifest]:
    """Make the candidates of some files the first round of a run, sealed; return what was brought, and the manifest.

    Raises ConfigError where the run's first round was sampled or holds other candidates, where its settings ask for
    what these candidates do not have, or where more than `prompts.max_bad_rate` of the lines are unusable.
    """
    _check(run)
    folder, selection = run.round(NUMBER), selection_rules(run.config, NUMBER)
    encoder = Encoder(
        policy_spec(run.base, run.config.policy, trust_remote_code=run.trust_remote_code, threads=1, gpu=False)
    )
    with listener.stage("read the files"), candidate_database() as candidates:
        imported = _read(run, files, candidates, selection, encoder)
        record = run.keep(folder.imported, Imported, lambda: _keep_prompts(run, candidates, imported))
        if record.content != imported.content:
            raise ConfigError(
                f"{run.store.uri}: round {NUMBER} holds the candidates of {', '.join(record.files)}; give these a run "
                "of their own"
            )
        if not run.store.exists(folder.manifest):
            _judge_and_seal(run, folder, candidates, imported, selection, encoder, listener)
    return record, run.store.read_record(folder.manifest, Manifest)


def _check(run: Run) -> None:
    config, folder = run.config, run.round(NUMBER)
    plan = run.store.find_record(folder.plan, Plan)
    if plan is not None and (plan.passes or not run.store.exists(folder.imported)):
        raise ConfigError(f"{run.store.uri}: round {NUMBER} was sampled; candidates from elsewhere need a new run")
    if config.pilot is not None:
        raise ConfigError(
            "pilot: it chooses how to sample before anything is; leave it out where candidates are brought"
        )
    if config.fairness is not None and config.fairness.swaps != "none":
        raise ConfigError(
            f"fairness.swaps: {config.fairness.swaps} asks prompts under all protected values, and candidates that are "
            "brought were asked already; set none"
        )


def _read(
    run: Run, files: Sequence[str], candidates: CandidateDatabase, selection: SelectionRules, encoder: Encoder
) -> Imported:
    """Put the rows of all files into the database, bad lines into quarantine: that of an import stays with it."""
    mapping, found, asked = ColumnMapping(run.config.prompts), find_files(files), asked_of(run.config, selection)
    is_first = not run.store.exists(run.round(NUMBER).imported)
    names = list(dict.fromkeys([*mapping.names, *NAMES]))
    num_lines = 0
    with tempfile.TemporaryFile() as quarantine:
        bad = _UnusableLines(run, files, quarantine.write, is_kept=is_first)
        try:
            for file in found:
                for row in read_rows(file, names):
                    num_lines += 1
                    if isinstance(row, BadLine):
                        bad.note(row, num_lines)
                        continue
                    try:
                        prompt, answers = parse_line(row, mapping)
                        for answer in answers:
                            check_tokens(answer, encoder)
                    except Refused as refused:
                        bad.note(BadLine.of_row(row, file=file.name, reason=str(refused)), num_lines)
                    else:
                        for answer in answers:
                            check_asked(answer, asked, f"{file.name}:{row.line}")
                        candidates.put(prompt_row(prompt, file.name, row.line), answers)
            bad.check(num_lines)
        finally:
            if bad.number and is_first:
                quarantine.seek(0)
                run.store.write(run.layout.prompts(PROMPTS).quarantine, quarantine.read())
    if not candidates.num_candidates:
        raise ConfigError(f"no candidate found in {', '.join(files)}: {num_lines} lines read, {bad.number} unusable")
    return Imported(
        files=tuple(file.name for file in found),
        num_lines=num_lines,
        num_bad=bad.number,
        num_prompts=candidates.num_prompts,
        num_candidates=candidates.num_candidates,
        content=candidates.content,
    )


class _UnusableLines:
    """The lines that cannot be used: kept, counted, and limited as those of prompts are."""

    def __init__(self, run: Run, files: Sequence[str], write: Callable[[bytes], object], *, is_kept: bool) -> None:
        self.number = 0
        self._first: list[BadLine] = []
        self._run, self._files, self._write, self._is_kept = run, files, write, is_kept

    def note(self, line: BadLine, num_lines: int) -> None:
        """Keep a line; raises ConfigError when they are too many already."""
        self.number += 1
        self._first += [line] if len(self._first) < 3 else []
        self._write(line.to_json().encode() + b"\n")
        if self.number > EARLY:
            self.check(num_lines)

    def check(self, num_lines: int) -> None:
        """Raise ConfigError where they are too many of so many lines."""
        allowed = self._run.config.prompts.max_bad_rate
        if self.number > allowed * num_lines:
            examples = "".join(f"\n  {bad.file}:{bad.line}: {bad.reason}" for bad in self._first)
            where = self._run.store.uri_of(self._run.layout.prompts(PROMPTS).quarantine)
            kept = f"\n  all of them, with content: {where}" if self._is_kept else ""
            raise ConfigError(
                f"{self.number} of {num_lines} lines read of {', '.join(self._files)} are unusable; "
                f"prompts.max_bad_rate allows {100 * allowed:.3g} %{examples}{kept}"
            )


def _keep_prompts(run: Run, candidates: CandidateDatabase, imported: Imported) -> Imported:
    """Write the prompts, none of which may stand among the held-out ones."""
    _, held_out = ingest_prompts(run)
    batches = checked_and_digested(candidates.prompts(), hashlib.sha256(), held_out_in(run.store, held_out))
    path = run.layout.prompts(PROMPTS).table
    write_prompts(run.store, path, batches, PROMPT, unit_size=run.config.sampling.unit_size)
    return imported


def _judge_and_seal(
    run: Run,
    folder: Folder,
    candidates: CandidateDatabase,
    imported: Imported,
    selection: SelectionRules,
    encoder: Encoder,
    listener: Listener,
) -> None:
    """Decide unit by unit where that can be, else all at once as one wave, like a round that is sampled."""
    generator = Bound("imported", {"files": list(imported.files), "content": imported.content}, "imported")
    whole = selection.scope == "round" or run.config.budget.is_set
    plan = _plan(run, folder)
    at = run.round(NUMBER).wave(0) if whole else folder
    planned = _plan(run, at) if whole else plan
    work = Work(
        store_uri=run.store.uri,
        folder=at.path,
        session=run.lease.session,
        plan=planned,
        policy=encoder.policy,
        generator=generator,
        scoring=run.config.scoring,
        selection=selection,
        decides=not whole,
        unit_timeout_s=run.config.sampling.unit_timeout_s,
    )
    supply = _imported(work, candidates, encoder)
    sealed = collect(work, supply, run.config.cluster, listener.collecting, run.lease.publish)
    if whole:
        waves = [load_wave(at, planned, sealed, selection)]
        manifest = decide_round(folder, waves, decide_waves(waves, selection), selection, num_prompts=plan.num_prompts)
        run.lease.publish(folder.manifest, manifest)


def _plan(run: Run, folder: Folder) -> Plan:
    def make() -> Plan:
        return write_plan(
            folder,
            round_number=NUMBER,
            stream=STREAM,
            seed=run.config.seed,
            policy=run.base,
            passes=(),
            prompts=run.layout.prompts(PROMPTS).table,
            fingerprint=run.fingerprint,
        )

    return run.keep(folder.plan, Plan, make)


def _imported(work: Work, database: CandidateDatabase, encoder: Encoder) -> Supplier[Unit]:
    """Return the supplier that judges and commits, in this process, units whose candidates were imported."""
    folder, judge = work.open(), ScoreAndCommit(work)

    def supply(units: Sequence[Unit], *, are_fresh: bool) -> Iterator[UnitCounts | RsftError]:
        for unit in units:
            prompts = read_prompts_of(folder.store, unit)
            row = sampled_row(unit.to_json().decode(), prompts, _unit(prompts, database, encoder))
            outcome = outcome_of(judge(row).to_pylist()[0])
            yield outcome
            if isinstance(outcome, RsftError):
                return

    return supply


def _unit(prompts: pa.Table, candidates: CandidateDatabase, encoder: Encoder) -> SampledUnit:
    rows: list[dict[str, object]] = []
    quarantined: dict[str, str] = {}
    for prompt in prompts.to_pylist():
        name = prompt["prompt_id"]
        answers = candidates.answers(name)
        try:
            own = None if all(a.prompt_token_ids for a in answers) else encoder.prompt(to_messages(prompt["messages"]))
        except UnencodablePromptError as error:
            quarantined[name] = str(error)
            continue
        rows += (_candidate(name, i, answer, own, encoder) for i, answer in enumerate(answers))
    return SampledUnit(rows_to_table(rows, CANDIDATE), quarantined, 0.0)


def _candidate(
    prompt: str, index: int, answer: ImportedCompletion, prompt_token_ids: list[int] | None, encoder: Encoder
) -> dict[str, object]:
    return {
        "candidate_id": candidate_id(prompt, NUMBER, index),
        "prompt_id": prompt,
        "round": NUMBER,
        "wave": 0,
        "index": index,
        "prompt_token_ids": answer.prompt_token_ids or prompt_token_ids,
        "token_ids": encoder.completion(answer),
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "logprob": answer.logprob,
        "target_logprob": answer.target_logprob,
        "survival": 1.0,
        "seed": 0,
        "policy": answer.model,
    }

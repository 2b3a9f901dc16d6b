"""Verify an audit trail: the chain, every decision from its own line, and whole rounds decided again."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import json
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from rsft_cluster.acceptance.decide import decide, selection_rules
from rsft_cluster.acceptance.piloted import config_of_round
from rsft_cluster.collection.whole_round import JudgedUnit, read_judged
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import AuditHead, Manifest, Plan
from rsft_cluster.review.audit.chain import START, broken
from rsft_cluster.review.audit.lines import of_another_form, round_lines
from rsft_cluster.review.audit.replay import replay
from rsft_cluster.review.inspection import committed_units
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

MAX_PROBLEMS = 20
"""Problems reported in words; the rest are counted."""


@dataclass
class Verified:
    """What a verification found."""

    num_lines: int = 0
    num_replayed: int = 0
    num_rounds: int = 0
    num_problems: int = 0
    problems: list[str] = field(default_factory=list)

    def add(self, problem: str) -> None:
        """Note a problem."""
        self.num_problems += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)

    @property
    def holds(self) -> bool:
        """Whether nothing was found wrong."""
        return self.num_problems == 0


def verify_run(store: Store) -> Verified:
    """Go through all sealed rounds of a run; raises StoreError for a damaged file.

    Files against their checksums, lines against the stored heads of the chain, every decision from its line, and every
    round decided again as a whole.
    """
    verified, previous, layout = Verified(), START, RunLayout(store)
    for number in layout.sealed_rounds():
        path = layout.round(number).audit
        if not store.exists(path):
            missing = store.uri_of(path)
            verified.add(f"round {number}: {missing} is missing: the round is sealed, its audit trail is not")
            continue
        last, num_lines = previous, 0
        for line in round_lines(store, number, previous):
            # The run's own rule, which ran here before, may be asked whatever package it comes from.
            _replay_line(verified, line, f"round {number}", {line["decided_by"]["use"]} if "decided_by" in line else ())
            last, num_lines = line["hash"], num_lines + 1
        head = store.read_record(path, AuditHead)
        if refusal := of_another_form(head):
            verified.add(refusal)
        elif (head.head, head.num_lines) != (last, num_lines):
            sealed = f"sealed were {head.num_lines} in {head.head[:12]}"
            verified.add(f"round {number}: {num_lines} lines end in {last[:12]}, {sealed}")
        previous = head.head
        for problem in decided_otherwise(store, number):
            verified.add(f"round {number}: {problem}")
        verified.num_rounds += 1
    return verified


def verify_lines(lines: Iterable[str], *, source: str) -> Verified:
    """Verify an exported trail, which may begin at any round: chain and decisions, without the run's store."""
    verified, previous, number = Verified(), None, 0
    for number, text in enumerate(lines, 1):
        where = f"{source}:{number}"
        try:
            line = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"{where}: not valid JSON: {error}; expected a line of `rsft audit export`") from error
        if not isinstance(line, dict) or "hash" not in line:
            raise ConfigError(f"{where}: is no audit line; expected a line of `rsft audit export`")
        wrong = broken(line, line.get("prev", "") if previous is None else previous)
        if wrong:
            verified.add(f"{where}: {wrong}")
        previous = line["hash"]
        _replay_line(verified, line, where)
        verified.num_rounds += line.get("kind") == "round"
    if not number:
        raise ConfigError(f"{source}: holds no audit lines")
    return verified


def decided_otherwise(store: Store, number: int) -> Iterator[str]:
    """Yield the candidates of a sealed round about which deciding again, on the whole round, says something else."""
    selection = selection_rules(config_of_round(store, number), number)
    folder = RunLayout(store).round(number)
    plan = store.read_record(folder.plan, Plan)
    chosen = store.read_record(folder.manifest, Manifest).chosen
    scores, judged = [], []
    for unit, commit in committed_units(folder, plan):
        if commit.scores is not None and commit.candidates is not None:
            narrow, rows = read_judged(store, JudgedUnit(unit, commit.candidates, commit.scores), selection)
            scores.append(narrow)
            judged.append(rows)
    if not scores:
        return
    stored, again = pa.concat_tables(scores), decide(pa.concat_tables(judged), selection)
    if dict(again.chosen) != chosen:
        yield f"the numbers chosen from the round are {dict(again.chosen)}, recorded were {chosen}"
    names = ["acceptance_probability", "accepted", "rank", "repeat_of", "cap", "cell", "swaps_agree"]
    for name in names:
        old, new = stored.column(name).to_pylist(), again.table.column(name).to_pylist()
        for candidate, was, now in zip(stored.column("candidate_id").to_pylist(), old, new, strict=True):
            if was != now:
                yield f"candidate {candidate}: {name} is {was}, deciding again gives {now}"


def _replay_line(verified: Verified, line: dict[str, Any], where: str, trusted: Collection[str] | None = None) -> None:
    verified.num_lines += 1
    if line.get("kind") != "candidate":
        return
    verified.num_replayed += 1
    try:
        problems = replay(line, trusted)
    except (KeyError, TypeError, ValueError, ArithmeticError, pa.ArrowException) as error:
        problems = [f"cannot be replayed: {error!r}"]
    for problem in problems:
        verified.add(f"{where}: candidate {line.get('candidate_id')}: {problem}")

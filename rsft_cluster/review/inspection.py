"""What a run sampled and decided: candidates with their verdicts, filtered, read from committed files only."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import pyarrow as pa
from pydantic import ValidationError

from rsft_cluster.collection.plan import decided_name, planned_units, read_prompts_of, survey
from rsft_cluster.collection.seal import counting
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import Commit, FileRef, Manifest, Plan, Unit
from rsft_cluster.store import Store
from rsft_cluster.store.layout import EvaluationLayout, Folder, RoundLayout, RunLayout

STATES = ("accepted", "rejected", "passed", "failed", "error", "quarantined")


@dataclass(frozen=True)
class Filter:
    """Criteria that candidates must meet; None is no criterion."""

    state: str | None = None
    constraint: str | None = None
    """Only candidates that did not pass this constraint."""
    prompt: str | None = None
    """Beginning of a prompt id, or a piece of the prompt's text."""

    def __post_init__(self) -> None:
        if self.state is not None and self.state not in STATES:
            raise ConfigError(f"--state {self.state}: expected one of {', '.join(STATES)}{_near(self.state, STATES)}")


def inspect(store: Store, number: int, criteria: Filter, *, evaluation: bool = False) -> Iterator[dict[str, Any]]:
    """Yield candidates of a round, or of its evaluation, with prompt, verdicts and reason; committed ones only.

    Quarantined prompts come as rows without a completion. Raises ConfigError for a round or a constraint that is not
    there, StoreError for a damaged file.
    """
    layout = RunLayout(store).round(number)
    folder = layout.evaluation if evaluation else layout
    if not store.exists(folder.plan):
        raise ConfigError(_missing(store, number, evaluation=evaluation))
    with _undamaged(store, folder.plan):
        plan = store.read_record(folder.plan, Plan)
    constraints: set[str] = set()
    for unit, commit in committed_units(folder, plan):
        for row in _rows(store, unit, commit):
            constraints.update(v["constraint"] for v in row.get("verdicts", ()))
            if _matches(row, criteria):
                yield row
    if criteria.constraint is not None and constraints and criteria.constraint not in constraints:
        near = _near(criteria.constraint, constraints)
        raise ConfigError(f"--constraint {criteria.constraint}: expected one of {', '.join(sorted(constraints))}{near}")


def _missing(store: Store, number: int, *, evaluation: bool) -> str:
    kind = "evaluation" if evaluation else "candidates"
    rounds = {n: RunLayout(store).round(n) for n in RunLayout(store).round_numbers()}
    options = [
        f"--round {n}{option}"
        for n, layout in rounds.items()
        for folder, option in ((layout.evaluation, " --evaluation"), (layout, ""))
        if store.exists(folder.plan)
    ]
    known = f"there {'are' if options else 'is'}: {', '.join(options) or 'nothing'}"
    return f"{store.uri}: round {number} has no {kind}; {known}"


def committed_units(folder: RoundLayout | EvaluationLayout, plan: Plan) -> Iterator[tuple[Unit, Commit]]:
    """Yield what is committed, wave by wave where there are waves, with the decided scores where they are decided."""
    store = folder.store
    settled: dict[str, FileRef] = {}
    parts = folder.waves() if isinstance(folder, RoundLayout) else []
    if parts and store.exists(folder.manifest):
        with _undamaged(store, folder.manifest):
            manifest = store.read_record(folder.manifest, Manifest)
        settled = dict(zip(manifest.units, manifest.scores, strict=True))
    for part in parts or [folder]:
        listed = _listed(part)
        if part is not folder:
            if not store.exists(part.plan):
                continue
            with _undamaged(store, part.plan):
                plan = store.read_record(part.plan, Plan)
        for unit, paths in _committed(part, plan):
            with _undamaged(store, paths[0]):
                commit = counting(part, paths, listed)
            scores = settled.get(decided_name(plan, unit), commit.scores)
            yield unit, commit.model_copy(update={"scores": scores})


def _listed(folder: Folder) -> set[str] | None:
    """Return the files of candidates that a sealed collection vouches for; None while it is not sealed."""
    if not folder.store.exists(folder.manifest):
        return None
    with _undamaged(folder.store, folder.manifest):
        manifest = folder.store.read_record(folder.manifest, Manifest)
    return {ref.path for ref in manifest.candidates}


def _committed(folder: Folder, plan: Plan) -> Iterator[tuple[Unit, list[str]]]:
    """Yield the units that are done, in order, each with the paths of its commits."""
    state = survey(folder)
    with _undamaged(folder.store, folder.units):
        for planned in planned_units(folder, plan):
            for unit in state.leaves(planned):
                if unit.unit in state.commits:
                    yield unit, state.commits[unit.unit]


def _rows(store: Store, unit: Unit, commit: Commit) -> Iterator[dict[str, Any]]:
    with _undamaged(store, unit.path):
        prompts = {row["prompt_id"]: row for row in read_prompts_of(store, unit).to_pylist()}
    for prompt in commit.prompts:
        if prompt.state == "quarantined":
            row = prompts[prompt.prompt_id]
            yield {
                "state": "quarantined",
                "reason": prompt.reason,
                "prompt_id": prompt.prompt_id,
                "messages": row["messages"],
                "reference": row["reference"],
                "attributes": dict(row["attributes"]),
                "source": row["source"],
            }
    if commit.candidates is None or commit.scores is None:
        return
    candidates, scores = store.read_table(commit.candidates), store.read_table(commit.scores)
    for candidate, score in zip(candidates.to_pylist(), scores.to_pylist(), strict=True):
        row = prompts[candidate["prompt_id"]]
        # Token ids are for training; who looks at candidates reads text.
        shown = {k: v for k, v in candidate.items() if k not in ("token_ids", "prompt_token_ids")}
        yield {
            "state": "accepted" if score["accepted"] else "error" if score["passed"] is None else "rejected",
            **shown,
            "num_tokens": len(candidate["token_ids"]),
            **score,
            "messages": row["messages"],
            "reference": row["reference"],
            "attributes": dict(row["attributes"]),
            "source": row["source"],
        }


def _matches(row: dict[str, Any], criteria: Filter) -> bool:
    if criteria.state is not None and criteria.state not in _states_of(row):
        return False
    if criteria.constraint is not None:
        verdicts = [v for v in row.get("verdicts", ()) if v["constraint"] == criteria.constraint]
        if not any(v["passed"] is False or v["error"] is not None for v in verdicts):
            return False
    if criteria.prompt is not None:
        text = "\n".join(m["content"] for m in row["messages"])
        return row["prompt_id"].startswith(criteria.prompt) or criteria.prompt in text
    return True


def _states_of(row: dict[str, Any]) -> set[str]:
    states = {row["state"]}
    if row.get("passed") is not None:
        states.add("passed" if row["passed"] else "failed")
    return states


def _near(name: str, known: tuple[str, ...] | set[str]) -> str:
    near = get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


@contextmanager
def _undamaged(store: Store, path: str) -> Iterator[None]:
    """Turn what a parser says of a file into a StoreError that names it."""
    try:
        yield
    except ValidationError as error:
        first = error.errors()[0]
        raise StoreError(f"{store.uri_of(path)}: damaged: not a {error.title} record ({first['msg']})") from error
    except pa.ArrowException as error:
        raise StoreError(f"{store.uri_of(path)}: damaged: {str(error).splitlines()[0]}") from error

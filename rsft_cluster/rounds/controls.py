"""Control arms: what the accepted samples are worth, against the same training without accepting.

Each arm starts where the round's challenger started, takes the same number of optimizer steps, is evaluated on the same
held-out prompts with the same random streams, and is never promoted. So the difference to the challenger is what was
learned from, and nothing else.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from dataclasses import replace

import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.config import RunConfig
from rsft_cluster.keys import acceptance_uniform
from rsft_cluster.progress import Listener
from rsft_cluster.records import Evaluation, FileRef, Manifest, PolicyRef, TrainingResult
from rsft_cluster.rounds.run_stages import accumulated, evaluate_policy, site_of
from rsft_cluster.rounds.stages import Examples, train
from rsft_cluster.runs.run import Run
from rsft_cluster.runs.summary import RoundSummary
from rsft_cluster.schemas import ACCEPTED, rows_to_table

STREAM = "control"


def run_controls(run: Run, number: int, held_out: str, listener: Listener) -> dict[str, Evaluation]:
    """Train and evaluate a round's control arms; return their evaluations by the arm's name."""
    return {name: _arm(run, name, number, held_out, listener) for name in _wanted(run.config, number)}


def has_controls(config: RunConfig, found: RoundSummary) -> bool:
    """Return whether every control arm of a round has its evaluation."""
    return found.controls.keys() >= set(_wanted(config, found.round))


def _wanted(config: RunConfig, number: int) -> tuple[str, ...]:
    left_out = number == 0 or (config.controls.rounds == "first" and number > 1)
    return () if left_out else config.controls.arms


def control_arm(run: Run, name: str) -> Run:
    """Return the arm of a run in which a control's rounds lie."""
    return replace(run, control=name)


def _arm(run: Run, name: str, number: int, held_out: str, listener: Listener) -> Evaluation:
    challenger = run.store.read_record(run.round(number).training, TrainingResult)
    # Nothing judges what an arm learns from, so it is given no judged candidates, and no term learns from them.
    alike = {"steps": challenger.num_steps, "epochs": None}
    training = run.config.training.model_copy(update=alike)
    arm = replace(control_arm(run, name), config=run.config.model_copy(update={"training": training}))
    initial = _started_from(run, number, challenger)

    def trained_arm() -> TrainingResult:
        accepted = _random_files(run, arm, number) if name == "random" else ()
        site = site_of(arm, listener)
        examples, folder = Examples(accepted), arm.round(number)
        return train(arm.config, number, initial, examples, folder, site, base=run.base, keeps_master=False)

    trained = arm.keep(arm.round(number).training, TrainingResult, trained_arm)
    return evaluate_policy(arm, number, trained.policy, held_out, listener)


def _started_from(run: Run, number: int, challenger: TrainingResult) -> PolicyRef:
    if challenger.started_from == run.base.name:
        return run.base
    return next(e.policy for e in run.log.entries() if e.policy.name == challenger.started_from)


def _random_files(run: Run, arm: Run, number: int) -> tuple[str, ...]:
    """Write, for every round that the challenger learned from, as many random candidates as it accepted."""
    found = []
    for earlier in accumulated(run, number):
        manifest = run.store.read_record(run.round(earlier).manifest, Manifest)
        path = arm.round(number).table("accepted", f"{earlier:04d}")
        found.append(arm.store.write_table(path, random_examples(run, manifest), ACCEPTED))
    return tuple(run.store.uri_of(ref.path) for ref in found if ref.num_rows)


def random_examples(run: Run, manifest: Manifest) -> pa.Table:
    """Return as many ACCEPTED rows as a round accepted, drawn from all its judged candidates, repeats left out.

    The draw is keyed by candidate: it is the same whenever it is made.
    """
    draws: list[tuple[float, int, str]] = []
    seen: set[tuple[str, str]] = set()
    names = ["candidate_id", "prompt_id", "index", "content", "passed"]
    for place, ref in enumerate(manifest.scores):
        for row in run.store.read_table(ref, columns=names).to_pylist():
            if row["passed"] is None or (row["prompt_id"], row["content"]) in seen:
                continue
            seen.add((row["prompt_id"], row["content"]))
            u = acceptance_uniform(run.config.seed, STREAM, row["prompt_id"], row["index"])
            draws.append((u, place, row["candidate_id"]))
    chosen: dict[int, list[str]] = {}
    for _, place, candidate in sorted(draws)[: manifest.totals.num_accepted]:
        chosen.setdefault(place, []).append(candidate)
    rows = [row for place, ids in sorted(chosen.items()) for row in _rows(run, manifest.candidates[place], ids)]
    return rows_to_table(rows, ACCEPTED)


def _rows(run: Run, ref: FileRef, ids: list[str]) -> list[dict[str, object]]:
    names = ["candidate_id", "prompt_id", "round", "prompt_token_ids", "token_ids", "finish_reason"]
    table = run.store.read_table(ref, columns=names)
    chosen = table.filter(pc.is_in(table.column("candidate_id"), value_set=pa.array(ids)))
    # Training reads token ids; the messages of an arm that nobody inspects are left out.
    return [{**row, "messages": [], "score": 0.0, "weight": 1.0} for row in chosen.to_pylist()]

"""A round that samples in waves: forecast, ask, judge, look, ask again where it pays; then decide it whole.

Also the way of every round that cannot be decided unit by unit; it then has one wave. What a wave asks is a function of
what the waves before it stored, so a killed round goes on as if nothing had happened.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.decide import Decided
from rsft_cluster.acceptance.selection import Flags, SelectionRules, prompt_goals
from rsft_cluster.collection.plan import write_plan
from rsft_cluster.collection.whole_round import SealedWave, decide_round, decide_waves, load_wave
from rsft_cluster.errors import NothingAcceptedError
from rsft_cluster.progress import Listener
from rsft_cluster.prompts.stored import write_prompts
from rsft_cluster.records import Manifest, Plan, Totals
from rsft_cluster.rounds.budget import Allowance, Counts, Standing, Wave, next_wave, spent
from rsft_cluster.runs.run import Run
from rsft_cluster.schemas import ASKED
from rsft_cluster.store.layout import Folder, RoundLayout

NO_GOAL = 2**31 - 1
Collect = Callable[[Folder, Plan, Sequence[Totals]], Manifest]
"""Brings every unit of a wave's plan to a commit, given the totals of the waves before."""


@dataclass(frozen=True)
class _Round:
    run: Run
    plan: Plan
    selection: SelectionRules
    prompt_ids: pa.Array
    """Of all prompts of the round, in the order of their file."""

    @property
    def folder(self) -> RoundLayout:
        return self.run.round(self.plan.round)

    def places(self, prompt_ids: pa.ChunkedArray | pa.Array) -> Counts:
        """Return the places of prompts among the round's; of those that an earlier round alone had, none."""
        found = pc.drop_null(pc.index_in(prompt_ids, value_set=self.prompt_ids))
        return found.cast(pa.int64()).to_numpy(zero_copy_only=False)


def sample_in_waves(run: Run, plan: Plan, selection: SelectionRules, collect: Collect, listener: Listener) -> Manifest:
    """Sample and judge a round wave by wave, decide it, and return its sealed manifest.

    Raises NothingAcceptedError where no prompt is open.
    """
    folder = run.round(plan.round)
    if folder.store.exists(folder.manifest):
        return folder.store.read_record(folder.manifest, Manifest)
    asked = _Round(run, plan, selection, _prompt_ids(run, plan))
    num_asked = np.zeros(len(asked.prompt_ids), dtype=np.int64)
    solved = _solved_before(asked)
    budget, most = run.config.budget, run.config.sampling.num_candidates
    sized = budget if budget.wave_size else budget.model_copy(update={"wave_size": most})
    allowance = _allowance(run, plan.round)
    waves: list[SealedWave] = []
    while True:
        found = decide_waves(waves, selection)
        standing = _standing(asked, waves, found, num_asked, solved)
        wave = next_wave(standing, sized, most=most, allowance=allowance)
        if not wave.num_candidates:
            break
        waves.append(_one_wave(asked, waves, wave, num_asked, collect, listener))
        num_asked = num_asked + wave.counts
        totals = waves[-1].manifest.totals
        allowance = spent(allowance, num_candidates=totals.num_candidates, num_tokens=totals.num_tokens)
        allowance = _with_mean(allowance, [w.manifest for w in waves])
    if not waves:
        spent_all = "the run's budget is spent" if wave.num_over_budget else ""
        reason = spent_all or f"{wave.num_done:,} were solved in an earlier round, {wave.num_futile:,} are given up"
        raise NothingAcceptedError(f"round {plan.round}: no prompt is left to ask: {reason}")
    if wave.num_over_budget:
        listener.note(f"round {plan.round}: the budget ends here: {wave.num_over_budget:,} prompts stay open")
    manifest = decide_round(folder, waves, found, selection, num_prompts=len(asked.prompt_ids))
    run.lease.publish(folder.manifest, manifest)
    return folder.store.read_record(folder.manifest, Manifest)


def _one_wave(
    asked: _Round, before: list[SealedWave], wave: Wave, num_asked: Counts, collect: Collect, listener: Listener
) -> SealedWave:
    run, whole, number = asked.run, asked.plan, len(before)
    folder = asked.folder.wave(number)

    def plan() -> Plan:
        asks = _asks(asked, num_asked, wave.counts)
        write_prompts(run.store, folder.prompts, asks, ASKED, unit_size=run.config.sampling.unit_size)
        made = write_plan(
            folder,
            round_number=whole.round,
            stream=whole.stream,
            seed=whole.seed,
            policy=whole.policy,
            passes=whole.passes,
            prompts=folder.prompts,
            fingerprint=whole.fingerprint,
        )
        return made.model_copy(update={"wave": number})

    if run.config.budget.is_set and not run.store.exists(folder.manifest):
        listener.note(f"round {whole.round}, wave {number}: {wave.describe()}")
    planned = run.keep(folder.plan, Plan, plan)
    manifest = collect(folder, planned, [w.manifest.totals for w in before])
    return load_wave(folder, planned, manifest, asked.selection)


def _asks(asked: _Round, begun: Counts, counts: Counts) -> Iterator[pa.RecordBatch]:
    """Yield the ASKED rows of a wave; indices go on where the waves before ended."""
    start = 0
    for batch in asked.run.store.read_batches(asked.plan.prompts):
        rows = slice(start, start + batch.num_rows)
        start += batch.num_rows
        columns = [*batch.columns, pa.array(begun[rows], pa.int32()), pa.array(counts[rows], pa.int32())]
        full = pa.RecordBatch.from_arrays(columns, names=ASKED.names)
        chosen = full.filter(pa.array(counts[rows] > 0))
        if chosen.num_rows:
            yield chosen


def _standing(
    asked: _Round, waves: list[SealedWave], found: tuple[pa.Table, Decided], num_asked: Counts, solved: Flags
) -> Standing:
    """Return how far every prompt is, by the decisions on the waves so far."""
    budget, (scores, decided) = asked.run.config.budget, found
    size = len(asked.prompt_ids)
    places = asked.places(scores.column("prompt_id"))
    drawn = scores.column("u").to_numpy() < decided.table.column("acceptance_probability").to_numpy()
    goals = np.full(size, budget.until_accepted if budget.wave_size else NO_GOAL, dtype=np.int64)
    if asked.selection.budget:
        goals[places] = prompt_goals(scores, drawn, asked.selection.budget)
    num_kept = np.bincount(places, weights=decided.table.column("accepted").to_numpy(), minlength=size)
    is_lost = np.zeros(size, dtype=bool)
    is_lost[asked.places(pa.array([p for wave in waves for p in wave.lost], pa.string()))] = True
    return Standing(
        num_candidates=num_asked,
        num_drawn=np.bincount(places, weights=drawn, minlength=size).astype(np.int64),
        num_kept=np.where(solved, NO_GOAL, num_kept.astype(np.int64)),
        goals=goals,
        is_lost=is_lost,
    )


def _solved_before(asked: _Round) -> Flags:
    """Return which prompts had all that is wanted of them in an earlier round."""
    run, budget = asked.run, asked.run.config.budget
    best = np.zeros(len(asked.prompt_ids), dtype=np.int64)
    if not budget.skip_solved:
        return best > 0
    for number in range(1, asked.plan.round):
        manifest = run.store.read_record(run.round(number).manifest, Manifest)
        tables = [run.store.read_table(ref, columns=["prompt_id"]) for ref in manifest.accepted if ref.num_rows]
        if tables:
            places = asked.places(pa.concat_tables(tables).column(0))
            best = np.maximum(best, np.bincount(places, minlength=len(best)))
    return best >= budget.until_accepted


def _allowance(run: Run, number: int) -> Allowance:
    """Return what earlier rounds left of the run's budget."""
    budget = run.config.budget
    earlier = [run.store.read_record(run.round(r).manifest, Manifest) for r in range(1, number)]
    # Before anything is known, a candidate may take all it is allowed, so that the budget holds from the first wave on.
    longest = float(run.config.sampling.max_tokens) if budget.max_tokens else 0.0
    whole = Allowance(budget.max_candidates, budget.max_tokens, longest)
    left = spent(
        whole,
        num_candidates=sum(m.totals.num_candidates for m in earlier),
        num_tokens=sum(m.totals.num_tokens for m in earlier),
    )
    return _with_mean(left, earlier[-1:])


def _with_mean(allowance: Allowance, manifests: list[Manifest]) -> Allowance:
    num_candidates = sum(m.totals.num_candidates for m in manifests)
    if not num_candidates:
        return allowance
    mean = sum(m.totals.num_tokens for m in manifests) / num_candidates
    return replace(allowance, tokens_a_candidate=mean)


def _prompt_ids(run: Run, plan: Plan) -> pa.Array:
    parts = [batch.column(0) for batch in run.store.read_batches(plan.prompts, ["prompt_id"])]
    return pa.concat_arrays(parts) if parts else pa.array([], pa.string())

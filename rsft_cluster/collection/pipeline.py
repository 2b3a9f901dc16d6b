"""One pass of Ray Data over units: sampling actors (GPU) -> scoring actors (CPU, or GPU) -> counts to the driver.

The only module that knows how Ray Data is asked. A unit that a dying actor took with it is simply not among the rows
that come back; what is to be done about that is the caller's business.
"""

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa
import ray
import ray.data
from ray.data import ActorPoolStrategy, DataContext
from ray.exceptions import RayError
from ray.util.annotations import RayDeprecationWarning

from rsft_cluster.cluster.needs import Needs, fitting
from rsft_cluster.collection.actors import Sample, ScoreAndCommit, Work, outcome_of
from rsft_cluster.collection.collect import UNITS_A_PASS
from rsft_cluster.collection.driver import Supplier, UnitCounts
from rsft_cluster.config import SamplingConfig, ScoringConfig, WorkerRange, fewest, most
from rsft_cluster.errors import RsftError, StageError
from rsft_cluster.metrics.meter import UNITS_LEFT
from rsft_cluster.records import Unit

UNITS_WHILE_SHORT = 16
"""Units a worker in a pass with fewer workers than asked for: the next one has more again where nodes came back."""
UNITS_A_WORKER = 128
"""At the end of a pass workers run out of work, and the next one loads its models again: once in so many units."""
UNITS_AT_ONCE = 8
"""Units that a worker decodes together, where it may: rows idle once in so many units."""
UNITS_IN_FLIGHT = 2
"""Units queued at an actor: one that it works on, one so that it never waits."""


def units_a_pass(sampling: SamplingConfig) -> int:
    """Return how many units a pass is worth."""
    return max(UNITS_A_PASS, UNITS_A_WORKER * most(sampling.workers))


def sampled(work: Work, sampling: SamplingConfig) -> Supplier[Unit]:
    """Return the supplier that samples, judges and commits units on the Ray cluster."""

    def supply(units: Sequence[Unit], *, are_fresh: bool) -> Iterator[UnitCounts | RsftError]:
        # What was begun before may have met a crash: alone, a unit takes no other one with it.
        at_once = UNITS_AT_ONCE if are_fresh and sampling.mixes_units else 1
        num_left = len(units)
        work.meter.put(UNITS_LEFT, num_left)
        try:
            for row in run_pass(work, units, sampling, at_once=at_once):
                yield outcome_of(row)
                num_left -= 1
                work.meter.put(UNITS_LEFT, num_left)
        except RayError as error:
            yield _root_cause(error)

    return supply


def run_pass(work: Work, units: Sequence[Unit], asked: SamplingConfig, *, at_once: int = 1) -> Iterator[dict[str, Any]]:
    """Sample, judge and commit units; yield the counts of each (schema DONE) as it is done, in any order.

    A worker decodes `at_once` units together, fewer where some workers would have none. Each leaves it by itself, so
    that nothing is buffered between a unit's end and its commit.

    On a cluster that has lost nodes there are as many workers as the others can hold, and the pass is short: units
    that it leaves out are simply not done at its end.
    """
    sampling, scoring = _placeable(asked, work.scoring)
    if sampling.workers != asked.workers or scoring.workers != work.scoring.workers:
        units = units[: UNITS_WHILE_SHORT * most(sampling.workers)]
    at_once = max(1, min(at_once, len(units) // (UNITS_IN_FLIGHT * most(sampling.workers))))
    _configure()
    with warnings.catch_warnings():
        # The only way in this range of Ray versions to bound restarts and retries; see the pin in pyproject.toml.
        warnings.simplefilter("ignore", RayDeprecationWarning)
        dataset = _pipeline(work, units, sampling, scoring, at_once)
    yield from dataset.iter_rows()


def _placeable(sampling: SamplingConfig, scoring: ScoringConfig) -> tuple[SamplingConfig, ScoringConfig]:
    """Return both with as many workers as the living nodes can hold."""
    there = ray.cluster_resources()
    samplers, scorers = fitting(sampling, scoring, Needs(there.get("CPU", 0.0), there.get("GPU", 0.0)))
    fewer = {"workers": samplers} if samplers < fewest(sampling.workers) else {}
    fewer_scorers = {"workers": scorers} if scorers < fewest(scoring.workers) else {}
    return sampling.model_copy(update=fewer), scoring.model_copy(update=fewer_scorers)


def _pipeline(
    work: Work, units: Sequence[Unit], sampling: SamplingConfig, scoring: ScoringConfig, at_once: int
) -> ray.data.Dataset:
    texts = [u.to_json().decode() for u in units]
    blocks = [pa.table({"unit": texts[i : i + at_once]}) for i in range(0, len(texts), at_once)]
    samplers = _pool(work, sampling.workers, len(blocks), sampling.num_cpus, sampling.num_gpus)
    samplers["batch_size"] = at_once
    scorers = _pool(work, scoring.workers, len(units), scoring.num_cpus, scoring.num_gpus)
    return ray.data.from_arrow(blocks).map_batches(Sample, **samplers).map_batches(ScoreAndCommit, **scorers)


def _pool(work: Work, workers: int | WorkerRange, num_units: int, num_cpus: float, num_gpus: float) -> dict[str, Any]:
    """Return how one stage's actors are made.

    Restarts are Ray's and free; repeats of a unit are ours and counted, so Ray repeats a task once at most.
    """
    return {
        "fn_constructor_args": (work,),
        "batch_size": 1,
        "batch_format": "pyarrow",
        "compute": ActorPoolStrategy(
            min_size=min(fewest(workers), num_units),
            max_size=min(most(workers), num_units),
            max_tasks_in_flight_per_actor=UNITS_IN_FLIGHT,
        ),
        "num_cpus": num_cpus,
        "num_gpus": num_gpus or None,
        "max_restarts": -1,
        "max_task_retries": 1,
        "scheduling_strategy": "SPREAD",
    }


def _configure() -> None:
    """Set the options of Ray Data that this pipeline relies on, for this process."""
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a unit that fails with its actor is found missing and done again
    context.execution_options.preserve_order = False
    context.target_max_block_size = (
        1  # a unit leaves its worker by itself, and does not wait for others to fill a block
    )
    # A unit may take longer than Ray Data's half hour without a finished block; units have deadlines of their own.
    context.execution_no_progress_timeout_s = -1
    for name in ("ray.data", "ray.data._internal"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _root_cause(error: BaseException) -> RsftError:
    """Return the error of ours behind a chain of Ray's, or a StageError that tells the chain's end."""
    seen: BaseException | None = error
    last = error
    while seen is not None:
        if isinstance(seen, RsftError):
            return seen
        last = seen
        seen = getattr(seen, "cause", None) or seen.__cause__
    return StageError(str(last).strip() or repr(last))

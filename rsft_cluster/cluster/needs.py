"""The CPUs and GPUs that a config needs of a cluster, and those that a cluster lacks; arithmetic only."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from rsft_cluster.config import RunConfig, SamplingConfig, ScoringConfig, fewest

SPARE_CPUS = 1
"""Left over beside the actors: Ray Train's controller and Ray Data's own tasks run there."""
TOLERANCE = 1e-6
"""Ray counts in units of 1/10000; sums of such shares in floating point are off by less."""


@dataclass(frozen=True)
class Needs:
    """CPUs and GPUs: what must be free, or what there is."""

    num_cpus: float
    num_gpus: float

    def describe(self) -> str:
        """Return the needs in words."""
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"

    def times(self, other: "Needs") -> int:
        """Return how many times `other` fits into this; 10**9 where it needs nothing."""
        pairs = ((self.num_cpus, other.num_cpus), (self.num_gpus, other.num_gpus))
        return int(min((have / need + TOLERANCE for have, need in pairs if need > 0), default=10**9))


@dataclass(frozen=True)
class ActorPool:
    """`size` actors of a stage, all alike; none is ever split over two nodes."""

    stage: str
    """The section of the config that sets them."""
    size: int
    each: Needs


def pools(config: RunConfig) -> list[list[ActorPool]]:
    """Return the pools that are there at the same time: those of a collection, and those of training."""
    sampling, scoring, training = config.sampling, config.scoring, config.training
    samplers = max(fewest(sampling.workers), config.evaluation.workers or 0)
    cpus = config.cluster.driver.num_cpus
    driver = [ActorPool("cluster.driver", 1, Needs(cpus, 0.0))] if cpus else []
    return [
        [
            *driver,
            ActorPool("sampling", samplers, Needs(sampling.num_cpus, sampling.num_gpus)),
            ActorPool("scoring", fewest(scoring.workers), Needs(scoring.num_cpus, scoring.num_gpus)),
        ],
        [*driver, ActorPool("training", training.workers, Needs(training.num_cpus, training.num_gpus))],
    ]


def needs_of(stage: Sequence[ActorPool]) -> Needs:
    """Return the CPUs and GPUs that must be free for pools to be placed together."""
    return Needs(
        sum(pool.size * pool.each.num_cpus for pool in stage) + SPARE_CPUS,
        sum(pool.size * pool.each.num_gpus for pool in stage),
    )


def fitting(sampling: SamplingConfig, scoring: ScoringConfig, capacity: Needs) -> tuple[int, int]:
    """Return how many samplers and scorers a cluster of this capacity runs at once: the fewest configured if it can.

    Where it cannot, both are fewer in the same proportion, one at least: samplers that take every CPU that is left
    would wait for a scorer that never begins.
    """
    all_samplers, all_scorers = samplers, scorers = fewest(sampling.workers), fewest(scoring.workers)

    def fit() -> bool:
        cpus = samplers * sampling.num_cpus + scorers * scoring.num_cpus + SPARE_CPUS
        gpus = samplers * sampling.num_gpus + scorers * scoring.num_gpus
        return cpus <= capacity.num_cpus and gpus <= capacity.num_gpus

    while samplers + scorers > 2 and not fit():
        if scorers == 1 or (samplers > 1 and samplers / all_samplers >= scorers / all_scorers):
            samplers -= 1
        else:
            scorers -= 1
    return samplers, scorers


def needs(config: RunConfig) -> Needs:
    """Return the CPUs and GPUs that must be free for every stage to be placed."""
    stages = [needs_of(stage) for stage in pools(config)]
    return Needs(max(s.num_cpus for s in stages), max(s.num_gpus for s in stages))


def lacking(stage: Sequence[ActorPool], nodes: Sequence[Needs]) -> list[str]:
    """Return what keeps a cluster of these nodes, all of it free, from ever placing pools together; empty if nothing.

    Only what is certain: pools that fit one by one may still get into each other's way.
    """
    shortages = []
    for pool in stage:
        fitting = sum(node.times(pool.each) for node in nodes)
        if not fitting:
            shortages.append(
                f"one actor of {pool.stage} asks for {pool.each.describe()}, and no node has as much "
                f"({describe_nodes(nodes)}): lower {pool.stage}.num_cpus or {pool.stage}.num_gpus, or add a larger node"
            )
        elif fitting < pool.size:
            shortages.append(
                f"{pool.stage} asks for {pool.size} actors of {pool.each.describe()} each, and {fitting} of them fit "
                f"({describe_nodes(nodes)}): lower {pool.stage}.workers, or add nodes"
            )
    total = needs_of(stage)
    missing = [
        f"{need - have:g} {name}"
        for name, need, have in (
            ("CPUs", total.num_cpus, sum(node.num_cpus for node in nodes)),
            ("GPUs", total.num_gpus, sum(node.num_gpus for node in nodes)),
        )
        if need > have + TOLERANCE
    ]
    if missing and not shortages:
        names = " and ".join(pool.stage for pool in stage)
        shortages.append(
            f"{' and '.join(missing)} are missing for {names}: {total.describe()} are needed, {SPARE_CPUS} CPU for "
            f"Ray among them, and there is room on {describe_nodes(nodes)}; lower workers, num_cpus or num_gpus, or "
            "add nodes"
        )
    return shortages


def describe_nodes(nodes: Sequence[Needs]) -> str:
    """Return in words what nodes a cluster has."""
    counts = Counter(node.describe() for node in nodes)
    parts = [f"{count} x {text}" if count > 1 else text for text, count in counts.most_common()]
    return f"{len(nodes)} node{'' if len(nodes) == 1 else 's'}: " + (", ".join(parts) or "none is alive")

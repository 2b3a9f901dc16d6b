"""What a config asks of a cluster, in CPUs and GPUs. Arithmetic only; no cluster is asked."""

from dataclasses import dataclass

from rsft_cluster.config import RunConfig

SPARE_CPUS = 1
"""Left over beside the actors: Ray Train's controller and Ray Data's own tasks run there."""


@dataclass(frozen=True)
class Needs:
    """What must be free at a config's widest stage."""

    num_cpus: float
    num_gpus: float

    def describe(self) -> str:
        """Return the needs in words."""
        return f"{self.num_cpus:g} CPUs and {self.num_gpus:g} GPUs"


def needs(config: RunConfig) -> Needs:
    """Return the CPUs and GPUs that must be free for every stage to be placed."""
    sampling, scoring, training = config.sampling, config.scoring, config.training
    samplers = max(sampling.workers, config.evaluation.workers or 0)
    cpus = samplers * sampling.num_cpus + scoring.workers * scoring.num_cpus
    gpus = samplers * sampling.num_gpus + scoring.workers * scoring.num_gpus
    return Needs(
        max(cpus, training.workers * training.num_cpus) + SPARE_CPUS + config.cluster.driver.num_cpus,
        max(gpus, training.workers * training.num_gpus),
    )

"""Which failures of a training worker the next attempt would meet again, and what mends them.

A worker that is lost costs an attempt; that memory ran out, or that an engine refuses a setting, does not change by
trying. Knows nothing of the engines.
"""

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import ConfigError, RsftError, StageError

MEMORY = ("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory")
"""How the allocators of CUDA, PyTorch on CPUs and the system say it, in lower case."""

LASTING = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, NotImplementedError, TypeError)
"""Kinds of errors that no lost worker, network or store brings about; ValueError is one as well."""


def lasting(error: BaseException, config: TrainingConfig) -> RsftError | None:
    """Return what to tell of an error that every attempt would meet, None where another attempt may do better."""
    if isinstance(error, RsftError):
        return error if isinstance(error, (ConfigError, StageError)) else None
    if _is_memory(error):
        return StageError(f"training ran out of memory: {_first_line(error)}. {_remedies(config)}")
    if isinstance(error, (*LASTING, ValueError)):
        return StageError(f"training cannot go on: {type(error).__name__}: {_first_line(error)}")
    return None


def _is_memory(error: BaseException) -> bool:
    said = str(error).lower()
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(phrase in said for phrase in MEMORY)
    )


def _remedies(config: TrainingConfig) -> str:
    size, stage = config.micro_batch_size, config.zero_stage
    found = [f"training.micro_batch_size: {size // 2}"] if size > 1 else []
    found += [] if config.gradient_checkpointing else ["training.gradient_checkpointing: true"]
    found += [f"training.zero_stage: {stage + 1}"] if stage < 3 and config.workers > 1 else []
    found += [f"more training.workers than {config.workers}"] if stage == 3 else []
    found += ["a lower sampling.max_tokens in a run of its own"] if not found else []
    return f"Set {' or '.join(found)} and start it again: it goes on with what was sampled"


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")

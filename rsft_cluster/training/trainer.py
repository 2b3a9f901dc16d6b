"""Fine-tune a policy on accepted examples: a job in, a model folder and an outcome out.

This is the driver's part. Ray Train starts the workers, watches them and starts them again from the newest
checkpoint when one dies; what they do is `loop.py`, which is imported on the workers alone.
"""

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import ray
import ray.train
import ray.train.torch
from ray.train.v2._internal.execution.failure_handling import DefaultFailurePolicy, FailureDecision

from rsft_cluster.errors import ConfigError, RsftError, StageError, StoreError
from rsft_cluster.store import Store, open_uri
from rsft_cluster.training.job import TELL_INTERVAL_S, TrainingJob, TrainingOutcome, told

METRICS = "metrics.jsonl"
Report = Callable[[int, int, float], None]

POLL_INTERVAL_S = "0.25"
"""Ray Train looks at its workers this often, and so notices the end this late; 2 s by default."""


UNUSED_CALLBACKS = ("PlacementGroupCleanerCallback", "DatasetsCallback")


class _Trainer(ray.train.torch.TorchTrainer):
    """TorchTrainer that repeats what may mend itself alone, and without two actors that nobody needs here.

    Each of these costs a process and its imports. One frees resources after a crash of the controller, asks the
    dashboard every second, and complains on the terminal where there is none; resources are freed in any case when the
    Ray job ends. The other hands out datasets; workers read their examples themselves.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if type(c).__name__ not in UNUSED_CALLBACKS]

    def _initialize_and_run_controller(self, **settings: Any) -> ray.train.Result:
        policy = _LostWorkersOnly(self.run_config.failure_config or ray.train.FailureConfig())
        return super()._initialize_and_run_controller(**{**settings, "failure_policy": policy})


class _LostWorkersOnly(DefaultFailurePolicy):
    """Ray Train's policy, but that a training ends at once with an error that the next attempt would meet as well."""

    def make_decision(self, training_failed_error: ray.train.TrainingFailedError) -> FailureDecision:
        if _lasting(training_failed_error) is not None:
            return FailureDecision.RAISE
        return super().make_decision(training_failed_error)


def fine_tune(job: TrainingJob, report: Report | None = None) -> TrainingOutcome:
    """Train, write the model to `job.output_uri` and the metrics below `job.storage_uri`; return the outcome.

    Calling it again with the same job continues from the newest checkpoint, on the same number of workers with
    the same ZeRO stage and DeepSpeed options; with others it starts again. Raises DivergedError, ConfigError,
    NothingAcceptedError, or StageError when workers failed more often than `max_failures`, memory ran out, or an
    engine refused what it was given. The model is whole only when this returns: the caller
    says so by a marker of its own. `report` is told step, number of steps and loss while it goes on.
    """
    started = time.perf_counter()
    name = f"{job.name}-w{job.config.workers}"
    trainer = _Trainer(
        _work,
        train_loop_config={"job": job},
        scaling_config=_scaling(job),
        run_config=_run_config(job, name),
    )
    with _environment(_ray_train_settings()), _own_interrupt_handler(), _watched(job, report):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise _explain(error, name) from error
    answer = result.return_value
    if isinstance(answer, RsftError):
        raise answer
    if not isinstance(answer, TrainingOutcome):
        raise StageError(f"{name}: the workers ended without an outcome, but with {answer!r}")
    outcome = replace(answer, phases={**answer.phases, "total": time.perf_counter() - started})
    lines = "".join(json.dumps(row) + "\n" for row in outcome.to_rows())
    Store(job.storage_uri).write(f"{name}/{METRICS}", lines.encode())
    return outcome


@contextmanager
def _watched(job: TrainingJob, report: Report | None) -> Iterator[None]:
    """Pass on what the workers tell of their progress for the length of the block."""
    if report is None:
        yield
        return
    over = threading.Event()

    def watch() -> None:
        while not over.wait(TELL_INTERVAL_S / 2):
            try:
                said = told(job)
            except StoreError:
                continue  # a word that is missed costs a line of progress, nothing else
            if said:
                report(*said)

    watcher = threading.Thread(target=watch, daemon=True, name="training-progress")
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()


def _work(settings: dict[str, Any]) -> TrainingOutcome | RsftError:
    job: TrainingJob = settings["job"]
    if job.config.num_gpus == 0:
        os.environ["DS_ACCELERATOR"] = "cpu"
    # DeepSpeed and transformers take seconds and gigabytes to import: the driver does without them.
    from rsft_cluster.training.loop import train  # noqa: PLC0415

    return train(job)


def _scaling(job: TrainingJob) -> ray.train.ScalingConfig:
    config = job.config
    resources = {"CPU": config.num_cpus} | ({"GPU": config.num_gpus} if config.num_gpus else {})
    return ray.train.ScalingConfig(
        num_workers=config.workers, use_gpu=config.num_gpus > 0, resources_per_worker=resources
    )


def _run_config(job: TrainingJob, name: str) -> ray.train.RunConfig:
    filesystem, path = open_uri(job.storage_uri)
    return ray.train.RunConfig(
        name=name,
        storage_path=path,
        storage_filesystem=filesystem,
        failure_config=ray.train.FailureConfig(max_failures=job.config.max_failures),
        checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        logging_config=ray.train.LoggingConfig(log_level="WARNING"),
    )


def _ray_train_settings() -> dict[str, str]:
    settings = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": POLL_INTERVAL_S}
    if sum(node["Alive"] for node in ray.nodes()) == 1:
        # Nobody is left to hear that the only node goes away; elsewhere a preemption is not a failure.
        settings["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
    return settings


def _explain(error: ray.train.TrainingFailedError, name: str) -> RsftError:
    """Return what went wrong on a worker as an error of ours."""
    told = next((cause for cause in _causes(error) if isinstance(cause, RsftError)), None)
    if told is not None:
        return told
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = lines[-1] if lines else type(error).__name__
    return StageError(f"{name}: training workers failed more often than training.max_failures allows: {said}")


def _lasting(error: ray.train.TrainingFailedError) -> RsftError | None:
    """Return the error of a worker that every attempt would meet, if there is one."""
    return next((cause for cause in _causes(error) if isinstance(cause, (ConfigError, StageError))), None)


def _causes(error: ray.train.TrainingFailedError) -> list[Exception]:
    """Return what was raised on the workers, by rank."""
    failures: dict[int, Exception] = getattr(error, "worker_failures", None) or {}
    return [getattr(failure, "_base_exc", failure) for _, failure in sorted(failures.items())]


@contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set what Ray Train reads from the environment, where the user has not, and take it back."""
    added = {k: v for k, v in settings.items() if k not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            os.environ.pop(key, None)


@contextmanager
def _own_interrupt_handler() -> Iterator[None]:
    """Give the interrupt handler back afterwards: Ray Train replaces it for good."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)

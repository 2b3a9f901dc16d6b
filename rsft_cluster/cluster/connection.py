"""Where Ray is: start a local one, join one, or be inside a job; send a run to a cluster and look after it.

Knows what a config asks of a cluster in CPUs and GPUs, and refuses what can never be placed.
"""

import logging
import math
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import ray
from ray.autoscaler.sdk import request_resources
from ray.exceptions import AuthenticationError
from ray.job_config import JobConfig

from rsft_cluster.cluster.needs import SPARE_CPUS, ActorPool, Needs, lacking, needs, pools
from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError

JOIN_TIMEOUT_S = 60.0
CONNECT_TIMEOUT_S = 2.0


@contextmanager
def connect(config: RunConfig, paths: Sequence[str] = (), *, concurrent_runs: int = 1) -> Iterator[None]:
    """Be connected to Ray for the length of the block; `paths` are put on the workers' import path.

    Inside a job the job's cluster is used; else `cluster.address`; else a local Ray is started, with as many logical
    CPUs as the config needs, for so many runs of it at once. Raises ConfigError for a cluster that cannot be reached
    or can never serve the config.
    """
    if ray.is_initialized():
        with _capacity(config):
            yield
        return
    with chatter_to_file(), _connected(config, paths, concurrent_runs):
        yield


def chatter_path() -> Path:
    """Return the file that takes what Ray's processes print, apart from Ray's own logs."""
    return Path(tempfile.gettempdir()) / f"rsft-{os.getuid()}" / f"ray-{os.getpid()}.log"


@contextmanager
def chatter_to_file() -> Iterator[None]:
    """Send what native code and child processes print to a file; Python's own stderr stays where it was.

    Ray's C++ side and its children write to the process's stderr and stdout without asking. Results and progress would
    drown in it, and what reads our JSON would not find it.
    """
    chatter_path().parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with chatter_path().open("w", encoding="utf-8") as log, os.fdopen(os.dup(2), "w", buffering=1) as ours:
        previous = sys.stderr
        os.dup2(log.fileno(), 2)
        sys.stderr = ours
        try:
            with redirect_stdout(log):
                yield
        finally:
            sys.stderr = previous
            ours.flush()
            os.dup2(ours.fileno(), 2)


@contextmanager
def _connected(config: RunConfig, paths: Sequence[str], concurrent_runs: int) -> Iterator[None]:
    address = os.environ.get("RAY_ADDRESS") or config.cluster.address
    _quieten()
    job = JobConfig(_py_driver_sys_path=[str(p) for p in paths])
    try:
        if address:
            _join(address, job)
        else:
            _start_local(config, job, concurrent_runs)
        with _capacity(config):
            yield
    finally:
        ray.shutdown()


def _join(address: str, job: JobConfig) -> None:
    _check_reachable(address)
    # Attempts, a second each: something listens there, so it either lets us in soon or not at all.
    os.environ.setdefault("RAY_gcs_server_port_wait_time_s", "3")
    try:
        ray.init(address=address, job_config=job, log_to_driver=False, logging_level=logging.ERROR)
    except (AuthenticationError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise ConfigError(f"cluster.address: {address}: {explain_connection(error)}") from error


def _check_reachable(address: str) -> None:
    """Raise ConfigError at once where nothing listens: Ray itself would try for the better part of a minute."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(
            f"cluster.address: {address}: nothing answers there ({error.strerror or error}); expected host:port of a "
            "running Ray head, `auto`, or no address for a local Ray"
        ) from error


def explain_connection(error: Exception) -> str:
    """Return in words why a cluster could not be reached."""
    text = str(error).strip()
    # Ray says why in the error behind the one that it raises.
    whole = f"{text} {error.__cause__}"
    if isinstance(error, AuthenticationError) or "Unauthenticated" in whole or "InvalidAuthToken" in whole:
        return (
            "the cluster refused the token, or got none. Put the cluster's token into a file and name it in "
            "RAY_AUTH_TOKEN_PATH"
        )
    return f"no Ray cluster answers there ({text.splitlines()[0] if text else type(error).__name__})"


def _start_local(config: RunConfig, job: JobConfig, concurrent_runs: int) -> None:
    """Start a Ray of our own. Ray turns token authentication on for it, unless RAY_AUTH_MODE says otherwise.

    Without a token of the user's, one is made that lives in this process and its children only; Ray would write one
    into the home folder, which changes how every later cluster of this user starts.
    """
    if not _has_token():
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    required = needs(config)
    # None is what Ray finds on the machine; _capacity says when it is too little.
    num_gpus = None if required.num_gpus else 0
    ray.init(
        address="local",
        num_cpus=max(os.cpu_count() or 1, math.ceil(required.num_cpus * concurrent_runs)),
        num_gpus=num_gpus,
        include_dashboard=False,
        job_config=job,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def _has_token() -> bool:
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    return bool(named) or (Path.home() / ".ray" / "auth_token").exists()


def nodes() -> list[Needs]:
    """Return what each living node of the cluster offers, all of it free."""
    alive = (node["Resources"] for node in ray.nodes() if node["Alive"])
    return [Needs(resources.get("CPU", 0.0), resources.get("GPU", 0.0)) for resources in alive]


def nodes_at(address: str) -> list[Needs]:
    """Return what the nodes of the cluster at an address offer; raises ConfigError where none answers."""
    with chatter_to_file():
        _quieten()
        try:
            _join(address, JobConfig())
            return nodes()
        finally:
            ray.shutdown()


@contextmanager
def _capacity(config: RunConfig) -> Iterator[None]:
    """Raise ConfigError when the cluster, all of it free, could not serve the config.

    Where nodes come on demand they are asked for, stage by stage, and waited for; what is asked for last holds until
    the end of the block.
    """
    scales = config.cluster.autoscaling or "RSFT_AUTOSCALED" in os.environ
    # Nodes of a cluster that has just been started join one after another.
    patience_s = config.cluster.wait_for_nodes_s if scales else JOIN_TIMEOUT_S if len(ray.nodes()) > 1 else 0.0
    deadline = time.monotonic() + patience_s
    try:
        for stage in pools(config):
            if scales and lacking(stage, nodes()):
                request_resources(bundles=_bundles(stage))
            while missing := lacking(stage, nodes()):
                if time.monotonic() >= deadline:
                    waited = f"in {patience_s:g} s the autoscaler brought no room: " if scales else ""
                    raise ConfigError(waited + "\n".join(missing))
                time.sleep(1.0)
        yield
    finally:
        if scales and ray.is_initialized():
            request_resources(bundles=[])


def _bundles(stage: Sequence[ActorPool]) -> list[dict[str, float]]:
    """Return what to ask an autoscaler for: a bundle an actor, and the spare CPUs."""
    shapes = [(pool.size, {"CPU": pool.each.num_cpus, "GPU": pool.each.num_gpus}) for pool in stage]
    shapes.append((SPARE_CPUS, {"CPU": 1.0, "GPU": 0.0}))
    return [{name: amount for name, amount in shape.items() if amount} for size, shape in shapes for _ in range(size)]


def _quieten() -> None:
    """Keep Ray's own chatter in its log files."""
    for name, value in (
        ("RAY_DATA_DISABLE_PROGRESS_BARS", "1"),
        ("RAY_TQDM", "0"),
        ("RAY_DEDUP_LOGS", "0"),
        ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0"),
        ("RAY_USAGE_STATS_ENABLED", "0"),
        # Ray starts its workers at nice 15; on a machine that is not its own they would starve.
        ("RAY_worker_niceness", "0"),
    ):
        os.environ.setdefault(name, value)
    logging.getLogger("ray").setLevel(logging.ERROR)

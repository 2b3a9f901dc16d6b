"""Runs as Ray jobs: submit one, follow it, list, stop. Talks to a cluster's job API over HTTP, no Ray is started.

What travels is this package, the resolved config, and the modules beside the config file. Tokens come from the
environment or from a file and go nowhere else.
"""

import asyncio
import http.client
import json
import logging
import os
import shutil
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from rsft_cluster.config import DriverConfig, RunConfig
from rsft_cluster.errors import AlreadyRunningError, ConfigError, RsftError, StageError

TIMEOUT_S = 5.0
AGENT_TIMEOUT_S = 60.0
ENDED = (JobStatus.SUCCEEDED, JobStatus.FAILED, JobStatus.STOPPED)


@dataclass(frozen=True)
class Submission:
    """What is sent to a cluster."""

    submission_id: str
    entrypoint: str
    working_dir: str
    py_modules: tuple[str, ...]
    driver: DriverConfig

    def request(self) -> dict[str, Any]:
        """Return the arguments of the job API's request, as Ray's client takes them."""
        resources = {
            "entrypoint_num_cpus": self.driver.num_cpus,
            "entrypoint_memory": self.driver.memory_bytes,
            "entrypoint_resources": self.driver.resources,
        }
        return {
            "submission_id": self.submission_id,
            "entrypoint": self.entrypoint,
            "runtime_env": self.runtime_env(),
            # Ray runs the driver on the head unless it needs resources.
            **{name: value for name, value in resources.items() if value},
        }

    def files(self) -> list[str]:
        """Return the files that travel beside this package."""
        return sorted(path.name for path in Path(self.working_dir).iterdir())

    def runtime_env(self) -> dict[str, Any]:
        """Return Ray's description of what travels with the job. It holds no secret: everybody can read it."""
        return {"working_dir": self.working_dir, "py_modules": list(self.py_modules)}


@contextmanager
def packed(
    config: RunConfig, config_path: Path, *, night: date | None = None, trust_remote_code: bool = False
) -> Iterator[Submission]:
    """Gather what travels in a folder that lasts as long as the block; of a run, or of its night of a date."""
    with tempfile.TemporaryDirectory(prefix="rsft-submit-") as folder:
        for module in sorted(config_path.resolve().parent.glob("*.py")):
            shutil.copy(module, folder)
        Path(folder, "config.json").write_text(config.model_dump_json(indent=1), encoding="utf-8")
        flag = " --trust-remote-code" if trust_remote_code else ""
        package = str(Path(__file__).parents[__name__.count(".") - 1])
        # exec: a stop request must reach the run itself, not a shell in front of it.
        command = "run config.json" if night is None else f"nightly config.json --date {night}"
        name = f"rsft-{config.run}" if night is None else f"rsft-{config.run}-{night}"
        entrypoint = f"exec python -m rsft_cluster {command}{flag}"
        yield Submission(name, entrypoint, folder, (package,), config.cluster.driver)


def submit(submission: Submission, address: str) -> str:
    """Send a run to a cluster and return the job's id; an earlier job of the same run must have ended.

    A job that failed or was stopped is replaced: the run itself goes on where it stopped.
    """
    client = connect(address)
    with _explaining(address):
        earlier = _status(client, submission, address)
        try:
            if earlier is not None:
                client.delete_job(submission.submission_id)
            return _send(client, submission)
        except RuntimeError:
            # Ray takes an id once: of two submissions of a run at one moment, the second is refused.
            _status(client, submission, address)
            raise


def _status(client: JobSubmissionClient, submission: Submission, address: str) -> JobStatus | None:
    """Return how an earlier job of the same run ended, if there is one; AlreadyRunningError if it has not ended."""
    statuses = [job.status for job in client.list_jobs() if job.submission_id == submission.submission_id]
    if statuses and statuses[0] not in ENDED:
        raise AlreadyRunningError(
            f"--address {address}: job {submission.submission_id} is already {statuses[0].lower()} there; "
            "`rsft logs` shows what it does, `rsft stop` ends it"
        )
    return statuses[0] if statuses else None


def _send(client: JobSubmissionClient, submission: Submission) -> str:
    """Send a job, waiting for the agent that takes jobs: it comes up seconds after the dashboard of a young cluster."""
    deadline = time.monotonic() + AGENT_TIMEOUT_S
    while True:
        try:
            return client.submit_job(**submission.request())
        except RuntimeError as error:
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(1.0)


def connect(address: str) -> JobSubmissionClient:
    """Return a client of a cluster's job API.

    Raises ConfigError where nothing answers, where the token is refused, and for a cluster that lets everybody in
    unless it is on this machine: whoever reaches its job API can run code on every node.
    """
    _check_guarded(address)
    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.WARNING)
    with _explaining(address):
        return JobSubmissionClient(address, headers=_headers())


def logs(address: str, job: str) -> str:
    """Return what a job printed so far."""
    client = connect(address)
    with _explaining(address):
        return client.get_job_logs(job)


def follow(address: str, job: str, write: Callable[[str], object]) -> int:
    """Write a job's output as it comes; return the exit code of the run when the job has ended."""
    client = connect(address)

    async def tail() -> None:
        async for lines in client.tail_job_logs(job):
            write(lines)

    with _explaining(address):
        asyncio.run(tail())
        details = client.get_job_info(job)
    if details.status == JobStatus.SUCCEEDED:
        return 0
    return details.driver_exit_code or 1


def describe(address: str, job: str | None = None) -> list[dict[str, Any]]:
    """Return the jobs of a cluster that are runs, or the one named `job`."""
    client = connect(address)
    with _explaining(address):
        infos = [client.get_job_info(job)] if job else client.list_jobs()
    return [
        {
            "job": info.submission_id,
            "status": str(info.status.value),
            "message": info.message,
            "exit_code": info.driver_exit_code,
            "started": info.start_time,
            "ended": info.end_time,
        }
        for info in infos
        if job or (info.submission_id or "").startswith("rsft-")
    ]


def stop(address: str, job: str) -> bool:
    """Ask a job to stop; return whether it was running."""
    client = connect(address)
    with _explaining(address):
        return client.stop_job(job)


def _headers() -> dict[str, str]:
    token = os.environ.get("RAY_AUTH_TOKEN")
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    if not token and path:
        try:
            token = Path(path).read_text(encoding="utf-8").strip()
        except OSError as error:
            raise ConfigError(f"RAY_AUTH_TOKEN_PATH: {path}: cannot be read: {error.strerror}") from error
    return {"Authorization": f"Bearer {token}"} if token else {}


def _check_guarded(address: str) -> None:
    """Raise ConfigError unless a Ray dashboard answers that asks for a token, or one on this machine."""
    host = _host(address)
    try:
        # Without a token: a guarded cluster answers 401, and then it is worth showing ours.
        url = f"{address.rstrip('/')}/api/jobs/"
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 _host saw http or https
            json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            return
        raise ConfigError(
            f"--address {address}: what answers there is no Ray dashboard (HTTP status {error.code}); its port is 8265 "
            "if nobody chose another"
        ) from error
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise ConfigError(f"--address {address}: no Ray dashboard answers there ({_cause(error)})") from error
    except (http.client.HTTPException, ValueError) as error:
        raise ConfigError(
            f"--address {address}: what answers there is no Ray dashboard; its port is 8265 if nobody chose another"
        ) from error
    refuse_open(address, host)


def refuse_open(address: str, host: str) -> None:
    """Raise ConfigError for a cluster without a token, unless it is on this machine or the user vouches for it."""
    if host not in ("127.0.0.1", "localhost", "::1") and "RSFT_ALLOW_UNAUTHENTICATED" not in os.environ:
        raise ConfigError(
            f"--address {address}: this cluster runs whatever anybody sends it, without a token. Start it with "
            "RAY_AUTH_MODE=token, or set RSFT_ALLOW_UNAUTHENTICATED=1 if its network lets nobody else in"
        )


def _host(address: str) -> str:
    try:
        parts = urlsplit(address)
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0:
            return parts.hostname
    except ValueError:  # a port that is no number, a bracket that is not closed
        pass
    raise ConfigError(f"--address {address}: expected the URL of a Ray dashboard, like http://127.0.0.1:8265")


@contextmanager
def _explaining(address: str) -> Iterator[None]:
    try:
        yield
    except RsftError:
        raise
    except AuthenticationError as error:
        raise ConfigError(f"--address {address}: {_refused_token()}") from error
    except (RuntimeError, ConnectionError, OSError, ValueError) as error:
        text = str(error)
        if "does not exist" in text or "status code 404" in text:
            raise ConfigError(f"--address {address}: there is no such job; `rsft jobs` lists them") from error
        raise StageError(f"--address {address}: {text.strip().splitlines()[0]}") from error


def _refused_token() -> str:
    remedy = "Put the cluster's token into a file and name it in RAY_AUTH_TOKEN_PATH"
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        if os.environ.get(name):
            return f"the cluster refused the token of {name}. {remedy}"
    return f"the cluster asks for a token. {remedy}"


def _cause(error: Exception) -> str:
    reason = getattr(error, "reason", error)
    return getattr(reason, "strerror", None) or str(reason)

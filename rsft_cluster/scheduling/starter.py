"""Create a night's RayJob from within a Kubernetes cluster: `python -m rsft_cluster.scheduling.starter TEMPLATE`.

Runs in the pod of a CronJob, with the rights of its service account. Started again it finds the night's job there and
is content; while an earlier night's job of the same run is at work it creates none.
"""

import json
import os
import re
import ssl
import sys
import urllib.error
import urllib.request
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

from rsft_cluster.config import NightlyConfig
from rsft_cluster.errors import ConfigError, RsftError, StageError
from rsft_cluster.nightly.dates import logical_date
from rsft_cluster.scheduling.cronjob import JOB_NAME
from rsft_cluster.scheduling.kuberay import AT_ANNOTATION, RUN_LABEL, dated_name

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
ENDED = ("Complete", "Failed", "ValidationFailed")
TIMEOUT_S = 30


def night_of(job: str, at: str, now: datetime) -> date:
    """Return the night of a CronJob's job, whose name ends in the minute it was due; of any other, that of `now`."""
    minutes = re.fullmatch(r".*-(\d{8,})", job)
    due = datetime.fromtimestamp(int(minutes[1]) * 60, UTC) if minutes else now
    return logical_date(NightlyConfig(at=at), due)


def dated(template: dict[str, Any], night: date) -> dict[str, Any]:
    """Return the job of a night: the template, with the date in its name and its entrypoint."""
    made, spec = template["metadata"], template["spec"]
    return {
        **template,
        "metadata": {**made, "name": dated_name(made["name"], night)},
        "spec": {**spec, "entrypoint": f"{spec['entrypoint']} --date {night}"},
    }


class Api:
    """The cluster's API, as the pod's service account sees it."""

    def __init__(self, account: Path = ACCOUNT) -> None:
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT", "443")
        if not host:
            raise ConfigError("KUBERNETES_SERVICE_HOST is not set: this runs in a pod of Kubernetes alone")
        self._url = f"https://{f'[{host}]' if ':' in host else host}:{port}/apis/ray.io/v1/namespaces"
        try:
            self._token = (account / "token").read_text(encoding="utf-8").strip()
            self._trusted = ssl.create_default_context(cafile=str(account / "ca.crt"))
        except OSError as error:
            raise ConfigError(f"{account}: the pod has no service account to speak with: {error}") from error

    def jobs(self, namespace: str, run: str) -> list[dict[str, Any]]:
        """Return the RayJobs of a run."""
        return self._ask("GET", f"{namespace}/rayjobs?labelSelector={RUN_LABEL}%3D{run}")["items"]

    def create(self, namespace: str, job: dict[str, Any]) -> bool:
        """Create a RayJob; return whether it is new."""
        try:
            self._ask("POST", f"{namespace}/rayjobs", job)
        except FileExistsError:
            return False
        return True

    def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"{self._url}/{path}", content, headers, method=method)  # noqa: S310 https
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S, context=self._trusted) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 409:
                raise FileExistsError(path) from error
            reason = f"{error.code}: {_reason(error)}"
            raise StageError(f"the cluster's API answers {method} {path} with {reason}") from error
        except (OSError, ValueError) as error:
            raise StageError(f"the cluster's API cannot be reached: {error}") from error


def _reason(error: urllib.error.HTTPError) -> str:
    text = error.read().decode(errors="replace")
    try:
        return str(json.loads(text)["message"])
    except (ValueError, KeyError, TypeError):
        return text.strip()[:200] or str(error.reason)


def start(template: dict[str, Any], api: Api, now: datetime) -> str:
    """Create tonight's RayJob where there is none; return in words what was done."""
    made = template["metadata"]
    night = night_of(os.environ.get(JOB_NAME, ""), made["annotations"][AT_ANNOTATION], now)
    job = dated(template, night)
    name, namespace = job["metadata"]["name"], made["namespace"]
    for other in api.jobs(namespace, made["labels"][RUN_LABEL]):
        status = other.get("status", {}).get("jobDeploymentStatus", "")
        if other["metadata"]["name"] != name and status not in ENDED:
            return f"{other['metadata']['name']} is still at work ({status or 'new'}): no job for {night}"
    return f"{name}: created" if api.create(namespace, job) else f"{name}: is there already"


def main() -> None:
    """Start the night of the template that the command line names."""
    try:
        template = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
        message, code = start(template, Api(), datetime.now(UTC)), 0
    except RsftError as error:
        message, code = f"error: {error}", error.exit_code
    sys.stderr.write(f"{message}\n")
    sys.exit(code)


if __name__ == "__main__":
    main()

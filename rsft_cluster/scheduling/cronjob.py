"""Nights as a Kubernetes CronJob, whose pod creates the night's RayJob and may do nothing else."""

import json

from rsft_cluster.scheduling.kuberay import base_name, config_map, metadata, ray_job
from rsft_cluster.scheduling.order import Order, cron_schedule
from rsft_cluster.scheduling.pods import CONFIG_FOLDER, Group, Manifest, pod

JOB_NAME = "RSFT_JOB_NAME"
TEMPLATE = "rayjob.json"
LATE_S = 6 * 3600
"""A night that the cluster slept through begins so much later, not after that."""


def cron_job(order: Order) -> list[Manifest]:
    """Return the CronJob and what it needs: the account of its pod, the config, the template of the RayJobs."""
    name = f"{base_name(order.run)}-starter"
    files = config_map(order)
    # The template is a file that may be edited: what pods ask for, where they run.
    files["data"][TEMPLATE] = json.dumps(ray_job(order), indent=1)
    return [*_account(order, name), files, _cron_job(order, name)]


def _account(order: Order, name: str) -> list[Manifest]:
    rights = {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    authorization = "rbac.authorization.k8s.io"
    return [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": metadata(order, name)},
        {
            "apiVersion": f"{authorization}/v1", "kind": "Role", "metadata": metadata(order, name), "rules": [rights]
        },
        {
            "apiVersion": f"{authorization}/v1", "kind": "RoleBinding", "metadata": metadata(order, name),
            "roleRef": {"apiGroup": authorization, "kind": "Role", "name": name},
            "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": order.kubernetes.namespace}],
        },
    ]  # fmt: skip


def _cron_job(order: Order, name: str) -> Manifest:
    return {
        "apiVersion": "batch/v1",
        "kind": "CronJob",
        "metadata": metadata(order, base_name(order.run)),
        "spec": {
            "schedule": cron_schedule(order.config.nightly),
            "timeZone": "Etc/UTC",
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": LATE_S,
            "successfulJobsHistoryLimit": 3,
            "failedJobsHistoryLimit": 3,
            "jobTemplate": {
                "spec": {
                    "backoffLimit": 3,
                    "activeDeadlineSeconds": 900,
                    "ttlSecondsAfterFinished": 7 * 24 * 3600,
                    "template": _starter(order, name),
                }
            },
        },
    }


def _starter(order: Order, account: str) -> Manifest:
    template = pod(
        order.kubernetes, "starter", Group("starter", 1, 1, "512Mi"), config_map=base_name(order.run)
    )  # fmt: skip
    template["metadata"]["labels"]["app.kubernetes.io/component"] = "starter"
    template["spec"] |= {"restartPolicy": "Never", "serviceAccountName": account}
    container = template["spec"]["containers"][0]
    container["command"] = ["python", "-m", "rsft_cluster.scheduling.starter", f"{CONFIG_FOLDER}/{TEMPLATE}"]
    # Kubernetes names a CronJob's jobs by the minute that they were due at; a pod that comes up late learns it so.
    field = {"fieldRef": {"fieldPath": "metadata.labels['batch.kubernetes.io/job-name']"}}
    container["env"].append({"name": JOB_NAME, "valueFrom": field})
    # Credentials are for the runs.
    container.pop("envFrom", None)
    return template

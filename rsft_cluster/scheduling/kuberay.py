"""Ray clusters and jobs as KubeRay's objects."""

import hashlib
import math
import re
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.scheduling.order import Kubernetes, Order, cron_schedule
from rsft_cluster.scheduling.pods import CONFIG_FOLDER, NODE_LOSS, Group, Manifest, container_security, groups, pod

MAX_NAME = 36
"""Characters of a RayCronJob's name, the tightest limit; a RayJob has 47, of which a date takes nine."""
MAX_CONFIG_MAP_BYTES = 1_000_000
START_S = 3600
"""Seconds that a cluster has to come up."""
AFTER_S = 3600
"""A cluster stays for so long after its job, to be looked at."""
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
RUN_LABEL = "rsft/run"
AT_ANNOTATION = "rsft/at"
HEAD = Group("head", 1, 2, "8Gi")


def base_name(run: str) -> str:
    """Return the name of a run's objects: a DNS label, and another one for every run."""
    name = f"rsft-{re.sub(r'[._]', '-', run)}".rstrip("-")
    if name == f"rsft-{run}" and len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 7].rstrip('-')}-{hashlib.sha256(run.encode()).hexdigest()[:6]}"


def dated_name(base: str, night: date) -> str:
    """Return the name of a night's RayJob: whoever creates it a second time finds it there."""
    return f"{base}-{night:%Y%m%d}"


def metadata(order: Order, name: str, **more: Any) -> Manifest:
    """Return an object's metadata."""
    labels = {"app.kubernetes.io/name": "rsft", RUN_LABEL: base_name(order.run)}
    return {"name": name, "namespace": order.kubernetes.namespace, "labels": labels, **more}


def config_map(order: Order) -> Manifest:
    """Return the config and the modules beside it, as files."""
    files = {"config.json": order.config.model_dump_json(indent=1)}
    for module in sorted(order.path.parent.glob("*.py")):
        files[module.name] = module.read_text(encoding="utf-8")
    size = sum(len(text.encode()) for text in files.values())
    if size > MAX_CONFIG_MAP_BYTES:
        raise ConfigError(
            f"{order.path.parent}: the config and the modules beside it are {size} bytes, a ConfigMap holds "
            f"{MAX_CONFIG_MAP_BYTES}; install the modules into the image"
        )
    return {
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata(order, base_name(order.run)), "data": files
    }  # fmt: skip


def ray_job(order: Order, night: date | None = None) -> Manifest:
    """Return the job of a night, or the template of all of them: without the date in its name and entrypoint."""
    base = base_name(order.run)
    name = base if night is None else dated_name(base, night)
    made = metadata(order, name, annotations={AT_ANNOTATION: order.config.nightly.at})
    if order.kubernetes.queue is not None:
        made["labels"] = {**made["labels"], QUEUE_LABEL: order.kubernetes.queue}
    return {"apiVersion": "ray.io/v1", "kind": "RayJob", "metadata": made, "spec": job_spec(order, night)}


def job_spec(order: Order, night: date | None = None) -> Manifest:
    """Return what a RayJob does: a cluster of its own for one night, which goes when the night is over."""
    words = [*(w for w in order.words if w == "--trust-remote-code"), *(["--date", str(night)] if night else [])]
    spec: Manifest = {
        "entrypoint": " ".join(["python", "-m", "rsft_cluster", "nightly", f"{CONFIG_FOLDER}/config.json", *words]),
        "submissionMode": "K8sJobMode",
        "shutdownAfterJobFinishes": True,
        "ttlSecondsAfterFinished": AFTER_S,
        # A failed night is retried once, on a new cluster: the run resumes from its store.
        "backoffLimit": 1,
        "submitterPodTemplate": _submitter(order.kubernetes),
        "rayClusterSpec": cluster_spec(order, config_map=base_name(order.run)),
    }
    hours = order.config.nightly.max_hours
    if hours is not None:
        spec["activeDeadlineSeconds"] = math.ceil((hours + 1) * 3600)
    if order.kubernetes.queue is None:
        spec["preRunningDeadlineSeconds"] = START_S
    return spec


def _submitter(to: Kubernetes) -> Manifest:
    template = pod(to, "ray-job-submitter", Group("submitter", 1, 1, "1Gi"))
    template["metadata"]["labels"]["app.kubernetes.io/component"] = "submitter"
    template["spec"] |= {"restartPolicy": "Never", "automountServiceAccountToken": False}
    return template


def ray_cron_job(order: Order) -> Manifest:
    """Return the nights as KubeRay's own cron job, which is alpha: it forbids no overlap, makes up for lost ticks."""
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayCronJob",
        "metadata": metadata(order, base_name(order.run)),
        "spec": {
            "schedule": cron_schedule(order.config.nightly), "timeZone": "Etc/UTC", "jobTemplate": job_spec(order)
        },
    }  # fmt: skip


def ray_cluster(order: Order, token: str) -> Manifest:
    """Return a standing cluster for `rsft submit`, guarded by the token in the Secret of that name."""
    spec = cluster_spec(order, config_map=None)
    spec["authOptions"] = {"mode": "token", "secretName": token}
    return {
        "apiVersion": "ray.io/v1", "kind": "RayCluster", "metadata": metadata(order, base_name(order.run)), "spec": spec
    }  # fmt: skip


def cluster_spec(order: Order, config_map: str | None) -> Manifest:
    """Return a cluster: a head that only conducts, and a group of pods for each kind of worker."""
    to, shared = order.kubernetes, bool(_local_paths(order))
    scales = to.queue is None
    spec: Manifest = {
        "rayVersion": version("ray"),
        # Without a name the operator makes a token of each cluster's own, and it goes with the cluster.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # No task runs beside the driver: the head is the one node that must not fall.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            "template": _head(to, config_map, shared=shared, scales=scales),
        },
        "workerGroupSpecs": [],
    }
    if scales:
        spec["enableInTreeAutoscaling"] = True
        spec["autoscalerOptions"] = {
            "version": "v2",
            "idleTimeoutSeconds": 300,
            "upscalingMode": "Default",
            "resources": {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"cpu": "500m", "memory": "1Gi"}},
            "securityContext": container_security(),
            "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108 the pod's own
            "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
        }
    for group in groups(order.config):
        template = pod(
            to, "ray-worker", group, config_map=config_map, shared=shared,
            # Taken away, a node has so long to hand its work on; less than the grace below.
            environment={**NODE_LOSS, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "30"},
        )  # fmt: skip
        # No worker speaks to Kubernetes, least of all what a model wrote and a constraint runs.
        template["spec"] |= {"automountServiceAccountToken": False, "terminationGracePeriodSeconds": 60}
        spec["workerGroupSpecs"].append(
            {
                "groupName": group.name,
                "replicas": 0 if scales else group.pods,
                "minReplicas": 0 if scales else group.pods,
                "maxReplicas": group.pods,
                "rayStartParams": {"num-cpus": str(group.num_cpus), "num-gpus": str(group.num_gpus)},
                "template": template,
            }
        )
    return spec


def _head(to: Kubernetes, config_map: str | None, *, shared: bool, scales: bool) -> Manifest:
    # With an autoscaler there is nothing yet when the driver comes; it asks for what is there otherwise.
    environment = {**NODE_LOSS, **({"RSFT_AUTOSCALED": "1"} if scales else {})}
    head = pod(to, "ray-head", HEAD, config_map=config_map, shared=shared, environment=environment)
    if not scales:
        head["spec"]["automountServiceAccountToken"] = False
    return head


def check_paths(order: Order) -> None:
    """Raise ConfigError for a path of the config that pods could not see."""
    mount = order.kubernetes.mount.rstrip("/") + "/"
    for key, path in _local_paths(order).items():
        if not f"{path}/".startswith(mount):
            raise ConfigError(
                f"{order.path}: {key}: {path}: pods see no such path; expected one below {mount} (--mount), where the "
                "volume claim lies, or a URI"
            )


def _local_paths(order: Order) -> dict[str, str]:
    """Return the paths that a config names, by key."""
    config: RunConfig = order.config
    named = {
        "store": config.store,
        "policy.model": config.policy.model if Path(config.policy.model).is_absolute() else None,
        "policy.adapter": config.policy.adapter,
        "policy.chat_template": config.policy.chat_template,
        "training.replay": config.training.replay,
        **{f"prompts.paths.{i}": path for i, path in enumerate(config.prompts.paths)},
        **{f"evaluation.prompts.paths.{i}": path for i, path in enumerate(config.evaluation.prompts.paths)},
    }
    return {key: path for key, path in named.items() if path is not None and "://" not in path}

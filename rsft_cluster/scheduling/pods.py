"""Pods of a Ray cluster on Kubernetes: what each holds, and what it may do (the `restricted` Pod Security Standard)."""

import math
from dataclasses import dataclass
from typing import Any

from rsft_cluster.cluster.needs import SPARE_CPUS
from rsft_cluster.config import RunConfig, most
from rsft_cluster.scheduling.order import Kubernetes

Manifest = dict[str, Any]
CONFIG_FOLDER = "/etc/rsft"
USER_ID = 1000
"""The image's user; see deploy/docker/Dockerfile."""
CPU_POD = 8
"""The most CPUs of a pod without a GPU, and so the most workers that share one."""
NODE_LOSS = {
    "RAY_grpc_client_keepalive_time_ms": "30000",
    "RAY_grpc_client_keepalive_timeout_ms": "15000",
    "RAY_grpc_keepalive_time_ms": "30000",
    "RAY_grpc_keepalive_timeout_ms": "15000",
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "4",
    "RAY_JOB_STOP_WAIT_TIME_S": "30",
}
"""How soon Ray finds out that a node is gone, and how long a job may take to stop; the same as deploy/ray.env."""
SPOT_LABELS = {
    "cloud.google.com/gke-spot": "true",
    "kubernetes.azure.com/scalesetpriority": "spot",
    "eks.amazonaws.com/capacityType": "SPOT",
    "karpenter.sh/capacity-type": "spot",
}
"""How clouds mark nodes that may be taken away."""


@dataclass(frozen=True, slots=True)
class Group:
    """Pods that are alike, as workers of one kind need them."""

    name: str
    pods: int
    num_cpus: int
    memory: str
    num_gpus: int = 0
    spot: bool = False
    """Whether it may run on nodes that are taken away at short notice."""


def groups(config: RunConfig) -> list[Group]:
    """Return the groups of workers that serve every stage of a config at its widest."""
    sampling, scoring, training = config.sampling, config.scoring, config.training
    samplers = max(most(sampling.workers), config.evaluation.workers or 0)
    return [
        _group("samplers", samplers, sampling.num_cpus, sampling.num_gpus, spot=True),
        _group("scorers", most(scoring.workers), scoring.num_cpus, scoring.num_gpus, spot=True),
        _group("trainers", training.workers, training.num_cpus, training.num_gpus, spot=False),
    ]


def _group(name: str, workers: int, num_cpus: float, num_gpus: float, *, spot: bool) -> Group:
    fitting = 1 / num_gpus if num_gpus else CPU_POD / max(num_cpus, 1)
    together = min(max(1, math.floor(fitting)), workers)
    pods = math.ceil(workers / together)
    memory = 64 if num_gpus else 4 * together + 4
    # A spare CPU a pod: Ray's own tasks never keep a worker from its place.
    cpus = math.ceil(together * num_cpus) + SPARE_CPUS
    return Group(name, pods, cpus, f"{memory}Gi", math.ceil(together * num_gpus), spot)


def container_security() -> Manifest:
    """Return what a container may do: write to its mounts, and nothing else."""
    return {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }


def pod_security() -> Manifest:
    """Return whom a pod runs as."""
    return {
        "runAsNonRoot": True,
        "runAsUser": USER_ID,
        "runAsGroup": USER_ID,
        "fsGroup": USER_ID,
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def pod(
    to: Kubernetes,
    name: str,
    size: Group,
    *,
    config_map: str | None = None,
    shared: bool = False,
    environment: dict[str, str] | None = None,
) -> Manifest:
    """Return a pod's template of one container with all that it asks for guaranteed to it."""
    volumes: list[Manifest] = [{"name": "tmp", "emptyDir": {}}]
    mounts: list[Manifest] = [{"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108 the pod's own
    if config_map is not None:
        volumes.append({"name": "config", "configMap": {"name": config_map}})
        mounts.append({"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True})
    if shared:
        volumes.append({"name": "shared", "persistentVolumeClaim": {"claimName": to.claim}})
        mounts.append({"name": "shared", "mountPath": to.mount})
    resources: Manifest = {"cpu": str(size.num_cpus), "memory": size.memory}
    if size.num_gpus:
        resources["nvidia.com/gpu"] = str(size.num_gpus)
    variables = {"HOME": "/tmp", **(environment or {})}  # noqa: S108 the pod's own
    container: Manifest = {
        "name": name,
        "image": to.image,
        "env": [{"name": key, "value": value} for key, value in variables.items()],
        "resources": {"requests": dict(resources), "limits": dict(resources)},
        "securityContext": container_security(),
        "volumeMounts": mounts,
    }
    if to.secret is not None:
        container["envFrom"] = [{"secretRef": {"name": to.secret}}]
    spec: Manifest = {
        "securityContext": pod_security(),
        "containers": [container],
        "volumes": volumes,
        "affinity": {"nodeAffinity": _spot_preferred() if size.spot else _spot_refused()},
    }
    tolerated = [*(["nvidia.com/gpu"] if size.num_gpus else []), *(SPOT_LABELS if size.spot else ())]
    if tolerated:
        spec["tolerations"] = [{"key": key, "operator": "Exists", "effect": "NoSchedule"} for key in tolerated]
    return {"metadata": {"labels": {"app.kubernetes.io/name": "rsft"}}, "spec": spec}


def _spot_preferred() -> Manifest:
    terms = [
        {"weight": 100, "preference": {"matchExpressions": [{"key": key, "operator": "In", "values": [value]}]}}
        for key, value in SPOT_LABELS.items()
    ]
    return {"preferredDuringSchedulingIgnoredDuringExecution": terms}


def _spot_refused() -> Manifest:
    expressions = [{"key": key, "operator": "NotIn", "values": [value]} for key, value in SPOT_LABELS.items()]
    return {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{"matchExpressions": expressions}]}
    }

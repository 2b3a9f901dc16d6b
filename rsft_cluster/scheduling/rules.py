"""What KubeRay's operator refuses though the schema allows it, and what a namespace of restricted pods refuses.

Kubernetes takes such an object without a word; the operator then marks it as invalid, or no pod ever comes.
"""

import re
from collections.abc import Iterator
from typing import Any

Manifest = dict[str, Any]
DNS_1035 = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
MAX_NAMES = {"RayJob": 47, "RayCluster": 53, "RayCronJob": 36, "CronJob": 52}
MIN_TOKEN_VERSION = (2, 52)
SUBMISSION_MODES = ("K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode")
RESOURCE_PARAMS = ("num-cpus", "num-gpus", "memory", "resources")
AUTOSCALER_VARIABLE = "RAY_enable_autoscaler_v2"
CRON_FIELD = r"(\*|\d+(-\d+)?)(/\d+)?(,(\*|\d+(-\d+)?)(/\d+)?)*"
CRON = re.compile(" ".join([CRON_FIELD] * 5))


def broken(manifest: Manifest) -> list[str]:
    """Return the rules that an object breaks, in words; none for objects of other kinds."""
    return list(_broken(manifest))


def _broken(manifest: Manifest) -> Iterator[str]:
    kind, spec = manifest.get("kind", ""), manifest.get("spec") or {}
    if kind in MAX_NAMES:
        yield from _name(kind, (manifest.get("metadata") or {}).get("name", ""))
    match kind:
        case "RayCluster":
            yield from _cluster(spec)
        case "RayJob":
            yield from _job(spec)
        case "RayCronJob":
            yield from _schedule(spec)
            yield from _job(spec.get("jobTemplate") or {})
        case "CronJob":
            yield from _schedule(spec)
            yield from _cron_job(spec)


def _name(kind: str, name: str) -> Iterator[str]:
    if len(name) > MAX_NAMES[kind]:
        yield f"the name of a {kind} has at most {MAX_NAMES[kind]} characters; {name} has {len(name)}"
    if not DNS_1035.fullmatch(name):
        yield f"the name of a {kind} is lower-case letters, digits and dashes, a letter first; found {name!r}"


def _schedule(spec: Manifest) -> Iterator[str]:
    if not CRON.fullmatch(str(spec.get("schedule", ""))):
        yield f"schedule: expected five cron fields, found {spec.get('schedule')!r}"
    if spec.get("timeZone") != "Etc/UTC":
        yield f"timeZone: nights are counted in Etc/UTC, found {spec.get('timeZone')!r}"


def _cron_job(spec: Manifest) -> Iterator[str]:
    if spec.get("concurrencyPolicy") != "Forbid":
        yield "concurrencyPolicy: expected Forbid: a run has one writer"
    if "startingDeadlineSeconds" not in spec:
        yield "startingDeadlineSeconds: is missing: after 100 missed starts none would follow"
    template = spec["jobTemplate"]["spec"]["template"]
    if template["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "restartPolicy: the pods of a job need Never or OnFailure"
    yield from _restricted(template)


def _job(spec: Manifest) -> Iterator[str]:
    selected, mode = bool(spec.get("clusterSelector")), spec.get("submissionMode", "K8sJobMode")
    if not spec.get("entrypoint") and mode != "InteractiveMode":
        yield "entrypoint: is missing"
    if mode not in SUBMISSION_MODES:
        yield f"submissionMode: expected one of {', '.join(SUBMISSION_MODES)}, found {mode!r}"
    if not selected and not spec.get("rayClusterSpec"):
        yield "one of rayClusterSpec and clusterSelector must be set"
    yield from _ends(spec, selected=selected)
    for key in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if key in spec and spec[key] <= 0:
            yield f"{key}: expected more than 0"
    if spec.get("backoffLimit", 0) < 0:
        yield "backoffLimit: expected at least 0"
    if spec.get("backoffLimit", 0) and (selected or mode == "InteractiveMode"):
        yield f"backoffLimit: each retry is a new cluster, which {'clusterSelector' if selected else mode} has none of"
    if mode == "SidecarMode" and (selected or "submitterPodTemplate" in spec or "submitterConfig" in spec):
        yield "SidecarMode: goes with neither clusterSelector, submitterPodTemplate nor submitterConfig"
    if "submitterPodTemplate" in spec:
        yield from _restricted(spec["submitterPodTemplate"])
    if spec.get("rayClusterSpec"):
        yield from _cluster(spec["rayClusterSpec"])
        if (spec["rayClusterSpec"].get("authOptions") or {}).get("enableK8sTokenAuth"):
            yield "authOptions.enableK8sTokenAuth: is not supported for jobs"


def _ends(spec: Manifest, *, selected: bool) -> Iterator[str]:
    """What becomes of a job's cluster."""
    shutdown = spec.get("shutdownAfterJobFinishes", False)
    ttl = spec.get("ttlSecondsAfterFinished", 0)
    rules = (spec.get("deletionStrategy") or {}).get("deletionRules")
    if spec.get("suspend") and (selected or not shutdown):
        yield "suspend: needs shutdownAfterJobFinishes and a cluster of the job's own"
    if ttl < 0 or (ttl and not shutdown):
        yield "ttlSecondsAfterFinished: needs shutdownAfterJobFinishes, and at least 0 seconds"
    if rules and shutdown:
        yield "deletionStrategy.deletionRules and shutdownAfterJobFinishes exclude each other"


def _cluster(spec: Manifest) -> Iterator[str]:
    head, workers = spec.get("headGroupSpec") or {}, spec.get("workerGroupSpecs") or []
    scales = spec.get("enableInTreeAutoscaling", False)
    second = scales and (spec.get("autoscalerOptions") or {}).get("version") == "v2"
    for group in (head, *workers):
        name = group.get("groupName", "head")
        template = group.get("template") or {}
        if not (template.get("spec") or {}).get("containers"):
            yield f"{name}: has no container"
            continue
        yield from _group(name, group)
        if second and template["spec"].get("restartPolicy", "Never") != "Never":
            yield f"{name}: restartPolicy: the autoscaler v2 needs Never, or none said"
        if scales and group.get("suspend"):
            yield f"{name}: suspend: cannot be under an autoscaler"
        yield from _restricted(template)
    if second and _environment(head, AUTOSCALER_VARIABLE):
        yield f"autoscalerOptions.version and {AUTOSCALER_VARIABLE} are both set"
    names = [group.get("groupName") for group in workers]
    if len(set(names)) < len(names):
        yield f"workerGroupSpecs: two groups have one name: {names}"
    yield from _authentication(spec)


def _group(name: str, group: Manifest) -> Iterator[str]:
    params = group.get("rayStartParams") or {}
    if group.get("resources") and any(params.get(key) for key in RESOURCE_PARAMS):
        yield f"{name}: resources are set both in rayStartParams and in resources"
    if "labels" in params:
        yield f"{name}: rayStartParams.labels: belongs into labels"
    if not all(isinstance(value, str) for value in params.values()):
        yield f"{name}: rayStartParams: all values are texts"
    least, most = group.get("minReplicas", 0), group.get("maxReplicas", 0)
    if name != "head" and not least <= group.get("replicas", least) <= most:
        yield f"{name}: replicas: expected minReplicas <= replicas <= maxReplicas"


def _authentication(spec: Manifest) -> Iterator[str]:
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield "authOptions.mode: expected token: an open Ray runs whatever anybody sends it"
        return
    version = re.match(r"(\d+)\.(\d+)", str(spec.get("rayVersion", "")))
    if not version or tuple(map(int, version.groups())) < MIN_TOKEN_VERSION:
        yield f"authOptions: needs a rayVersion of at least 2.52, found {spec.get('rayVersion')!r}"


def _environment(group: Manifest, name: str) -> bool:
    containers = ((group.get("template") or {}).get("spec") or {}).get("containers") or [{}]
    return any(variable.get("name") == name for variable in containers[0].get("env") or ())


def _restricted(template: Manifest) -> Iterator[str]:
    """What the Pod Security Standard `restricted` refuses."""
    spec = template["spec"]
    whole = spec.get("securityContext") or {}
    for key in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(key):
            yield f"{key}: is not allowed"
    for volume in spec.get("volumes") or ():
        if "hostPath" in volume:
            yield f"volume {volume['name']}: hostPath is not allowed"
    for container in (*spec["containers"], *(spec.get("initContainers") or ())):
        own, name = container.get("securityContext") or {}, container.get("name")
        if not own.get("runAsNonRoot", whole.get("runAsNonRoot")) or own.get("runAsUser", whole.get("runAsUser")) == 0:
            yield f"container {name}: runAsNonRoot: expected true, and a user other than 0"
        if own.get("seccompProfile", whole.get("seccompProfile", {})).get("type") not in (
            "RuntimeDefault",
            "Localhost",
        ):
            yield f"container {name}: seccompProfile: expected RuntimeDefault"
        if own.get("allowPrivilegeEscalation") is not False or own.get("privileged"):
            yield f"container {name}: allowPrivilegeEscalation: expected false"
        if (own.get("capabilities") or {}).get("drop") != ["ALL"]:
            yield f"container {name}: capabilities.drop: expected [ALL]"

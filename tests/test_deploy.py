"""deploy/: every ready file is what the package makes, is valid, agrees with the package, and does what it says.

Adversarially checked: each rule of KubeRay's operator is broken once, typing errors in manifests are found, nobody but
those named reaches Ray's pods, and the entrypoint of a job is run to the letter.
"""

import copy
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import tomllib
from datetime import date
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import typer.main
from deploying import CONFIG, DEPLOY, IMAGE, PLACES, ROOT, all_manifests, crd_schemas, example, manifests, ready, within
from running import write_config

from rsft_cluster.cli import app
from rsft_cluster.cluster.needs import needs
from rsft_cluster.config.file import load_config
from rsft_cluster.scheduling import kuberay, pods
from rsft_cluster.scheduling.kinds import KINDS, ON_KUBERNETES
from rsft_cluster.scheduling.order import Kubernetes
from rsft_cluster.scheduling.rules import broken

pytestmark = pytest.mark.skipif(not DEPLOY.is_dir(), reason="deploy/ is not beside the tests")

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"] if (ROOT / "pyproject.toml").exists() else {}
ALL = all_manifests() if DEPLOY.is_dir() else []
RAY_KINDS = ("RayCluster", "RayJob", "RayCronJob")


def several() -> list[tuple[str, dict[str, Any]]]:
    """What `rsft schedule` makes of the configs of jobs/configs and of orders of all kinds."""
    orders = [
        example(kubernetes=Kubernetes("registry.example/rsft:1", queue="nights", secret="store")),
        *(
            example(config=load_config(path), kubernetes=Kubernetes(IMAGE, mount="/"))
            for path in sorted((ROOT / "jobs" / "configs").glob("*.yaml"))
        ),
    ]
    return [
        (f"{order.run}-{kind}", inner)
        for order in orders
        for kind in ON_KUBERNETES
        for made in manifests(KINDS[kind](order)[0].text)
        for inner in within(made)
    ]


@cache
def everything() -> list[tuple[str, dict[str, Any]]]:
    return [*ALL, *several()]


def of_kinds(*kinds: str) -> list[tuple[str, dict[str, Any]]]:
    return [(name, made) for name, made in everything() if made["kind"] in kinds]


def clusters(made: dict[str, Any]) -> dict[str, Any]:
    """The spec of an object's Ray cluster."""
    spec = made["spec"]
    return spec.get("jobTemplate", spec).get("rayClusterSpec", spec)


def job_of(made: dict[str, Any]) -> dict[str, Any]:
    return made["spec"].get("jobTemplate", made["spec"])


# ---- what is ready is what is made -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PLACES)
def test_ready_files_are_what_the_package_makes(kind):
    for path, text in ready(kind).items():
        assert path.read_text() == text, f"{path.name}: run `python tests/deploying.py`"


def test_no_file_is_left_over():
    made = {path for kind in PLACES for path in ready(kind)}
    for folder in ("cron", "systemd", "airflow"):
        assert set((DEPLOY / folder).iterdir()) == {path for path in made if path.parent.name == folder}


def test_nothing_secret_stands_in_deploy():
    assert not [name for name, made in everything() if made["kind"] == "Secret"]
    for path in DEPLOY.rglob("*"):
        if path.is_file():
            assert not re.search(r"\b[0-9a-f]{40,}\b|AKIA[0-9A-Z]{16}|hf_[A-Za-z]{20,}", path.read_text()), path


# ---- schemas ------------------------------------------------------------------------------------------------------

NAME = {"type": "string", "minLength": 1, "maxLength": 253}
COUNT = {"type": "integer", "minimum": 0}
RESOURCES = {
    "type": "object", "additionalProperties": False,
    "properties": {k: {"type": "object", "additionalProperties": {"type": "string"}} for k in ("requests", "limits")},
}  # fmt: skip
CONTAINER = {
    "type": "object", "additionalProperties": False, "required": ["name", "image", "resources", "securityContext"],
    "properties": {
        "name": NAME, "image": NAME, "resources": RESOURCES, "securityContext": {"type": "object"},
        "command": {"type": "array", "items": {"type": "string"}},
        "env": {"type": "array", "items": {"type": "object", "required": ["name"]}},
        "envFrom": {"type": "array"}, "volumeMounts": {"type": "array"},
    },
}  # fmt: skip
POD = {
    "type": "object", "additionalProperties": False, "required": ["spec"],
    "properties": {
        "metadata": {"type": "object"},
        "spec": {
            "type": "object", "additionalProperties": False, "required": ["containers"],
            "properties": {
                "containers": {"type": "array", "minItems": 1, "items": CONTAINER},
                "securityContext": {"type": "object"}, "affinity": {"type": "object"}, "volumes": {"type": "array"},
                "tolerations": {"type": "array"}, "automountServiceAccountToken": {"type": "boolean"},
                "terminationGracePeriodSeconds": COUNT, "restartPolicy": {"enum": ["Never", "OnFailure"]},
                "serviceAccountName": NAME,
            },
        },
    },
}  # fmt: skip
PARAMS = {"type": "object", "additionalProperties": {"type": "string"}}
CLUSTER = {
    "type": "object", "additionalProperties": False, "required": ["headGroupSpec", "rayVersion", "authOptions"],
    "properties": {
        "rayVersion": {"type": "string"}, "enableInTreeAutoscaling": {"type": "boolean"},
        "authOptions": {"type": "object", "additionalProperties": False,
                        "properties": {"mode": {"enum": ["token"]}, "secretName": NAME}},
        "autoscalerOptions": {"type": "object"},
        "headGroupSpec": {"type": "object", "additionalProperties": False, "required": ["template"],
                          "properties": {"rayStartParams": PARAMS, "template": POD}},
        "workerGroupSpecs": {"type": "array", "items": {
            "type": "object", "additionalProperties": False,
            "required": ["groupName", "minReplicas", "maxReplicas", "template"],
            "properties": {"groupName": NAME, "replicas": COUNT, "minReplicas": COUNT, "maxReplicas": COUNT,
                           "rayStartParams": PARAMS, "template": POD}}},
    },
}  # fmt: skip
JOB = {
    "type": "object", "additionalProperties": False, "required": ["entrypoint", "rayClusterSpec"],
    "properties": {
        "entrypoint": {"type": "string"}, "submissionMode": {"type": "string"}, "rayClusterSpec": CLUSTER,
        "shutdownAfterJobFinishes": {"type": "boolean"}, "ttlSecondsAfterFinished": COUNT, "backoffLimit": COUNT,
        "activeDeadlineSeconds": COUNT, "preRunningDeadlineSeconds": COUNT, "submitterPodTemplate": POD,
    },
}  # fmt: skip
SMALL = {
    "RayCluster": CLUSTER,
    "RayJob": JOB,
    "RayCronJob": {
        "type": "object", "additionalProperties": False, "required": ["schedule", "jobTemplate"],
        "properties": {"schedule": NAME, "timeZone": NAME, "suspend": {"type": "boolean"}, "jobTemplate": JOB},
    },
    "CronJob": {
        "type": "object", "additionalProperties": False, "required": ["schedule", "jobTemplate"],
        "properties": {
            "schedule": NAME, "timeZone": NAME, "concurrencyPolicy": {"enum": ["Allow", "Forbid", "Replace"]},
            "startingDeadlineSeconds": COUNT, "successfulJobsHistoryLimit": COUNT, "failedJobsHistoryLimit": COUNT,
            "jobTemplate": {"type": "object", "additionalProperties": False, "properties": {"spec": {
                "type": "object", "additionalProperties": False, "required": ["template"],
                "properties": {"backoffLimit": COUNT, "activeDeadlineSeconds": COUNT,
                               "ttlSecondsAfterFinished": COUNT, "template": POD}}}},
        },
    },
}  # fmt: skip
"""Of each kind's spec, the fields that are used here."""


def test_every_object_fits_our_own_small_schema():
    checked = 0
    for name, made in everything():
        assert made["apiVersion"], name
        assert made["metadata"]["name"], name
        if made["kind"] in SMALL:
            jsonschema.validate(made["spec"], SMALL[made["kind"]])
            checked += 1
    assert checked >= len(SMALL) * 6


def crds() -> Path:
    return Path(os.environ.get("RSFT_KUBERAY_CRDS", ROOT.parent / "shared" / "data" / "kuberay_crds"))


@pytest.fixture(scope="module")
def operator_schemas():
    if not crds().is_dir():
        pytest.skip(f"no CRDs of KubeRay at {crds()} (set RSFT_KUBERAY_CRDS)")
    found = crd_schemas(crds())
    return {kind: jsonschema.Draft202012Validator(schema) for kind, schema in found.items()}


def test_every_object_of_ray_fits_the_operators_own_definitions(operator_schemas):
    for name, made in of_kinds(*RAY_KINDS):
        errors = [f"{e.json_path}: {e.message[:200]}" for e in operator_schemas[made["kind"]].iter_errors(made)]
        assert not errors, name
    assert {made["kind"] for _, made in ALL} >= set(RAY_KINDS)


def test_the_operators_definitions_find_slips(operator_schemas):
    good = kuberay.ray_job(example())
    for slip in (
        lambda job: job["spec"].update(backofLimit=1),
        lambda job: job["spec"].update(backoffLimit="1"),
        lambda job: job["spec"]["rayClusterSpec"]["authOptions"].update(mode="tokens"),
        lambda job: job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("groupName"),
        lambda job: job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"].update(tolerationz=[]),
    ):
        bad = copy.deepcopy(good)
        slip(bad)
        assert not operator_schemas["RayJob"].is_valid(bad)


def test_every_object_of_kubernetes_fits_its_own_schema():
    validation = pytest.importorskip("kubernetes_validate", reason="pip install kubernetes-validate: 111 MB of schemas")
    objects = [made for _, made in everything() if not made["apiVersion"].startswith("ray.io")]
    for made in objects:
        validation.validate(made, "1.32", strict=True)
    bad = copy.deepcopy(next(made for made in objects if made["kind"] == "CronJob"))
    bad["spec"]["concurencyPolicy"] = "Forbid"
    with pytest.raises(validation.ValidationError):
        validation.validate(bad, "1.32", strict=True)


# ---- the operator's rules -----------------------------------------------------------------------------------------


def test_no_object_breaks_a_rule():
    assert {made["kind"] for _, made in everything()} >= {"CronJob", *RAY_KINDS}
    assert not [(name, rule) for name, made in everything() for rule in broken(made)]


def cluster_of(made):
    return made["spec"]["rayClusterSpec"]


def head_of(made):
    return cluster_of(made)["headGroupSpec"]


def first_group(made):
    return cluster_of(made)["workerGroupSpecs"][0]


def head_container(made):
    return head_of(made)["template"]["spec"]["containers"][0]


JOB_SLIPS = {
    "has at most 47 characters": lambda j: j["metadata"].update(name="a" * 48),
    "a letter first": lambda j: j["metadata"].update(name="1-job"),
    "entrypoint: is missing": lambda j: j["spec"].pop("entrypoint"),
    "submissionMode: expected one of": lambda j: j["spec"].update(submissionMode="HttpMode"),
    "one of rayClusterSpec and clusterSelector": lambda j: j["spec"].pop("rayClusterSpec"),
    "suspend: needs shutdownAfterJobFinishes": lambda j: j["spec"].update(suspend=True, shutdownAfterJobFinishes=False),
    "ttlSecondsAfterFinished: needs": lambda j: j["spec"].update(shutdownAfterJobFinishes=False),
    "exclude each other": lambda j: j["spec"].update(deletionStrategy={"deletionRules": [{"policy": "DeleteSelf"}]}),
    "activeDeadlineSeconds: expected more than 0": lambda j: j["spec"].update(activeDeadlineSeconds=0),
    "preRunningDeadlineSeconds: expected more": lambda j: j["spec"].update(preRunningDeadlineSeconds=-1),
    "backoffLimit: expected at least 0": lambda j: j["spec"].update(backoffLimit=-1),
    "which clusterSelector has none of": lambda j: j["spec"].update(clusterSelector={"ray.io/cluster": "c"}),
    "which InteractiveMode has none of": lambda j: j["spec"].update(submissionMode="InteractiveMode"),
    "SidecarMode: goes with neither": lambda j: j["spec"].update(submissionMode="SidecarMode"),
    "is not supported for jobs": lambda j: cluster_of(j)["authOptions"].update(enableK8sTokenAuth=True),
    "needs Never, or none said": lambda j: first_group(j)["template"]["spec"].update(restartPolicy="Always"),
    "head: restartPolicy": lambda j: head_of(j)["template"]["spec"].update(restartPolicy="OnFailure"),
    "suspend: cannot be under an autoscaler": lambda j: first_group(j).update(suspend=True),
    "are both set": lambda j: head_container(j)["env"].append({"name": "RAY_enable_autoscaler_v2", "value": "1"}),
    "set both in rayStartParams and in resources": lambda j: first_group(j).update(resources={"CPU": "1"}),
    "belongs into labels": lambda j: first_group(j)["rayStartParams"].update(labels="a=b"),
    "all values are texts": lambda j: first_group(j)["rayStartParams"].update({"num-cpus": 4}),
    "minReplicas <= replicas <= maxReplicas": lambda j: first_group(j).update(replicas=99),
    "two groups have one name": lambda j: cluster_of(j)["workerGroupSpecs"].append(first_group(j)),
    "has no container": lambda j: first_group(j)["template"]["spec"].update(containers=[]),
    "an open Ray runs whatever": lambda j: cluster_of(j).pop("authOptions"),
    "expected token: an open": lambda j: cluster_of(j).update(authOptions={"mode": "disabled"}),
    "found None": lambda j: cluster_of(j).pop("rayVersion"),
    "at least 2.52, found '2.51.1'": lambda j: cluster_of(j).update(rayVersion="2.51.1"),
    "hostNetwork: is not allowed": lambda j: head_of(j)["template"]["spec"].update(hostNetwork=True),
    "hostPath is not allowed": lambda j: head_of(j)["template"]["spec"]["volumes"].append(
        {"name": "v", "hostPath": {}}
    ),
    "runAsNonRoot: expected true": lambda j: head_of(j)["template"]["spec"]["securityContext"].pop("runAsNonRoot"),
    "a user other than 0": lambda j: head_container(j)["securityContext"].update(runAsUser=0),
    "seccompProfile: expected": lambda j: j["spec"]["submitterPodTemplate"]["spec"]["securityContext"].pop(
        "seccompProfile"
    ),
    "allowPrivilegeEscalation: expected": lambda j: head_container(j)["securityContext"].update(privileged=True),
    "capabilities.drop: expected": lambda j: head_container(j)["securityContext"].pop("capabilities"),
}


@pytest.mark.parametrize("said", JOB_SLIPS)
def test_each_rule_of_a_job_is_found_broken(said):
    job = copy.deepcopy(kuberay.ray_job(example(), date(2026, 12, 1)))
    assert broken(job) == []
    JOB_SLIPS[said](job)
    assert any(said in rule for rule in broken(job)), broken(job)


CRON_SLIPS = {
    "RayCronJob has at most 36": ("RayCronJob", lambda c: c["metadata"].update(name="a" * 37)),
    "CronJob has at most 52": ("CronJob", lambda c: c["metadata"].update(name="a" * 53)),
    "schedule: expected five": ("CronJob", lambda c: c["spec"].update(schedule="0 2 * *")),
    "schedule: expected five cron fields": ("RayCronJob", lambda c: c["spec"].update(schedule="@daily at two")),
    "timeZone: nights are counted": ("RayCronJob", lambda c: c["spec"].pop("timeZone")),
    "counted in Etc/UTC, found 'Europe/Berlin'": ("CronJob", lambda c: c["spec"].update(timeZone="Europe/Berlin")),
    "concurrencyPolicy: expected Forbid": ("CronJob", lambda c: c["spec"].update(concurrencyPolicy="Allow")),
    "startingDeadlineSeconds: is missing": ("CronJob", lambda c: c["spec"].pop("startingDeadlineSeconds")),
    "the pods of a job need": (
        "CronJob", lambda c: c["spec"]["jobTemplate"]["spec"]["template"]["spec"].update(restartPolicy="Always"),
    ),
    "activeDeadlineSeconds": ("RayCronJob", lambda c: c["spec"]["jobTemplate"].update(activeDeadlineSeconds=0)),
}  # fmt: skip


@pytest.mark.parametrize("said", CRON_SLIPS)
def test_each_rule_of_a_cron_job_is_found_broken(said):
    kind, slip = CRON_SLIPS[said]
    made = copy.deepcopy(next(m for _, m in ALL if m["kind"] == kind))
    assert broken(made) == []
    slip(made)
    assert any(said in rule for rule in broken(made)), broken(made)


def test_a_cluster_has_the_longest_name():
    made = copy.deepcopy(next(m for _, m in ALL if m["kind"] == "RayCluster"))
    made["metadata"]["name"] = "a" * 53
    assert broken(made) == []
    made["metadata"]["name"] = "a" * 54
    assert "at most 53" in broken(made)[0]


# ---- each agrees with the package ---------------------------------------------------------------------------------


def pins() -> dict[str, str]:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def test_versions_are_those_of_the_package():
    assert pins()["ray"] == version("ray")
    assert f"rsft-cluster:{version('rsft-cluster')}" == IMAGE
    for name, made in ALL:
        if made["kind"] in RAY_KINDS:
            assert clusters(made)["rayVersion"] == pins()["ray"], name
    for path in DEPLOY.rglob("*.yaml"):
        assert set(re.findall(r"image: (\S+)", path.read_text())) <= {IMAGE}, path


def test_all_clusters_find_out_alike_that_a_node_is_gone():
    lines = [line for line in (DEPLOY / "ray.env").read_text().splitlines() if line and not line.startswith("#")]
    said = dict(line.split("=") for line in lines)
    assert said == pods.NODE_LOSS
    script = SCRIPTS[0].read_text()
    assert {name: re.search(rf"{name}=(\d+)", script)[1] for name in said} == said


def commands() -> dict[str, Any]:
    return typer.main.get_command(app.app).commands  # pyright: ignore[reportAttributeAccessIssue]


def test_entrypoints_are_commands_and_options_that_there_are():
    seen = set()
    for name, made in of_kinds("RayJob", "RayCronJob"):
        python, dash, module, command, config, *words = shlex.split(job_of(made)["entrypoint"])
        assert (python, dash, module, config) == ("python", "-m", "rsft_cluster", "/etc/rsft/config.json"), name
        known = {option for param in commands()[command].params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= known, name
        seen.add(command)
    assert seen == {"nightly"}
    starter = next(m for _, m in ALL if m["kind"] == "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    *_, module, template = starter["containers"][0]["command"]
    assert subprocess.run([sys.executable, "-c", f"import {module}"], cwd=ROOT).returncode == 0
    assert Path(template).name in next(m for _, m in ALL if m["kind"] == "ConfigMap")["data"]


def test_what_is_mounted_is_there():
    for name, made in of_kinds("RayJob"):
        maps = {m["metadata"]["name"] for other, m in everything() if other == name and m["kind"] == "ConfigMap"}
        for group in (clusters(made)["headGroupSpec"], *clusters(made)["workerGroupSpecs"]):
            volumes = {volume["name"]: volume for volume in group["template"]["spec"]["volumes"]}
            mounts = {m["name"]: m["mountPath"] for m in group["template"]["spec"]["containers"][0]["volumeMounts"]}
            assert set(mounts) == set(volumes)
            assert mounts["config"] == pods.CONFIG_FOLDER
            assert volumes["config"]["configMap"]["name"] in maps
    claim = next(m for _, m in ALL if m["kind"] == "PersistentVolumeClaim")
    assert (claim["metadata"]["name"], claim["metadata"]["namespace"]) == (Kubernetes("").claim, "rsft")


def test_a_cluster_at_its_widest_offers_what_its_config_needs():
    wanted = needs(load_config(CONFIG))
    for name, made in ALL:
        if made["kind"] not in RAY_KINDS:
            continue
        groups = clusters(made)["workerGroupSpecs"]
        for resource, least in (("num-cpus", wanted.num_cpus), ("num-gpus", wanted.num_gpus)):
            offered = sum(group["maxReplicas"] * int(group["rayStartParams"][resource]) for group in groups)
            assert offered >= least, name
        for group in groups:
            asked = group["template"]["spec"]["containers"][0]["resources"]["limits"]
            assert asked["cpu"] == group["rayStartParams"]["num-cpus"]
            assert asked.get("nvidia.com/gpu", "0") == group["rayStartParams"]["num-gpus"]


def test_only_samplers_and_scorers_may_be_taken_away():
    for name, made in ALL:
        if made["kind"] not in RAY_KINDS:
            continue
        spec = clusters(made)
        for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
            inner = group["template"]["spec"]
            spot = {t["key"] for t in inner.get("tolerations", ())} & set(pods.SPOT_LABELS)
            refused = "requiredDuringSchedulingIgnoredDuringExecution" in inner["affinity"]["nodeAffinity"]
            assert (bool(spot), refused) == (
                (True, False) if group.get("groupName") in ("samplers", "scorers") else (False, True)
            ), name
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_starter_may_create_and_look_at_jobs_and_nothing_else():
    found = {
        made["kind"]: made for _, made in ALL if made["kind"] in ("Role", "RoleBinding", "ServiceAccount", "CronJob")
    }
    assert found["Role"]["rules"] == [
        {"apiGroups": ["ray.io"], "resources": ["rayjobs"], "verbs": ["create", "get", "list"]}
    ]
    account = found["ServiceAccount"]["metadata"]["name"]
    assert found["RoleBinding"]["subjects"] == [{"kind": "ServiceAccount", "name": account, "namespace": "rsft"}]
    assert found["RoleBinding"]["roleRef"]["name"] == found["Role"]["metadata"]["name"]
    assert found["CronJob"]["spec"]["jobTemplate"]["spec"]["template"]["spec"]["serviceAccountName"] == account


def test_no_worker_has_a_token_of_kubernetes():
    for name, made in of_kinds(*RAY_KINDS):
        for group in clusters(made)["workerGroupSpecs"]:
            assert group["template"]["spec"]["automountServiceAccountToken"] is False, name


# ---- who speaks with whom -----------------------------------------------------------------------------------------

RAY = {"app.kubernetes.io/name": "rsft", "ray.io/is-ray-node": "yes"}
SUBMITTER = {"app.kubernetes.io/name": "rsft", "app.kubernetes.io/component": "submitter"}
STARTER = {"app.kubernetes.io/name": "rsft", "app.kubernetes.io/component": "starter"}
OPERATOR = {"app.kubernetes.io/name": "kuberay-operator"}
SPACES = {"rsft": "rsft", "kube-system": "kube-system", "kuberay-system": "kuberay-system", "other": "other"}


def policies() -> list[dict[str, Any]]:
    return [made["spec"] for _, made in ALL if made["kind"] == "NetworkPolicy"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return all(labels.get(key) == value for key, value in selector.get("matchLabels", {}).items())


def meets(peer: dict[str, Any], labels: dict[str, str], space: str) -> bool:
    own = "namespaceSelector" not in peer and space == "rsft"
    there = own or selects(
        peer.get("namespaceSelector", {"matchLabels": {"": ""}}), {"kubernetes.io/metadata.name": space}
    )
    return there and selects(peer.get("podSelector", {}), labels)


def admitted(direction: str, labels: dict[str, str], other: dict[str, str], space: str, port: int) -> bool:
    """Whether the policies let a pod of the namespace speak to, or hear from, another pod on a port."""
    word = {"Ingress": "from", "Egress": "to"}[direction]
    mine = [p for p in policies() if direction in p["policyTypes"] and selects(p["podSelector"], labels)]
    rules = [rule for policy in mine for rule in policy.get(direction.lower(), ())]
    return not mine or any(
        (word not in rule or any(meets(peer, other, space) for peer in rule[word]))
        and ("ports" not in rule or any(p["port"] == port for p in rule["ports"]))
        for rule in rules
    )


def reaches(source: dict[str, str], target: dict[str, str], port: int, *, source_space: str = "rsft") -> bool:
    out = source_space != "rsft" or admitted("Egress", source, target, "rsft", port)
    return out and admitted("Ingress", target, source, source_space, port)


def test_only_those_named_reach_rays_pods():
    assert reaches(RAY, RAY, 6379)
    assert reaches(RAY, RAY, 34567)
    assert reaches(SUBMITTER, RAY, 8265)
    assert reaches(OPERATOR, RAY, 8265, source_space="kuberay-system")
    assert not reaches(SUBMITTER, RAY, 6379)
    assert not reaches(OPERATOR, RAY, 6379, source_space="kuberay-system")
    assert not reaches(OPERATOR, RAY, 8265, source_space="other")
    assert not reaches(STARTER, RAY, 8265)
    assert not reaches({}, RAY, 8265)
    assert not reaches(RAY, RAY, 8265, source_space="other")
    assert not reaches({}, {}, 80)
    assert not reaches(RAY, SUBMITTER, 80)


def test_outwards_goes_what_a_run_needs():
    for labels in (RAY, SUBMITTER, STARTER):
        assert admitted("Egress", labels, {}, "kube-system", 53)
        assert admitted("Egress", labels, {}, "other", 443)
        assert not admitted("Egress", labels, {}, "other", 22)
    assert not admitted("Egress", {}, {}, "other", 443)


def test_the_policies_know_pods_by_labels_that_they_bear():
    assert next(m for _, m in ALL if m["kind"] == "Namespace")["metadata"]["labels"][
        "pod-security.kubernetes.io/enforce"] == "restricted"  # fmt: skip
    job = kuberay.ray_job(example())["spec"]
    assert job["submitterPodTemplate"]["metadata"]["labels"] == SUBMITTER
    for group in (job["rayClusterSpec"]["headGroupSpec"], *job["rayClusterSpec"]["workerGroupSpecs"]):
        # The operator adds ray.io/is-ray-node.
        assert group["template"]["metadata"]["labels"].items() <= RAY.items()


# ---- the image ----------------------------------------------------------------------------------------------------


def instructions() -> list[str]:
    text = (DEPLOY / "docker" / "Dockerfile").read_text()
    return [line for line in re.sub(r"\\\n\s*", "", text).splitlines() if line and not line.startswith("#")]


def stages() -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in instructions():
        if line.startswith("FROM"):
            found[line.split()[-1]] = []
        elif found:
            found[list(found)[-1]].append(line)
    return found


def test_the_images_are_pinned_and_run_as_nobody_special():
    assert set(stages()) >= {"cpu", "cuda"}
    for line in instructions():
        if "pip install" in line:
            assert "--constraint /build/constraints.txt" in line
        assert not re.search(r"\b(gcc|g\+\+|nvcc|build-essential|ninja|devel)\b", line), "nothing is compiled"
    for target in ("cpu", "cuda"):
        assert [line for line in stages()[target] if line.startswith("USER")] == [f"USER {pods.USER_ID}:{pods.USER_ID}"]
    python = next(line for line in instructions() if line.startswith("ARG PYTHON=")).removeprefix("ARG PYTHON=")
    assert tuple(map(int, python.split("."))) >= tuple(
        map(int, PROJECT["requires-python"].removeprefix(">=").split("."))
    )
    assert f"{sys.version_info[0]}.{sys.version_info[1]}" == python, "the constraints were made with this Python"


def test_an_index_beside_pypi_gives_torch_alone():
    """Of other packages it need not have the versions of the constraints."""
    others = [line for line in instructions() if "--index-url" in line]
    assert [line.split()[-1] for line in others] == ["torch"]
    assert all("--no-deps" in line for line in others)


def test_each_image_is_built_from_mirrors_where_they_are_named():
    """Of the arguments of the stage before it, a stage of older builders sees none."""
    for target in ("cpu", "cuda"):
        lines = stages()[target]
        first = next(number for number, line in enumerate(lines) if "pip install" in line)
        known = {line.split()[1].split("=")[0] for line in lines[:first] if line.startswith("ARG")}
        assert {"PIP_INDEX_URL", *re.findall(r"\$\{(\w+)\}", " ".join(lines))} == known, target


def test_every_file_of_the_package_is_installed():
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["rsft_cluster"]
    package = ROOT / "rsft_cluster"
    files = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".py"}
    assert {str(path) for path in files if "__pycache__" not in path.parts} == set(data)


def test_what_the_images_copy_is_there_and_not_ignored(tmp_path):
    ignore = (DEPLOY / "docker" / "Dockerfile.dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignore if line.startswith("!")]
    for line in instructions():
        if line.startswith("COPY"):
            for source in line.split()[1:-1]:
                assert (ROOT / source).exists(), source
                assert source in kept, source
    assert (ROOT / "rsft_cluster" / "scheduling" / "rsft.sbatch").resolve() == DEPLOY / "slurm" / "rsft.sbatch"


# ---- scripts ------------------------------------------------------------------------------------------------------

SCRIPTS = (DEPLOY / "slurm" / "rsft.sbatch", DEPLOY / "local" / "cluster.sh")


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_shell_scripts_are_sound(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    if shutil.which("shellcheck"):
        done = subprocess.run(["shellcheck", script], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    for line in script.read_text().splitlines():
        if not line.lstrip().startswith("#"):
            assert not re.search(r"\b(pkill|killall|ray stop)\b", line)


def slurm(tmp_path, **environment):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RSFT_", "SLURM_", "RAY_"))}
    return subprocess.run(["bash", SCRIPTS[0]], capture_output=True, text=True, env=env | environment, cwd=tmp_path)


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({}, "RSFT_CONFIG is not set"),
        ({"RSFT_CONFIG": "nowhere.yaml"}, "RSFT_CONFIG: nowhere.yaml cannot be read"),
        ({"RSFT_CONFIG": "/dev/null", "RSFT_VENV": "/nowhere"}, "RSFT_VENV: there is no /nowhere/bin/python3"),
        ({"RSFT_CONFIG": "/dev/null", "RSFT_SETUP": "/nowhere"}, "RSFT_SETUP: /nowhere failed"),
    ],
)
def test_a_batch_job_that_lacks_something_says_so_at_once(environment, said, tmp_path):
    done = slurm(tmp_path, **environment)
    assert done.returncode == 2
    assert said in done.stderr


# ---- on real clusters of this machine -----------------------------------------------------------------------------


def without_ray() -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "RSFT_", "SLURM_"))}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return env | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@pytest.mark.ray
def test_a_jobs_entrypoint_does_a_night_as_it_is_written(tmp_path):
    """In a mount namespace with the ConfigMap's files where pods see them; the rest is this machine."""
    unshare = ["unshare", "--user", "--map-root-user", "--mount"] if os.getuid() else ["unshare", "--mount"]
    if not shutil.which("unshare") or subprocess.run([*unshare, "true"], capture_output=True).returncode:
        pytest.skip("needs a mount namespace of its own")
    path = write_config(tmp_path, "night", sampling__generator="scripted")
    order = example(config=load_config(path), path=path, kubernetes=Kubernetes(IMAGE, mount=str(tmp_path)))
    (text,) = (file.text for file in KINDS["rayjob"](order))
    files, job = manifests(text)
    mounted = tmp_path / "etc"
    subprocess.run(["cp", "-a", "/etc/.", str(mounted)], stderr=subprocess.DEVNULL)
    (mounted / "rsft").mkdir()
    for name, content in files["data"].items():
        (mounted / "rsft" / name).write_text(content)
    script = f"mount --bind {shlex.quote(str(mounted))} /etc && {job['spec']['entrypoint']}"
    done = subprocess.run(
        [*unshare, "bash", "-c", script], env=without_ray(), capture_output=True, text=True, cwd=tmp_path, timeout=500
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "night"
    assert list(run.glob("nights/2026-12-01*")), sorted(run.rglob("*"))[:40]
    assert not Path("/etc/rsft").exists()


@pytest.mark.ray
def test_a_local_cluster_lasts_as_long_as_its_command_and_wants_its_token(tmp_path):
    shows = tmp_path / "shows.py"
    shows.write_text(
        "import json, os, ray\n"
        "ray.init(logging_level='ERROR')\n"
        "print(json.dumps({'nodes': len(ray.nodes()), 'address': os.environ['RAY_ADDRESS'],\n"
        "                  'dashboard': os.environ['RAY_API_SERVER_ADDRESS'], 'cpus': ray.cluster_resources()['CPU'],\n"
        "                  'mode': oct(os.stat(os.environ['RAY_AUTH_TOKEN_PATH']).st_mode)}))\n"
        "import subprocess, sys\n"
        "env = {k: v for k, v in os.environ.items() if not k.startswith('RAY_AUTH')}\n"
        "stranger = 'import ray; ray.init(address=sys.argv[1])'\n"
        "done = subprocess.run([sys.executable, '-c', 'import sys; ' + stranger, os.environ['RAY_ADDRESS']],\n"
        "                      env=env | {'RAY_AUTH_MODE': 'disabled'}, capture_output=True)\n"
        "raise SystemExit(7 if done.returncode else 8)\n"
    )
    command = [str(SCRIPTS[1]), "2", "1", "--", sys.executable, str(shows)]
    env = without_ray() | {"TMPDIR": "/tmp"}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 7, err
    said = json.loads(out.splitlines()[0])
    assert (said["nodes"], said["cpus"], said["mode"]) == (2, 2.0, "0o100600")
    folder = Path(re.search(r"token in (\S+)/token", err)[1])
    assert not folder.exists()
    for url in (said["address"], said["dashboard"].removeprefix("http://")):
        host, _, port = url.rpartition(":")
        with pytest.raises(OSError, match="refused"):
            socket.create_connection((host, int(port)), timeout=2)


STAND_INS = {
    "srun": """#!/bin/bash
out=/dev/stdout
while [[ $1 == --* ]]; do
    [[ $1 == --output=* ]] && out=${1#--output=}
    shift
done
SLURM_STEP_ID=$$
export SLURM_STEP_ID
echo "$SLURM_STEP_ID" >>"$SLURM_STAND_IN/steps"
setsid "$@" >>"$out" 2>&1 &
echo $! >"$SLURM_STAND_IN/$SLURM_STEP_ID"
wait $!
""",
    "scancel": """#!/bin/bash
kill -"${1#--signal=}" -- -"$(cat "$SLURM_STAND_IN/${2#*.}")"
""",
    "scontrol": """#!/bin/bash
echo "$*" >>"$SLURM_STAND_IN/scontrol"
[[ $1 == show ]] && printf 'one\\ntwo\\n'
exit 0
""",
}
"""Slurm's commands on this machine alone: steps are process groups. What the script does with them is real."""


@pytest.fixture
def allocation(tmp_path):
    """Begin the batch script as Slurm would on two nodes, both of them this machine."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, script in STAND_INS.items():
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)

    def begin(config: Path, **more: str) -> subprocess.Popen:
        base = without_ray()
        env = base | {
            "PATH": f"{folder}:{base['PATH']}", "SLURM_STAND_IN": str(folder), "SLURM_JOB_ID": "7",
            "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "one,two", "SLURM_JOB_CPUS_PER_NODE": "2(x2)",
            "RSFT_HEAD_IP": "127.0.0.1", "RSFT_VENV": str(Path(sys.executable).parent.parent),
            "RSFT_CONFIG": str(config), **more,
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", SCRIPTS[0]], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )

    yield begin
    for step in folder.glob("[0-9]*"):
        for process in psutil.process_iter():
            try:
                if os.getpgid(process.pid) == int(step.read_text()):
                    process.kill()
            except (psutil.NoSuchProcess, ProcessLookupError):
                continue


@pytest.mark.ray
def test_a_batch_job_ends_with_its_drivers_exit_code(allocation, tmp_path):
    never = {"use": "length", "params": {"min": 1000, "unit": "tokens"}}
    config = write_config(tmp_path, "batch", sampling__generator="scripted", scoring__constraints=[never])
    done = allocation(config, RSFT_COMMAND="sample", RSFT_OPTIONS="--set 'seed=4' --quiet")
    _, err = done.communicate(timeout=400)
    assert "2 nodes joined" in err
    # Nothing is accepted: the driver says so with an exit code of its own.
    assert f"the driver ended with exit code {done.returncode}" in err
    assert done.returncode == 65, err
    assert json.loads((tmp_path / "runs" / "batch" / "config.json").read_text())["seed"] == 4
    assert "requeue" not in (tmp_path / "slurm" / "scontrol").read_text()
    assert not (tmp_path / "rsft-7.0" / "token").exists()


@pytest.mark.ray
def test_a_batch_job_whose_time_runs_out_goes_back_into_the_queue(allocation, tmp_path):
    slow = {"use": "scripted", "params": {"delay_s": 1.0}}
    config = write_config(tmp_path, "cut", sampling__generator=slow)
    job = allocation(config, RSFT_COMMAND="sample")
    attempts = tmp_path / "runs" / "cut" / "rounds"
    deadline = time.monotonic() + 300
    while not any(attempts.glob("*/**/commits/*")):
        assert time.monotonic() < deadline, "nothing was ever sampled"
        assert job.poll() is None, job.communicate()[1]
        time.sleep(0.2)
    job.terminate()
    _, err = job.communicate(timeout=120)
    assert "the driver is asked to stop" in err
    assert job.returncode not in (0, 2), err
    assert "requeue 7" in (tmp_path / "slurm" / "scontrol").read_text().splitlines()

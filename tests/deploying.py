"""What deploy/ holds ready, and how it is made anew after a change of scheduling: `python tests/deploying.py`.

The examples are what `rsft schedule` makes of deploy/kuberay/night.yaml on a machine with all of it below /srv/rsft.
"""

import json
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import yaml

from rsft_cluster.config.file import load_config
from rsft_cluster.scheduling.kinds import KINDS
from rsft_cluster.scheduling.order import Kubernetes, Order

ROOT = Path(__file__).resolve().parent.parent
DEPLOY = ROOT / "deploy"
CONFIG = DEPLOY / "kuberay" / "night.yaml"
IMAGE = "rsft-cluster:0.1.0"
PLACES = {
    "cronjob": "kuberay", "kuberay": "kuberay", "rayjob": "kuberay", "raycluster": "kuberay", "cron": "cron",
    "systemd": "systemd", "airflow": "airflow",
}  # fmt: skip
"""Which folder of deploy/ holds the files of a kind. Slurm's is no example but the script that all jobs are made of."""


def example(**changes: Any) -> Order:
    """The order that the examples are made of."""
    order = {
        "config": load_config(CONFIG), "path": Path("/srv/rsft/night.yaml"), "words": (),
        "python": "/srv/rsft/.venv/bin/python", "folder": Path("/srv/rsft"), "kubernetes": Kubernetes(IMAGE),
        "night": date(2026, 12, 1),
    }  # fmt: skip
    return Order(**(order | changes))


def ready(kind: str) -> dict[Path, str]:
    """The example's files of a kind, by where they lie."""
    mark = "# Made of night.yaml by `rsft schedule`; see deploy/README.md.\n"
    return {
        DEPLOY / PLACES[kind] / file.name: (mark if file.name.endswith(".yaml") else "") + file.text
        for file in KINDS[kind](example())
    }


def manifests(text: str) -> list[dict[str, Any]]:
    """The objects of a YAML file."""
    return [made for made in yaml.safe_load_all(text) if made is not None]


def within(made: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """An object, and those that it carries as text: the template that a CronJob's pod creates."""
    yield made
    for name, text in (made.get("data") or {}).items():
        if made["kind"] == "ConfigMap" and name == "rayjob.json":
            yield json.loads(text)


def all_manifests() -> list[tuple[str, dict[str, Any]]]:
    """Every object of deploy/, with the file that it stands in."""
    return [
        (path.name, inner)
        for path in sorted(DEPLOY.rglob("*.yaml"))
        if path != CONFIG
        for made in manifests(path.read_text(encoding="utf-8"))
        for inner in within(made)
    ]


def strict_schema(node: dict[str, Any]) -> dict[str, Any]:
    """A CRD's schema as JSON Schema that refuses unknown fields, as the server does with strict validation."""
    made: dict[str, Any] = {k: v for k, v in node.items() if k in ("enum", "minimum", "maximum", "pattern", "minItems")}
    if node.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if "type" in node:
        made["type"] = [node["type"], "null"] if node.get("nullable") else node["type"]
    if "properties" in node:
        made["properties"] = {name: strict_schema(child) for name, child in node["properties"].items()}
        if not node.get("x-kubernetes-preserve-unknown-fields"):
            made["additionalProperties"] = False
        # The server fills in defaults before it validates.
        defaulted = {name for name, child in node["properties"].items() if "default" in child}
        made["required"] = sorted(set(node.get("required", ())) - defaulted)
    elif isinstance(node.get("additionalProperties"), dict):
        made["additionalProperties"] = strict_schema(node["additionalProperties"])
    if isinstance(node.get("items"), dict):
        made["items"] = strict_schema(node["items"])
    return made


def crd_schemas(folder: Path) -> dict[str, dict[str, Any]]:
    """Strict schemas of the kinds that a folder of CRDs defines."""
    found = {}
    for path in sorted(folder.glob("*.yaml")):
        crd = yaml.load(path.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        version = next(v for v in crd["spec"]["versions"] if v["name"] == "v1")
        schema = strict_schema(version["schema"]["openAPIV3Schema"])
        # The server knows better than the CRD what metadata is.
        schema["properties"]["metadata"] = {"type": "object"}
        found[crd["spec"]["names"]["kind"]] = schema
    return found


if __name__ == "__main__":
    for kind in PLACES:
        for path, text in ready(kind).items():
            path.write_text(text, encoding="utf-8")

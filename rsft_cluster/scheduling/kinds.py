"""Every kind of schedule by its name, and the ready files that it makes of a config."""

from collections.abc import Callable

import yaml

from rsft_cluster.errors import ConfigError
from rsft_cluster.scheduling import airflow, cron, kuberay, slurm, systemd
from rsft_cluster.scheduling.cronjob import cron_job
from rsft_cluster.scheduling.order import File, Order
from rsft_cluster.scheduling.pods import Manifest
from rsft_cluster.scheduling.rules import broken

TOKEN_SECRET = "rsft-token"  # noqa: S105 the name of a Secret


def kubernetes(order: Order, kind: str, objects: list[Manifest]) -> list[File]:
    """Return objects as one file; raises ConfigError where Kubernetes would take them and nothing would come of it."""
    kuberay.check_paths(order)
    violations = [f"{made['kind']}: {rule}" for made in objects for rule in broken(made)]
    if violations:
        raise ConfigError(f"{order.path}: --kind {kind}: {violations[0]}")
    return [File(f"rsft-{order.run}-{kind}.yaml", written(objects))]


def written(objects: list[Manifest]) -> str:
    """Return objects as YAML that people can read: texts of several lines stand as they are."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=120, allow_unicode=True)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _cron_job(order: Order) -> list[File]:
    return kubernetes(order, "cronjob", cron_job(order))


def _ray_cron_job(order: Order) -> list[File]:
    return kubernetes(order, "kuberay", [kuberay.config_map(order), kuberay.ray_cron_job(order)])


def _ray_job(order: Order) -> list[File]:
    return kubernetes(order, "rayjob", [kuberay.config_map(order), kuberay.ray_job(order, order.night)])


def _ray_cluster(order: Order) -> list[File]:
    return kubernetes(order, "raycluster", [kuberay.ray_cluster(order, TOKEN_SECRET)])


KINDS: dict[str, Callable[[Order], list[File]]] = {
    "cronjob": _cron_job,
    "kuberay": _ray_cron_job,
    "rayjob": _ray_job,
    "raycluster": _ray_cluster,
    "slurm": slurm.batch,
    "cron": cron.crontab,
    "systemd": systemd.units,
    "airflow": airflow.dag,
}
ON_KUBERNETES = ("cronjob", "kuberay", "rayjob", "raycluster")

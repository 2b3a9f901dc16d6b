"""`rsft schedule`: the ready files that start a config's nights, for cron, systemd, Slurm, Kubernetes or Airflow."""

import sys
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer

from rsft_cluster.cli.options import ConfigPath, Overrides, TrustRemoteCode, load, night_of


class Kind(StrEnum):
    """What starts the nights."""

    cronjob = "cronjob"
    kuberay = "kuberay"
    rayjob = "rayjob"
    raycluster = "raycluster"
    slurm = "slurm"
    cron = "cron"
    systemd = "systemd"
    airflow = "airflow"


KIND_HELP = (
    "cronjob: a Kubernetes CronJob that creates a RayJob a night. kuberay: a RayCronJob (alpha). rayjob: this night's "
    "RayJob alone. raycluster: a standing cluster. slurm: a batch script and the cron line that submits it."
)


def schedule(
    config: ConfigPath,
    kind: Annotated[Kind, typer.Option(help=KIND_HELP)],
    set_: Overrides = None,
    trust_remote_code: TrustRemoteCode = False,
    out: Annotated[Path | None, typer.Option(help="Write the files there.", metavar="FOLDER")] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Install them, by this machine's own tools.")] = False,
    *,
    night: Annotated[
        str | None, typer.Option("--date", help="rayjob: the night, UTC; else tonight's.", metavar="DATE")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Kubernetes: the image, made of deploy/docker.")] = None,
    namespace: Annotated[str, typer.Option(help="Kubernetes: the namespace.")] = "rsft",
    claim: Annotated[str, typer.Option(help="Kubernetes: the volume claim with the config's local paths.")] = "rsft",
    mount: Annotated[str, typer.Option(help="Kubernetes: where pods mount it.")] = "/shared",
    secret: Annotated[str | None, typer.Option(help="Kubernetes: a Secret for the pods' environment.")] = None,
    queue: Annotated[str | None, typer.Option(help="Kubernetes: a Kueue LocalQueue to wait in.")] = None,
) -> None:
    """Print the files that start `rsft nightly` at the times of `nightly:`; all of them UTC."""
    from rsft_cluster.checks.check import check_plugins
    from rsft_cluster.scheduling.installing import install, write
    from rsft_cluster.scheduling.kinds import KINDS
    from rsft_cluster.scheduling.order import Kubernetes, Order

    loaded = load(config, set_)
    check_plugins(loaded)
    words = [word for override in set_ or () for word in ("--set", override)]
    order = Order(
        config=loaded,
        path=config.resolve(),
        words=(*words, *(["--trust-remote-code"] if trust_remote_code else [])),
        python=sys.executable,
        folder=Path.cwd(),
        night=night_of(loaded.nightly, night),
        kubernetes=Kubernetes(
            image or f"rsft-cluster:{version('rsft-cluster')}", namespace, claim, mount, secret, queue
        ),
    )  # fmt: skip
    files = KINDS[kind](order)
    if out is not None:
        write(out, files)
        for file in files:
            typer.echo(str(out / file.name))
    if apply:
        typer.echo(install(order, kind, files), err=True)
    if out is None and not apply:
        for file in files:
            header = f"# ---- {file.name}\n" if len(files) > 1 else ""
            typer.echo(header + file.text, nl=False)


COMMANDS = (schedule,)

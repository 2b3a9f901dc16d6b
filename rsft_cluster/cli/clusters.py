"""Commands about a cluster: send a run there as a job, and look after it."""

import json
import sys
from typing import Annotated

import typer

from rsft_cluster.cli.options import Address, AsJson, ConfigPath, Night, Overrides, TrustRemoteCode, load, night_of
from rsft_cluster.errors import ConfigError

DEFAULT_ADDRESS = "http://127.0.0.1:8265"
Job = Annotated[str, typer.Argument(help="A job's id, as `rsft submit` printed it.", metavar="JOB")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Print the job's output until it ends.")]


def submit(
    config: ConfigPath, set_: Overrides = None, address: Address = DEFAULT_ADDRESS, follow: Follow = False,
    trust_remote_code: TrustRemoteCode = False,
    nightly: Annotated[bool, typer.Option("--nightly", help="Send tonight's `rsft nightly`, not the run.")] = False,
    night: Night = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:  # fmt: skip
    """Send a run, or a night of it, to a Ray cluster as a job. The same one is never sent twice at once."""
    from rsft_cluster.checks.check import check_plugins
    from rsft_cluster.cluster import jobs

    loaded = load(config, set_)
    if night is not None and not nightly:
        raise ConfigError("--date names a night: give --nightly with it")
    tonight = night_of(loaded.nightly, night) if nightly else None
    # Files may exist only on the cluster; the run itself checks them when it begins.
    check_plugins(loaded)

    with jobs.packed(loaded, config, night=tonight, trust_remote_code=trust_remote_code) as submission:
        if dry_run:
            sent = {
                "address": address,
                **submission.request(),
                "files": submission.files(),
                "config": loaded.model_dump(mode="json"),
            }
            typer.echo(json.dumps(sent, indent=1, ensure_ascii=False))
            return
        job = jobs.submit(submission, address)
    typer.echo(job)
    if follow:
        raise typer.Exit(jobs.follow(address, job, sys.stderr.write))


def jobs(address: Address = DEFAULT_ADDRESS, as_json_: AsJson = False) -> None:
    """List a cluster's runs."""
    from rsft_cluster.cluster.jobs import describe

    infos = describe(address)
    if as_json_:
        typer.echo(json.dumps(infos))
        return
    for info in infos:
        typer.echo(f"{info['job']:<40} {info['status']:<10} {info['message'] or ''}")


def logs(job: Job, address: Address = DEFAULT_ADDRESS, follow: Follow = False) -> None:
    """Print what a job has printed."""
    from rsft_cluster.cluster import jobs

    if follow:
        raise typer.Exit(jobs.follow(address, job, sys.stdout.write))
    typer.echo(jobs.logs(address, job), nl=False)


def stop(job: Job, address: Address = DEFAULT_ADDRESS) -> None:
    """Stop a job. Submitting the same run again goes on where it stopped."""
    from rsft_cluster.cluster import jobs

    typer.echo("stopping" if jobs.stop(address, job) else "was not running", err=True)


COMMANDS = (submit, jobs, logs, stop)

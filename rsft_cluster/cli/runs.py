"""Commands about runs: check, do, look at, roll back."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rsft_cluster.cli.options import (
    Address,
    AsJson,
    ConfigPath,
    Overrides,
    Quiet,
    RunUri,
    TrustRemoteCode,
    count,
    find_run,
    import_paths,
    load,
    warn,
)
from rsft_cluster.config import json_schema
from rsft_cluster.report.console import results
from rsft_cluster.report.fairness_tables import fairness_table
from rsft_cluster.report.findings import show_finding
from rsft_cluster.report.nights import nights_table
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.report.tables import as_json, rounds_table

DONE = {"start": "begun with", "promote": "promoted", "keep": "kept", "rollback": "rolled back"}
"""The words for the promotion log's actions."""


def check(
    config: Annotated[Path, typer.Argument(help="A run's config, or a model's folder.", metavar="CONFIG")],
    set_: Overrides = None,
    as_json_: AsJson = False,
    address: Annotated[
        str | None, typer.Option(help="A Ray cluster that is to serve it: `auto`, or host:port of its head.")
    ] = None,
) -> None:
    """Validate a config, bind its plug-ins, and say what the run will ask for. Asks no cluster but one at --address.

    Given a model's folder: load it, and say whether the engine decodes it, and how fast.
    """
    from rsft_cluster.checks.check import check as run_checks
    from rsft_cluster.checks.model import check_model
    from rsft_cluster.policies.files import is_model_folder

    if is_model_folder(config):
        findings = check_model(config)
    else:
        loaded, nodes = load(config, set_), None
        if address is not None:
            from rsft_cluster.cluster.connection import nodes_at

            nodes = nodes_at(address)
        findings = run_checks(loaded, nodes)
    if as_json_:
        typer.echo(json.dumps([asdict(f) for f in findings], ensure_ascii=False))
        return
    console = results()
    for finding in findings:
        show_finding(console, finding.about, finding.says, warns=finding.warns)
    num_warnings = sum(f.warns for f in findings)
    typer.echo(f"{config}: fine" + (f", with {num_warnings} warnings" if num_warnings else ""), err=True)


def schema() -> None:
    """Print the JSON Schema of a config, for editors."""
    typer.echo(json_schema())


def run(
    config: ConfigPath, set_: Overrides = None, quiet: Quiet = False, as_json_: AsJson = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:  # fmt: skip
    """Do every round of a config, going on where an earlier invocation stopped."""
    _advance(config, set_, "promote", quiet=quiet, as_json_=as_json_, trust_remote_code=trust_remote_code)


def sample(
    config: ConfigPath, set_: Overrides = None, quiet: Quiet = False, trust_remote_code: TrustRemoteCode = False
) -> None:
    """Do the first unfinished round up to accepted samples."""
    _advance(config, set_, "sample", quiet=quiet, trust_remote_code=trust_remote_code)


def train(
    config: ConfigPath, set_: Overrides = None, quiet: Quiet = False, trust_remote_code: TrustRemoteCode = False
) -> None:
    """Do the first unfinished round up to the trained challenger."""
    _advance(config, set_, "train", quiet=quiet, trust_remote_code=trust_remote_code)


def evaluate(
    config: ConfigPath, set_: Overrides = None, quiet: Quiet = False, trust_remote_code: TrustRemoteCode = False
) -> None:
    """Do the first unfinished round up to the challenger's evaluation."""
    _advance(config, set_, "evaluate", quiet=quiet, trust_remote_code=trust_remote_code)


def rollback(
    run_uri: RunUri,
    to: Annotated[str | None, typer.Option(help="A policy, like round-0002; else the one before.")] = None,
) -> None:
    """Make an earlier policy current again. The log keeps both."""
    from rsft_cluster.runs.lease import hold
    from rsft_cluster.runs.promotions import PromotionLog

    store = find_run(run_uri)
    with hold(store) as lease:
        entry = PromotionLog(store).rollback(lease, to=to)
    typer.echo(f"{entry.policy.name} is current: {entry.policy.uri}")


def status(
    target: Annotated[str, typer.Argument(help="A run's folder, or with --job a job's id.", metavar="RUN")],
    as_json_: AsJson = False,
    job: Annotated[bool, typer.Option("--job", help="RUN is the id of a job on a cluster.")] = False,
    address: Address = "http://127.0.0.1:8265",
) -> None:
    """Show a run's rounds or nights, whether it is running, and which policy is current."""
    if job:
        from rsft_cluster.cluster.jobs import describe

        typer.echo(json.dumps(describe(address, target)[0], indent=1))
        return
    from rsft_cluster.nightly.records import records
    from rsft_cluster.runs.lease import holder
    from rsft_cluster.runs.promotions import PromotionLog
    from rsft_cluster.runs.summary import summaries

    store = find_run(target)
    rounds, current, running = summaries(store), PromotionLog(store).current(), holder(store)
    nights = records(store)
    if as_json_:
        policy = current.policy.model_dump() if current else None
        figures = {"running": running, "current": policy, "rounds": as_json(rounds)}
        typer.echo(json.dumps(figures | {"nights": [n.model_dump(mode="json") for n in nights]}, ensure_ascii=False))
        return
    console = results()
    if nights:
        console.print(nights_table(nights, title=target))
    elif rounds:
        console.print(rounds_table(rounds, title=target))
    else:
        console.print(f"{target}: no round has begun", markup=False)
    for number, report in [(r.round, r.fairness) for r in rounds if r.fairness][-1:]:
        console.print(fairness_table(report, decoding="sampled", title=f"fairness of the policy of round {number}"))
    if current:
        policy = f"{current.policy.name} ({DONE[current.action]}: {current.reason})"
        console.print(f"current policy: {policy}", markup=False)
        console.print(f"  {current.policy.uri}", markup=False, soft_wrap=True)
    console.print(f"running: {running or 'no'}", markup=False)


def inspect(
    run_uri: RunUri,
    number: Annotated[
        int | None, typer.Option("--round", help="Round; by default the newest.", parser=count, metavar="NUMBER")
    ] = None,
    evaluation: Annotated[bool, typer.Option("--evaluation", help="Look at the evaluation's candidates.")] = False,
    state: Annotated[
        str | None, typer.Option(help="accepted, rejected, passed, failed, error or quarantined.")
    ] = None,
    constraint: Annotated[str | None, typer.Option(help="Only candidates that failed this constraint.")] = None,
    prompt: Annotated[str | None, typer.Option(help="Beginning of a prompt id, or a piece of its text.")] = None,
    limit: Annotated[int, typer.Option(help="Candidates shown; 0 for all.", parser=count, metavar="NUMBER")] = 10,
    as_json_: AsJson = False,
) -> None:  # fmt: skip
    """Look at candidates with their verdicts and the reason of every decision."""
    from itertools import islice

    from rsft_cluster.report.candidates import json_line, show_candidate
    from rsft_cluster.review.inspection import Filter
    from rsft_cluster.review.inspection import inspect as find
    from rsft_cluster.runs.summary import summaries

    criteria = Filter(state, constraint, prompt)
    store = find_run(run_uri)
    newest = max((r.round for r in summaries(store)), default=0)
    rows = find(store, newest if number is None else number, criteria, evaluation=evaluation)
    console = results()
    before = None
    for row in islice(rows, limit or None):
        if as_json_:
            typer.echo(json_line(row))
        else:
            show_candidate(console, row, with_prompt=row["prompt_id"] != before)
        before = row["prompt_id"]
    if before is None:
        typer.echo("no candidate matches", err=True)


def _advance(
    config: ConfigPath, overrides: list[str] | None, until: str, *, quiet: bool, trust_remote_code: bool,
    as_json_: bool = False,
) -> None:  # fmt: skip
    from rsft_cluster.checks.check import check as run_checks

    loaded, reporter = load(config, overrides), Reporter(quiet=quiet)
    # Before the run is made: a config that cannot work must not become what the run was begun with.
    warn(run_checks(loaded), reporter)
    from rsft_cluster.rounds.loop import run_rounds

    rounds = run_rounds(
        loaded, reporter, until=until, trust_remote_code=trust_remote_code,
        import_paths=import_paths(config),
    )  # fmt: skip
    if as_json_:
        typer.echo(json.dumps(as_json(rounds), ensure_ascii=False))
    else:
        results().print(rounds_table(rounds, title=f"{loaded.store}/{loaded.run}"))


COMMANDS = (check, schema, run, sample, train, evaluate, rollback, status, inspect)

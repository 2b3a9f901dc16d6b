"""Commands about decisions: why a candidate was kept or not, and whether the audit trail holds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from rsft_cluster.cli.options import AsJson, RunUri, count, find_run
from rsft_cluster.errors import AuditError
from rsft_cluster.report.console import results

audit = typer.Typer(no_args_is_help=True, help="The audit trail: a line a candidate, hash-chained.")

Round = Annotated[
    int | None, typer.Option("--round", help="Only this round; all by default.", parser=count, metavar="NUMBER")
]


@audit.command()
def export(run_uri: RunUri, round_: Round = None) -> None:
    """Print the audit trail, one JSON line a candidate."""
    from rsft_cluster.review.audit.chain import to_json
    from rsft_cluster.review.audit.lines import exported_lines
    from rsft_cluster.store.layout import RunLayout

    store = find_run(run_uri)
    for number in RunLayout(store).sealed_rounds() if round_ is None else [round_]:
        for line in exported_lines(store, number):
            typer.echo(to_json(line))


@audit.command()
def verify(
    target: Annotated[str, typer.Argument(help="A run's folder, or a file of exported lines.", metavar="RUN")],
    as_json_: AsJson = False,
) -> None:
    """Replay every decision from its line, and check the chain and, of a run, its files. Exit code 1 if not."""
    from rsft_cluster.review.audit.verify import verify_lines, verify_run

    if Path(target).is_file():
        with Path(target).open(encoding="utf-8") as lines:
            result = verify_lines(lines, source=target)
    else:
        result = verify_run(find_run(target))
    if as_json_:
        typer.echo(json.dumps(asdict(result) | {"holds": result.holds}, ensure_ascii=False))
    else:
        for problem in result.problems:
            typer.echo(problem)
        typer.echo(
            f"{result.num_replayed:,} decisions of {result.num_rounds} rounds replayed from "
            f"{result.num_lines:,} lines: " + ("all hold" if result.holds else f"{result.num_problems:,} problems")
        )
    if not result.holds:
        raise AuditError(f"{target}: the audit trail does not hold")


def explain(
    run_uri: RunUri,
    candidate: Annotated[str, typer.Argument(help="A candidate's id, or its beginning.", metavar="CANDIDATE")],
    as_json_: AsJson = False,
) -> None:
    """Say in words why a candidate was kept or not."""
    from rsft_cluster.report.explanation import show_explanation
    from rsft_cluster.review.audit.chain import to_json
    from rsft_cluster.review.audit.explanation import explained, find_line

    store = find_run(run_uri)
    line, messages = find_line(store, candidate)
    if as_json_:
        typer.echo(to_json(line))
        return
    show_explanation(results(), line, messages, explained(line))


COMMANDS = (explain,)

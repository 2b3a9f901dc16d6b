"""Commands that look again at a sealed round: decide, judge, forecast; nothing is sampled, and no seal is touched."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsft_cluster.cli.options import AsJson, RunUri, count, find_run, load_again, parameters
from rsft_cluster.report import results
from rsft_cluster.report.decisions import show_decision

if TYPE_CHECKING:
    from rsft_cluster.again.stored import StoredRound

Round = Annotated[
    int | None, typer.Option("--round", help="Round; by default the newest sealed one.", parser=count, metavar="NUMBER")
]
ScoringName = Annotated[
    str, typer.Option("--scoring", help="Scores of `rsft score --name`; by default those sealed with the round.")
]
Rule = Annotated[str | None, typer.Option(help="Acceptance rule; by default the run's.")]
Param = Annotated[list[str] | None, typer.Option("--param", help="Parameter of the rule: beta=0.2. May be repeated.")]
AcceptanceSet = Annotated[
    list[str] | None, typer.Option("--set", help="Another setting: acceptance.dedupe=false. May be repeated.")
]


def accept(
    run_uri: RunUri, *, round_: Round = None, scoring: ScoringName = "sealed", rule: Rule = None, param: Param = None,
    max_per_prompt: Annotated[
        int | None, typer.Option(help="Keep at most so many a prompt.", parser=count, metavar="NUMBER")
    ] = None,
    set_: AcceptanceSet = None,
    acceptance: Annotated[Path | None, typer.Option(help="A YAML file with an `acceptance:` section.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the decision; by default the rule and a digest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    as_json_: AsJson = False,
) -> None:  # fmt: skip
    """Decide again on stored scores, beside the sealed decision."""
    from rsft_cluster.again.accepting import accept_again, decide_again
    from rsft_cluster.again.deciding import way_of

    stored = _stored(run_uri, round_)
    said = {} if max_per_prompt is None else {"acceptance.max_per_prompt": max_per_prompt}
    config = load_again(
        stored.config, ("acceptance",), stored.number, path=acceptance, rule=rule, params=parameters(param),
        said=said, overrides=set_,
    )  # fmt: skip
    how = way_of(stored, config)
    if dry_run:
        found, told = decide_again(stored, how, scoring), "nothing is written"
    else:
        found = accept_again(stored, how, scoring, name)
        told = f"decision {found.name}"
    if as_json_:
        figures = {"funnel": found.funnel.model_dump(), "change": found.change.model_dump()}
        more = {"reasons": dict(found.reasons), "chosen": dict(found.chosen), "decision": None if dry_run else told}
        typer.echo(json.dumps({**figures, **more}, ensure_ascii=False))
        return
    title = f"{run_uri}, round {stored.number}, scoring {scoring}: {told}"
    show_decision(results(), title, found.funnel, found.reasons, found.change)


def export(
    run_uri: RunUri,
    to: Annotated[Path, typer.Option(help="The file to write: .jsonl or .parquet.")],
    round_: Round = None,
    decision: Annotated[str, typer.Option(help="A decision of `rsft accept`; by default the sealed one.")] = "sealed",
) -> None:
    """Write what a decision accepted as worked examples (.jsonl), or with token ids (.parquet)."""
    from rsft_cluster.again.export import export as write

    num_rows = write(_stored(run_uri, round_), to, decision)
    typer.echo(f"{to}: {num_rows:,} examples", err=True)


def _stored(run_uri: str, number: int | None) -> "StoredRound":
    from rsft_cluster.again.stored import stored_round

    return stored_round(find_run(run_uri), number)


COMMANDS = (accept, export)

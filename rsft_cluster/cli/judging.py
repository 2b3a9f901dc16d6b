"""Commands that look again at a sealed round: decide, judge, forecast; nothing is sampled, and no seal is touched."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rsft_cluster.cli.options import (
    AsJson,
    Overrides,
    Quiet,
    RunUri,
    TrustRemoteCode,
    count,
    find_run,
    import_from,
    load,
    load_again,
    parameters,
    values,
)
from rsft_cluster.errors import ConfigError
from rsft_cluster.report.console import results
from rsft_cluster.report.decisions import show_decision
from rsft_cluster.report.reporter import Reporter

if TYPE_CHECKING:
    from rsft_cluster.review.redeciding.preview import Setting
    from rsft_cluster.review.redeciding.stored_round import StoredRound

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


def score(
    run_uri: RunUri, *,
    constraints: Annotated[Path, typer.Option(help="A YAML file with a `scoring:` section, or a whole config.")],
    round_: Round = None,
    name: Annotated[str | None, typer.Option(help="Name of the scoring; by default a digest.")] = None,
    workers: Annotated[int, typer.Option(help="Processes that judge.", min=1, metavar="NUMBER")] = 1,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Set one key of scoring or acceptance. May be repeated.")
    ] = None,
    quiet: Quiet = False, as_json_: AsJson = False,
) -> None:  # fmt: skip
    """Judge stored candidates by other constraints, beside the sealed scoring. Goes on where it stopped."""
    from rsft_cluster.report.scorings import show_rejudged
    from rsft_cluster.review.redeciding.comparing import compare
    from rsft_cluster.review.redeciding.outcome import selection_of
    from rsft_cluster.review.redeciding.rejudging import rejudge

    stored = _stored(run_uri, round_)
    sections = ("scoring", "acceptance")
    config = load_again(stored.config, sections, stored.number, path=constraints, overrides=set_)
    reporter = Reporter(quiet=quiet)
    with reporter.stage(f"round {stored.number}: score"):
        made = rejudge(stored, config, selection_of(stored, config), name, workers=workers, report=reporter.collecting)
    comparison = compare(stored, made.name)
    if as_json_:
        figures = made.model_dump(mode="json", exclude={"scores", "settings"})
        typer.echo(json.dumps({**figures, "against_sealed": comparison.model_dump(mode="json")}, ensure_ascii=False))
        return
    title = f"{run_uri}, round {stored.number}: scoring {made.name} against the sealed one"
    show_rejudged(results(), title, comparison)


def accept(
    run_uri: RunUri, *, round_: Round = None, scoring: ScoringName = "sealed", rule: Rule = None, param: Param = None,
    max_per_prompt: Annotated[
        int | None, typer.Option(help="The most candidates kept of a prompt.", parser=count, metavar="NUMBER")
    ] = None,
    set_: AcceptanceSet = None,
    acceptance: Annotated[Path | None, typer.Option(help="A YAML file with an `acceptance:` section.")] = None,
    name: Annotated[str | None, typer.Option(help="Name of the decision; by default the rule and a digest.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Write nothing.")] = False,
    as_json_: AsJson = False,
) -> None:  # fmt: skip
    """Decide again on stored scores, beside the sealed decision."""
    from rsft_cluster.review.redeciding.accepting import accept_again, decide_again
    from rsft_cluster.review.redeciding.outcome import selection_of
    from rsft_cluster.review.redeciding.stored_round import new_name

    stored = _stored(run_uri, round_)
    if name is not None:
        new_name(name)
    options = {} if max_per_prompt is None else {"acceptance.max_per_prompt": max_per_prompt}
    config = load_again(
        stored.config, ("acceptance",), stored.number, path=acceptance, rule=rule, params=parameters(param),
        options=options, overrides=set_,
    )  # fmt: skip
    selection = selection_of(stored, config)
    if dry_run:
        outcome, label = decide_again(stored, selection, scoring), "nothing is written"
    else:
        outcome = accept_again(stored, selection, scoring, name)
        label = f"decision {outcome.name}"
    if as_json_:
        figures = {"funnel": outcome.funnel.model_dump(), "change": outcome.change.model_dump()}
        figures |= {"reasons": dict(outcome.reasons), "chosen": dict(outcome.chosen)}
        typer.echo(json.dumps({**figures, "decision": None if dry_run else label}, ensure_ascii=False))
        return
    title = f"{run_uri}, round {stored.number}, scoring {scoring}: {label}"
    show_decision(results(), title, outcome.funnel, outcome.reasons, outcome.change)


def preview(
    run_uri: RunUri, *, round_: Round = None, scoring: ScoringName = "sealed", rule: Rule = None,
    param: Annotated[
        list[str] | None, typer.Option(help="Values of a parameter of the rule: beta=0.1,0.2. May be repeated.")
    ] = None,
    thresholds: Annotated[str | None, typer.Option(help="Scores for the rule `threshold`: 0.5,0.8.")] = None,
    max_per_prompt: Annotated[str | None, typer.Option(help="Caps: 1,2,4.")] = None,
    as_json_: AsJson = False,
) -> None:  # fmt: skip
    """Show what other settings would keep, without keeping anything."""
    from rsft_cluster.report.previews import show_preview
    from rsft_cluster.review.redeciding.outcome import selection_of
    from rsft_cluster.review.redeciding.preview import combined_settings, declared_settings
    from rsft_cluster.review.redeciding.preview import preview as foresee

    stored = _stored(run_uri, round_)
    current = load_again(stored.config, ("acceptance",), stored.number)
    is_asked = bool(rule or param or thresholds or max_per_prompt)
    if is_asked:
        if thresholds and rule not in (None, "threshold"):
            raise ConfigError(f"--rule {rule}: --thresholds are scores for the rule threshold; leave one of them out")
        params = _param_values([f"min_score={thresholds}", *(param or ())] if thresholds else param or ())
        caps = [count(v) for v in values(max_per_prompt)] if max_per_prompt else []
        settings = combined_settings("threshold" if thresholds else rule, params, caps)
    else:
        settings = declared_settings(current.acceptance, stored.config.sampling.num_candidates)
    others = []
    for setting in settings:
        changed = load_again(stored.config, ("acceptance",), stored.number, **options_of(setting))
        try:
            others.append(selection_of(stored, changed))
        except ConfigError:
            # Settings that do not fit the run are left out, unless the user named them.
            if is_asked:
                raise
    forecast = foresee(stored, selection_of(stored, current), others, scoring)
    if as_json_:
        typer.echo(json.dumps(forecast.model_dump(mode="json"), ensure_ascii=False))
        return
    show_preview(results(), f"{run_uri}, round {stored.number}, scoring {scoring}", forecast)


def trust(run_uri: RunUri, *, round_: Round = None, scoring: ScoringName = "sealed", as_json_: AsJson = False) -> None:
    """Say how far each constraint can be trusted: errors, time, length, and agreement with the others."""
    from rsft_cluster.report.trust import show_trust
    from rsft_cluster.review.redeciding.trust import trust as look

    report = look(_stored(run_uri, round_), scoring)
    if as_json_:
        typer.echo(json.dumps(report.model_dump(mode="json"), ensure_ascii=False))
        return
    show_trust(results(), f"{run_uri}, round {report.round}, scoring {scoring}", report)


def export(
    run_uri: RunUri,
    to: Annotated[Path, typer.Option(help="The file to write: .jsonl or .parquet.")],
    round_: Round = None,
    decision: Annotated[str, typer.Option(help="A decision of `rsft accept`; by default the sealed one.")] = "sealed",
) -> None:
    """Write what a decision accepted as worked examples (.jsonl), or with token ids (.parquet)."""
    from rsft_cluster.review.redeciding.export import export as write

    num_rows = write(_stored(run_uri, round_), to, decision)
    typer.echo(f"{to}: {num_rows:,} examples", err=True)


def options_of(setting: "Setting") -> dict[str, Any]:
    """Return a setting of a preview as options of `load_again`."""
    cap = {"acceptance.max_per_prompt": setting["max_per_prompt"]} if "max_per_prompt" in setting else {}
    return {"rule": setting.get("rule"), "params": setting.get("params"), "options": cap}


def _param_values(options: Sequence[str]) -> dict[str, list[object]]:
    """Return all values of each parameter, in the order in which they are given."""
    given: dict[str, list[object]] = {}
    for text in options:
        name, separator, rest = text.partition("=")
        if not separator:
            raise ConfigError(f"--param {text}: expected name=values, like beta=0.1,0.2")
        given.setdefault(name, []).extend(parameters([f"{name}={value}"])[name] for value in values(rest))
    return given


def _stored(run_uri: str, number: int | None) -> "StoredRound":
    """Return a round; the run's own modules are imported from the working folder."""
    from rsft_cluster.review.redeciding.stored_round import stored_round

    import_from(Path.cwd())
    return stored_round(find_run(run_uri), number)


def import_(
    files: Annotated[list[str], typer.Argument(help="JSONL or Parquet files, folders or globs.", metavar="FILES")],
    *,
    to: Annotated[str, typer.Option(help="The run's folder, as the config names it.", metavar="RUN")],
    config: Annotated[Path, typer.Option(help="The run's config.", metavar="CONFIG")],
    set_: Overrides = None, quiet: Quiet = False, trust_remote_code: TrustRemoteCode = False,
) -> None:  # fmt: skip
    """Make candidates from elsewhere the first round of a run: judged, decided, and ready to be trained on."""
    from rsft_cluster.rounds.importing.import_round import import_candidates
    from rsft_cluster.rounds.loop import opened
    from rsft_cluster.store import join_uri, open_uri

    loaded, reporter = load(config, set_), Reporter(quiet=quiet)
    if open_uri(to)[1] != open_uri(join_uri(loaded.store, loaded.run))[1]:
        raise ConfigError(
            f"--to {to}: {config} keeps its run in {join_uri(loaded.store, loaded.run)}; name that, or set store and "
            "run in the config"
        )
    with opened(loaded, trust_remote_code=trust_remote_code) as run:
        imported, manifest = import_candidates(run, files, reporter)
    totals = manifest.totals
    typer.echo(
        f"{to}: {imported.num_candidates:,} candidates of {imported.num_prompts:,} prompts from "
        f"{imported.num_lines:,} lines, {imported.num_bad:,} unusable; {totals.num_passed:,} passed, "
        f"{totals.num_accepted:,} accepted",
        err=True,
    )


COMMANDS = (score, accept, preview, trust, export)

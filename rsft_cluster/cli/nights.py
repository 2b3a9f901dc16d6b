"""The command that a scheduler calls every night."""

from datetime import date
from typing import Annotated

import typer

from rsft_cluster.cli.options import AsJson, ConfigPath, Overrides, Quiet, TrustRemoteCode, import_paths, load
from rsft_cluster.errors import ConfigError
from rsft_cluster.report.progress import Reporter


def nightly(
    config: ConfigPath, set_: Overrides = None,
    night: Annotated[
        str | None, typer.Option("--date", help="The night, UTC; else the one whose time was last.", metavar="DATE")
    ] = None,
    quiet: Quiet = False, as_json_: AsJson = False, trust_remote_code: TrustRemoteCode = False,
) -> None:  # fmt: skip
    """Do tonight's run: new prompts, from the current policy. Started again, it goes on; a night that is over stays."""
    from rsft_cluster.checks import check as run_checks
    from rsft_cluster.nightly.dates import logical_date
    from rsft_cluster.nightly.night import EXIT_CODES, nightly

    loaded, reporter = load(config, set_), Reporter(quiet=quiet)
    tonight = logical_date(loaded.nightly) if night is None else parsed_date(night)
    for finding in run_checks(loaded):
        if finding.warns:
            reporter.note(f"warning: {finding.about}: {finding.says}")
    record = nightly(
        loaded, tonight, reporter, trust_remote_code=trust_remote_code, import_paths=import_paths(config)
    )  # fmt: skip
    if as_json_:
        typer.echo(record.model_dump_json())
    raise typer.Exit(EXIT_CODES.get(record.outcome, 0))


def parsed_date(text: str) -> date:
    """Parse a date of the command line."""
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--date {text}: expected a date like 2026-11-26") from error


COMMANDS = (nightly,)

"""The command that a scheduler calls every night."""

import typer

from rsft_cluster.cli.options import (
    AsJson,
    ConfigPath,
    Night,
    Overrides,
    Quiet,
    TrustRemoteCode,
    import_paths,
    load,
    night_of,
    warn,
)
from rsft_cluster.report.reporter import Reporter


def nightly(
    config: ConfigPath, set_: Overrides = None,
    night: Night = None, quiet: Quiet = False, as_json_: AsJson = False, trust_remote_code: TrustRemoteCode = False,
) -> None:  # fmt: skip
    """Do tonight's run: new prompts, from the current policy. Started again, it goes on; a night that is over stays."""
    from rsft_cluster.checks.check import check as run_checks
    from rsft_cluster.nightly.night import EXIT_CODES, nightly

    loaded, reporter = load(config, set_), Reporter(quiet=quiet)
    tonight = night_of(loaded.nightly, night)
    warn(run_checks(loaded), reporter)
    record = nightly(
        loaded, tonight, reporter, trust_remote_code=trust_remote_code, import_paths=import_paths(config)
    )  # fmt: skip
    if as_json_:
        typer.echo(record.model_dump_json())
    raise typer.Exit(EXIT_CODES.get(record.outcome, 0))


COMMANDS = (nightly,)

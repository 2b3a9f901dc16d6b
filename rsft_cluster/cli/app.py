"""`rsft`: the command line. Parses, calls one function, prints; human text to stderr, data to stdout.

Engines are imported by the commands that use them, so that `rsft --help` and `rsft check` need none.
"""

import os
import signal
import sys
from typing import NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from rsft_cluster.cli import audits, clusters, constraints, doctor, judging, nights, runs, schedules
from rsft_cluster.errors import RsftError, StoreError
from rsft_cluster.report.candidates import visible

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rejection sampling fine-tuning on a Ray cluster.",
)
for command in (
    *runs.COMMANDS,
    *nights.COMMANDS,
    *judging.COMMANDS,
    *audits.COMMANDS,
    *clusters.COMMANDS,
    *schedules.COMMANDS,
    *doctor.COMMANDS,
):
    app.command()(command)
app.command("import")(judging.import_)
app.add_typer(audits.audit, name="audit")
app.add_typer(constraints.constraints, name="constraints")


KEEPALIVE = {"RAY_grpc_client_keepalive_time_ms": "30000", "RAY_grpc_client_keepalive_timeout_ms": "15000"}
"""Ray waits five minutes and two: so long a driver stands still for a node that is cut off, its work done elsewhere."""


def main() -> None:
    """Run the command line; every RsftError ends in one message and its own exit code."""
    _set_up_ray()
    # As Ray does it from where it is connected: what holds a lease or a file lets go of it on the way out.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(number))
    try:
        app(prog_name="rsft")
    except SystemExit as ending:
        if ending.code == signal.SIGTERM:
            _leave_stopped()
        raise
    except RsftError as error:
        _fail(str(error), error.exit_code)
    except ValidationError as error:
        # Mistakes in configs and parameters are explained where they are read: this is a record in a run's folder.
        _fail(
            f"a {error.title} record of this run is damaged, or of another version of rsft: {error.errors()[0]['msg']}",
            StoreError.exit_code,
        )


def _set_up_ray() -> None:
    """Set what Ray reads when it is imported, where the user has not."""
    # Whoever names a token means it to be used.
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    for name, value in KEEPALIVE.items():
        os.environ.setdefault(name, value)


def _leave_stopped() -> NoReturn:
    """End as a process that a signal stops does, once everything is closed."""
    sys.stderr.write("stopped\n")
    sys.stdout.flush()
    sys.stderr.flush()
    # Ray Data's threads, still in native code, abort an interpreter that finishes under them.
    os._exit(128 + signal.SIGTERM)


def _fail(message: str, exit_code: int) -> NoReturn:
    console = Console(stderr=True, soft_wrap=True)
    console.print(f"error: {visible(message)}", style="red", markup=False, highlight=False)
    sys.exit(exit_code)

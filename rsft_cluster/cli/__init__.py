"""`rsft`: the command line. Parses, calls one function, prints; human text to stderr, data to stdout.

Engines are imported by the commands that use them, so that `rsft --help` and `rsft check` need none.
"""

import os
import sys

import typer
from rich.console import Console

from rsft_cluster.cli import clusters, runs
from rsft_cluster.errors import RsftError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Rejection sampling fine-tuning on a Ray cluster.",
)
for command in (*runs.COMMANDS, *clusters.COMMANDS):
    app.command()(command)


def main() -> None:
    """Run the command line; every error of ours ends in one message and its own exit code."""
    # Ray reads this when it is imported; whoever names a token means it to be used.
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        app(prog_name="rsft")
    except RsftError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)

"""Options that several commands share, and how a config is loaded for all of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsft_cluster.config import RunConfig
from rsft_cluster.config_file import check_place, load_config

if TYPE_CHECKING:
    from rsft_cluster.store import Store

ConfigPath = Annotated[Path, typer.Argument(help="A run's config: YAML, or JSON as stored by a run.", metavar="CONFIG")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", help="Override one key: sampling.workers=4. May be repeated.")
]
RunUri = Annotated[str, typer.Argument(help="A run's folder or URI, like runs/my-run.", metavar="RUN")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON to stdout.")]
Address = Annotated[
    str, typer.Option(help="URL of the cluster's dashboard.", envvar="RAY_API_SERVER_ADDRESS", show_default=True)
]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run Python code that comes with the model. Read it first.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def count(text: str) -> int:
    """Parse an option's value that counts something."""
    if not str(text).isdecimal():
        raise typer.BadParameter(f"expected a whole number of at least 0, found {text!r}")
    return int(text)


def load(path: Path, overrides: list[str] | None) -> RunConfig:
    """Load a config, with the folder it lies in on the import path so that its own modules are found."""
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return load_config(path, overrides or ())


def find_run(uri: str) -> "Store":
    """Return the store of a run named by its folder or URI."""
    from rsft_cluster import runs

    check_place(uri)
    return runs.find_run(uri)


def import_paths(path: Path) -> tuple[str, ...]:
    """Return what workers need on their import path: the config's folder, and where the user stands."""
    return (str(path.resolve().parent), str(Path.cwd()))

"""Options that several commands share, and how a config is loaded for all of them."""

import re
import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rsft_cluster.config import NightlyConfig, Plugin, RunConfig, strict_yaml
from rsft_cluster.config.file import check_store_uri, load_config, load_sections
from rsft_cluster.errors import ConfigError
from rsft_cluster.nightly.dates import logical_date

if TYPE_CHECKING:
    from rsft_cluster.checks.check import Finding
    from rsft_cluster.report.reporter import Reporter
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
Night = Annotated[
    str | None, typer.Option("--date", help="The night, UTC; else the one whose time was last.", metavar="DATE")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print results and errors only.")]


def count(text: str) -> int:
    """Parse an option's value that counts something."""
    if not str(text).isdecimal():
        raise typer.BadParameter(f"expected a whole number of at least 0, found {text!r}")
    return int(text)


def night_of(config: NightlyConfig, text: str | None) -> date:
    """Return the night that `text` names, by default the one that was due last."""
    if text is None:
        return logical_date(config)
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"--date {text}: expected a date like 2026-11-26") from error


def warn(findings: "Sequence[Finding]", reporter: "Reporter") -> None:
    """Report the warnings of a config's check."""
    for finding in findings:
        if finding.warns:
            reporter.note(f"warning: {finding.about}: {finding.says}")


def load(path: Path, overrides: list[str] | None) -> RunConfig:
    """Load a config, with the folder it lies in on the import path so that its own modules are found."""
    import_from(path.parent)
    return load_config(path, overrides or ())


def import_from(folder: Path) -> None:
    """Put a folder on the import path."""
    if (path := str(folder.resolve())) not in sys.path:
        sys.path.insert(0, path)


def load_again(
    config: RunConfig,
    sections: Sequence[str],
    number: int,
    *,
    path: Path | None = None,
    rule: str | None = None,
    params: dict[str, object] | None = None,
    options: Mapping[str, object] | None = None,
    overrides: list[str] | None = None,
) -> RunConfig:
    """Return a run's config with `scoring` and `acceptance` set anew by a file and by options.

    The rule keeps the parameters that it has in the round, unless another one is named.
    """
    from rsft_cluster.acceptance.decide import scheduled

    if path is not None:
        import_from(path.parent)
    acceptance = config.acceptance
    acceptance = acceptance.model_copy(update={"rule": scheduled(acceptance, number), "schedule": {}})
    keys = dict(options or {})
    if rule is not None or params:
        same = acceptance.rule if rule in (None, acceptance.rule.use) else Plugin(use=str(rule))
        keys["acceptance.rule"] = {"use": same.use, "params": {**same.params, **(params or {})}}
    base = config.model_copy(update={"acceptance": acceptance})
    return load_sections(base, sections, path=path, options=keys, overrides=overrides or ())


def parameters(texts: list[str] | None) -> dict[str, object]:
    """Return `--param name=value` options as parameters; values are YAML."""
    params: dict[str, object] = {}
    for text in texts or ():
        name, separator, value = text.partition("=")
        if not separator or not name.isidentifier():
            raise ConfigError(f"--param {text}: expected name=value, like beta=0.2")
        try:
            params[name], _ = strict_yaml.read(value)
        except ConfigError as error:
            raise ConfigError(f"--param {text}: the value, as YAML: {error}") from error
    return params


def values(text: str) -> list[str]:
    """Return the values of a list like `0.1,0.2`; commas within brackets do not part."""
    return [value.strip() for value in re.split(r",(?![^\[{]*[\]}])", text)]


def find_run(uri: str) -> "Store":
    """Return the store of a run named by its folder or URI."""
    from rsft_cluster.runs import run

    check_store_uri(uri)
    return run.find_run(uri)


def import_paths(path: Path) -> tuple[str, ...]:
    """Return what workers need on their import path: the config's folder, and where the user stands."""
    return (str(path.resolve().parent), str(Path.cwd()))

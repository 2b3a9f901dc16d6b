"""Commands about constraints: which ones there are, and whether they judge their own cases as these say."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from rsft_cluster.errors import PluginError, StageError
from rsft_cluster.report.candidates import visible

constraints = typer.Typer(no_args_is_help=True, help="Constraints: what there is, and their inline cases.")


@constraints.command(name="list")
def list_() -> None:
    """Print every declared constraint, its parameters with their defaults, and what it passes."""
    from rsft_cluster.plugins import described, known

    for name in known("constraints"):
        parameters, description = described(name, "constraints", num_leading=1)
        typer.echo(f"{name}{parameters.replace('collections.abc.', '').replace('typing.', '')}\n    {description}")


@constraints.command(name="test")
def judge_cases(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Declared constraints, modules, or package.module:attribute; every declared one by default.",
            metavar="[NAME | MODULE[:ATTRIBUTE]]...",
            show_default=False,
        ),
    ] = None,
) -> None:
    """Judge the cases that stand beside constraints (CASES of their modules). Exit code 1 if one is wrong."""
    from rsft_cluster.plugins import known
    from rsft_cluster.testing import judged_cases

    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    num_cases = num_wrong = 0
    for name in names or known("constraints"):
        for use, judged in judged_cases(name).items():
            if names and not judged:
                raise PluginError(f"{use}: its module has no CASES for it, so there is nothing to test")
            wrong = [case for case in judged if not case.holds]
            held = f"{len(judged) - len(wrong)} of {len(judged)} cases hold" if judged else "no CASES"
            typer.echo(f"{name if name in known('constraints') else use}: {held}")
            for case in wrong:
                typer.echo(f"    {visible(str(case))}")
            num_cases, num_wrong = num_cases + len(judged), num_wrong + len(wrong)
    if num_wrong:
        raise StageError(f"{num_wrong} of {num_cases} cases are wrong")

"""How far constraints can be trusted, as people read it: a row a constraint, a matrix of agreement, and warnings."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from rsft_cluster.report.candidates import visible
from rsft_cluster.report.findings import show_finding
from rsft_cluster.review.records import ConstraintTrust, TrustReport

VERDICTS = ("passed", "errors", "late", "n/a", "alone", "length")
TIMES = ("mean", "p95", "max", "of all time")


def show_trust(console: Console, title: str, report: TrustReport) -> None:
    """Print the report."""
    console.print(Text(visible(title), style="bold"), soft_wrap=True)
    console.print(_table(VERDICTS, [(trust, _verdicts(trust)) for trust in report.constraints]))
    console.print(
        "late: time-outs; n/a: does not apply to the prompt; alone: rejected by it alone; length: rank correlation "
        "of score and tokens",
        style="dim",
        highlight=False,
    )
    console.print(_table(TIMES, [(trust, _times(trust)) for trust in report.constraints]))
    if report.agreements:
        console.print("agreement: kappa above, share below the diagonal", style="dim", highlight=False)
        console.print(_agreements(report))
    for warning in report.warnings:
        show_finding(console, "warning", visible(warning))


def _table(names: Sequence[str], rows: Sequence[tuple[ConstraintTrust, tuple[str, ...]]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    table.add_column("constraint", overflow="fold")
    for name in names:
        table.add_column(name, justify="right", no_wrap=True)
    for trust, figures in rows:
        table.add_row(Text(visible(trust.constraint) + ("" if trust.required else " (not required)")), *figures)
    return table


def _verdicts(trust: ConstraintTrust) -> tuple[str, ...]:
    rho = trust.length_correlation
    return (
        "" if trust.pass_rate is None else f"{trust.pass_rate:.1%}",
        f"{trust.error_rate:.2%}",
        f"{trust.num_timeouts:,}",
        f"{trust.num_inapplicable:,}",
        f"{trust.rejected_alone_rate:.1%}",
        "" if rho is None else f"{rho:+.2f}",
    )


def _times(trust: ConstraintTrust) -> tuple[str, ...]:
    return (*(_duration(s) for s in (trust.mean_s, trust.p95_s, trust.max_s)), f"{trust.time_share:.0%}")


def _agreements(report: TrustReport) -> Table:
    """Return kappa above the diagonal, raw agreement below it."""
    names = [trust.constraint for trust in report.constraints]
    cells = {}
    for pair in report.agreements:
        cells[pair.first, pair.second] = "" if pair.kappa is None else f"{pair.kappa:.2f}"
        cells[pair.second, pair.first] = "" if pair.agreement is None else f"{pair.agreement:.1%}"
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(Text(visible(name)), justify="right", overflow="fold")
    for row in names:
        table.add_row(Text(visible(row)), *(cells.get((row, column), "-") for column in names))
    return table


def _duration(seconds: float) -> str:
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"

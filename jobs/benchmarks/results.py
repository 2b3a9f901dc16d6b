"""What was measured, as a table and as JSON."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from jobs.benchmarks.roofline import Roofline

RATIOS = {
    "vs_generate": "generate",
    "vs_sorted_generate": "sorted_generate",
    "vs_generate_batch": "generate_batch",
    "vs_vllm": "vllm",
    "vs_copies": "rsft_copies",
    "vs_drained": "rsft_drained",
    "vs_unpacked": "rsft_unpacked",
    "vs_uncompiled": "rsft_uncompiled",
    "vs_batches": "rsft_batches",
}
"""The tokens a second of `rsft` divided by those of another contestant, by the name of the ratio."""


@dataclass(frozen=True, slots=True)
class Repetition:
    """One run over a contestant's prompts."""

    number: int
    seconds: float
    useful_tokens: int
    """Tokens of all answers, up to their end token."""
    num_prompts: int
    cores: float
    """Cores that its processes kept busy, on average."""
    cores_of_others: float
    """Cores that everything else on the machine kept busy: where this is not near 0, the figures are not clean."""

    @property
    def rate(self) -> float:
        """Useful tokens a second."""
        return self.useful_tokens / self.seconds


@dataclass(slots=True)
class Standing:
    """What is known of one contestant with one model."""

    load_seconds: float | None = None
    first_call_seconds: float | None = None
    """How much longer the first call on a tiny workload took than the same call again."""
    peak_mb: float | None = None
    repetitions: list[Repetition] = field(default_factory=list)
    error: str | None = None

    @property
    def rate(self) -> float | None:
        """The median of the repetitions' tokens a second."""
        return statistics.median(r.rate for r in self.repetitions) if self.repetitions else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All contestants with one model."""

    model: str
    num_parameters: int
    standings: dict[str, Standing]
    bound: Roofline | None

    def ratios(self) -> dict[str, float | None]:
        """Return the median over repetitions of each ratio: the two runs of a repetition are neighbours in time."""
        return {name: self.ratio(other) for name, other in RATIOS.items()}

    def ratio(self, other: str) -> float | None:
        """Return how many times as many tokens a second `rsft` gave; None where one of the two is missing."""
        ours, theirs = (self._rates(name) for name in ("rsft", other))
        pairs = [ours[number] / theirs[number] for number in ours.keys() & theirs.keys()]
        return statistics.median(pairs) if pairs else None

    def share(self, name: str) -> float | None:
        """Return the share of the machine's bound that a contestant reached."""
        rate = self.standings[name].rate
        return rate / self.bound.tokens_per_second if self.bound and rate else None

    def as_json(self) -> dict[str, Any]:
        """Return everything as plain data."""
        return {
            "model": self.model,
            "num_parameters": self.num_parameters,
            "roofline": asdict(self.bound) if self.bound else None,
            "contestants": {name: self._standing(name) for name in self.standings},
            "ratios": self.ratios(),
        }

    def table(self) -> Table:
        """Return a table with a row a contestant."""
        failures = [standing.error for standing in self.standings.values() if standing.error]
        table = Table(title=self._title(), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
        table.caption, table.caption_justify = Text("\n".join(failures)) if failures else None, "left"
        table.add_column("contestant")
        columns = (
            "tok/s", "range", "s a run", "prompts", "rsft is", "of bound", "first call", "peak MB", "cores", "others",
        )  # fmt: skip
        for column in columns:
            table.add_column(column, justify="right", no_wrap=True)
        for name in self.standings:
            table.add_row(name, *self._cells(name), style="bold" if name == "rsft" else None)
        return table

    def _cells(self, name: str) -> list[str]:
        standing = self.standings[name]
        runs = standing.repetitions
        rates = [r.rate for r in runs]
        ratio, share = None if name == "rsft" else self.ratio(name), self.share(name)
        return [
            _number(standing.rate),
            f"{min(rates):,.0f}-{max(rates):,.0f}" if rates else "",
            _decimal(_median([r.seconds for r in runs])),
            _number(runs[0].num_prompts if runs else None),
            f"{ratio:.2f} x" if ratio else "",
            f"{share:.0%}" if share else "",
            "" if standing.first_call_seconds is None else f"{standing.first_call_seconds:.1f} s",
            _number(standing.peak_mb),
            _decimal(_median([r.cores for r in runs])),
            _decimal(_median([r.cores_of_others for r in runs])),
        ]

    def _title(self) -> str:
        title = f"{self.model}: {self.num_parameters / 1e6:.1f} M parameters"
        if self.bound is None:
            return title
        asked, machine = self.bound.demand, self.bound.machine
        return (
            f"{title}; a token asks for {asked.flops / 1e6:,.1f} MFLOP and {asked.bytes / 1e6:,.2f} MB "
            f"(context {asked.mean_context:.0f})\n"
            f"the machine: {machine.flops_per_second / 1e9:,.0f} GFLOP/s, {machine.bytes_per_second / 1e9:,.1f} GB/s; "
            f"bound {self.bound.tokens_per_second:,.0f} tok/s by {self.bound.bound_by}"
        )

    def _rates(self, name: str) -> dict[int, float]:
        standing = self.standings.get(name)
        return {r.number: r.rate for r in standing.repetitions} if standing else {}

    def _standing(self, name: str) -> dict[str, Any]:
        standing = self.standings[name]
        return {
            **asdict(standing),
            "tokens_per_second": standing.rate,
            "seconds": _median([r.seconds for r in standing.repetitions]),
            "useful_tokens": _median([r.useful_tokens for r in standing.repetitions]),
            "share_of_bound": self.share(name),
        }


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _decimal(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:,.0f}"

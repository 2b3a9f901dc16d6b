"""How far the constraints of a sealed round can be trusted: counts over all candidates, ranks over a share of them.

A few files are in memory at a time; correlations and percentiles rest on at most SAMPLED candidates, evenly spread.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from scipy.stats import spearmanr

from rsft_cluster.config import Constraint
from rsft_cluster.review.records import Agreement, ConstraintTrust, TrustReport
from rsft_cluster.review.redeciding.group_blocks import threaded_map
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound, StoredUnit, constraints_of
from rsft_cluster.review.redeciding.verdicts import ERROR, FAILED, PASSED, SILENT, Verdicts, verdicts_of

SAMPLED = 200_000
FEW = 20
"""The fewest verdicts that a correlation, or a warning about them, rests on."""
MAX_LENGTH_CORRELATION = 0.5
SAME_KAPPA = 0.95
"""Kappa above which two constraints say the same."""
LARGE_TIME_SHARE = 0.5


def trust(stored: StoredRound, scoring: str = SEALED) -> TrustReport:
    """Return a report on each constraint of a scoring and each pair of them, from all its verdicts."""
    constraints = constraints_of(stored, scoring)
    names = [c.name for c in constraints]
    counts = _VerdictCounts(len(names), np.array([c.required for c in constraints]))
    num_candidates = stored.manifest.totals.num_candidates
    stride = -(-num_candidates // SAMPLED) or 1

    def read(unit: StoredUnit) -> pa.Table:
        return stored.store.read_table(unit.judged.scores, columns=["num_tokens", "verdicts"])

    for table in threaded_map(read, stored.units(scoring)):
        counts.add(verdicts_of(table, names), table.column("num_tokens").to_numpy(), stride)
    trusts = tuple(counts.constraint(i, c) for i, c in enumerate(constraints))
    pairs = tuple(counts.agreement(i, j, names) for i in range(len(names)) for j in range(i))
    pairs = tuple(sorted(pairs, key=lambda pair: (names.index(pair.first), names.index(pair.second))))
    warnings = [*(w for t in trusts for w in _warnings(t)), *(w for pair in pairs for w in _pair_warnings(pair))]
    return TrustReport(
        round=stored.number,
        scoring=scoring,
        num_candidates=num_candidates,
        num_sampled=len(counts.sampled()[0]),
        constraints=trusts,
        agreements=pairs,
        warnings=tuple(warnings),
    )


@dataclass
class _VerdictCounts:
    """Running counts of the verdicts of all constraints."""

    size: int
    required: NDArray[np.bool_]
    num: dict[int, NDArray[np.int64]] = field(init=False)
    """(constraints): verdicts of each state."""
    num_rows: int = 0

    def __post_init__(self) -> None:
        self.num = {state: np.zeros(self.size, dtype=np.int64) for state in (PASSED, FAILED, ERROR, SILENT)}
        self.num_timeouts, self.num_alone = np.zeros((2, self.size), dtype=np.int64)
        self.total_s, self.max_s = np.zeros((2, self.size))
        self.both = np.zeros((4, self.size, self.size), dtype=np.int64)
        self._samples: list[tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]] = []

    def add(self, verdicts: Verdicts, num_tokens: NDArray[np.int64], stride: int) -> None:
        """Add the verdicts of a file, and every `stride`th candidate to the sample."""
        for state in self.num:
            self.num[state] += np.count_nonzero(verdicts.state == state, axis=0)
        self.num_timeouts += np.count_nonzero(verdicts.timed_out, axis=0)
        duration = np.nan_to_num(verdicts.duration_s)
        self.total_s += duration.sum(axis=0)
        self.max_s = np.maximum(self.max_s, duration.max(axis=0, initial=0.0))
        passed, failed = (verdicts.state == PASSED).astype(np.int64), (verdicts.state == FAILED).astype(np.int64)
        against = (failed > 0) & self.required
        unjudged = ((verdicts.state == ERROR) & self.required).any(axis=1, keepdims=True)
        self.num_alone += (against & (against.sum(axis=1, keepdims=True) == 1) & ~unjudged).sum(axis=0)
        self.both += np.stack([passed.T @ passed, passed.T @ failed, failed.T @ passed, failed.T @ failed])
        chosen = slice(-self.num_rows % stride, None, stride)
        self._samples.append((verdicts.score[chosen], verdicts.duration_s[chosen], num_tokens[chosen]))
        self.num_rows += len(num_tokens)

    def sampled(self) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Return scores and durations, (candidates, constraints), and numbers of tokens of the sampled candidates."""
        if len(self._samples) > 1:
            scores, durations, tokens = (np.concatenate(part) for part in zip(*self._samples, strict=True))
            self._samples = [(scores, durations, tokens)]
        nothing = np.zeros((0, self.size))
        return self._samples[0] if self._samples else (nothing, nothing, np.zeros(0, dtype=np.int64))

    def constraint(self, i: int, constraint: Constraint) -> ConstraintTrust:
        """Return the figures of a constraint."""
        passed, failed, errors = (int(self.num[state][i]) for state in (PASSED, FAILED, ERROR))
        num_applicable = passed + failed + errors
        scores, durations, tokens = self.sampled()
        known_s = durations[:, i][~np.isnan(durations[:, i])]
        return ConstraintTrust(
            constraint=constraint.name,
            required=constraint.required,
            num_verdicts=passed + failed,
            num_inapplicable=int(self.num[SILENT][i]),
            pass_rate=passed / (passed + failed) if passed + failed else None,
            error_rate=errors / num_applicable if num_applicable else 0.0,
            num_timeouts=int(self.num_timeouts[i]),
            mean_s=float(self.total_s[i]) / max(num_applicable, 1),
            p95_s=float(np.percentile(known_s, 95)) if len(known_s) else 0.0,
            max_s=float(self.max_s[i]),
            time_share=float(self.total_s[i] / self.total_s.sum()) if self.total_s.sum() else 0.0,
            length_correlation=_correlation(scores[:, i], tokens),
            num_rejected_alone=int(self.num_alone[i]),
            rejected_alone_rate=int(self.num_alone[i]) / max(self.num_rows, 1),
        )

    def agreement(self, i: int, j: int, names: Sequence[str]) -> Agreement:
        """Return how far two constraints agree; `first` is the one that comes first in the config."""
        i, j = min(i, j), max(i, j)
        table = self.both[:, i, j].astype(np.float64)
        size = table.sum()
        both, first, second, neither = table
        observed = (both + neither) / size if size else None
        kappa = None
        if observed is not None:
            chance = ((both + first) * (both + second) + (second + neither) * (first + neither)) / size**2
            kappa = None if chance == 1.0 else float((observed - chance) / (1 - chance))
        return Agreement(
            first=names[i],
            second=names[j],
            num_both=int(size),
            agreement=None if observed is None else float(observed),
            kappa=kappa,
        )


def _correlation(score: NDArray[np.float64], tokens: NDArray[np.int64]) -> float | None:
    known = ~np.isnan(score)
    score, tokens = score[known], tokens[known]
    if len(score) < FEW or np.ptp(score) == 0 or np.ptp(tokens) == 0:
        return None
    return float(spearmanr(score, tokens).statistic)  # pyright: ignore[reportAttributeAccessIssue] scipy has no types


def _warnings(figures: ConstraintTrust) -> Iterator[str]:
    name = figures.constraint
    if figures.num_verdicts >= FEW and figures.pass_rate == 1.0:
        yield f"{name} never fails anything ({figures.num_verdicts:,} verdicts): it costs time and decides nothing"
    if figures.num_verdicts >= FEW and figures.pass_rate == 0.0:
        yield f"{name} never passes anything ({figures.num_verdicts:,} verdicts)" + (
            ": nothing can be accepted where it is required" if figures.required else ""
        )
    if figures.error_rate:
        timeouts = f", {figures.num_timeouts:,} of them time-outs" if figures.num_timeouts else ""
        yield f"{name} cannot judge {figures.error_rate:.2%} of what it is asked{timeouts}"
    if figures.length_correlation is not None and abs(figures.length_correlation) > MAX_LENGTH_CORRELATION:
        favoured = "longer" if figures.length_correlation > 0 else "shorter"
        rank = f"{figures.length_correlation:+.2f}"
        yield f"{name} goes with length (rank correlation {rank}): it may reward {favoured} answers"
    if figures.time_share > LARGE_TIME_SHARE and figures.required and not figures.num_rejected_alone:
        yield f"{name} takes {figures.time_share:.0%} of the time and rejects nothing that another would not reject"


def _pair_warnings(pair: Agreement) -> Iterator[str]:
    if pair.kappa is not None and pair.num_both >= FEW and pair.kappa > SAME_KAPPA:
        yield f"{pair.first} and {pair.second} say the same (kappa {pair.kappa:.2f}): one of them may be enough"
    if pair.kappa is not None and pair.num_both >= FEW and pair.kappa < -0.1:
        yield f"{pair.first} and {pair.second} contradict each other (kappa {pair.kappa:.2f})"

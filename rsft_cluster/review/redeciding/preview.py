"""What other settings would keep of a sealed round: all of them are tried in one pass over its stored scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rsft_cluster.acceptance.base import Setting, rule_of
from rsft_cluster.acceptance.decide import bind_rule, parameters_of, select
from rsft_cluster.acceptance.selecting import Selecting
from rsft_cluster.config import AcceptanceConfig, Plugin
from rsft_cluster.errors import ConfigError
from rsft_cluster.review.records import Forecast, Histogram, Preview
from rsft_cluster.review.redeciding.group_blocks import Block, blocks
from rsft_cluster.review.redeciding.stored_round import SEALED, StoredRound

MAX_SETTINGS = 64
CAPS = (1, 2, 4, 8, 16)
NUM_BINS = 10
NUM_SCORE_BINS = 1000
"""Scores are counted in bins of one thousandth first."""


def grid(acceptance: AcceptanceConfig, num_candidates: int) -> list[Setting]:
    """Return settings worth a look beside the current one: those that its rule declares, and other caps.

    A prompt has at most `num_candidates` candidates.
    """
    bound = bind_rule(acceptance)
    caps = [cap for cap in CAPS if cap < num_candidates and cap != acceptance.max_per_prompt]
    settings = rule_of(bound).previews(parameters_of(bound), num_candidates)
    return [*settings, *({"max_per_prompt": cap} for cap in caps)]


def asked(rule: str | None, params: Mapping[str, Sequence[object]], caps: Sequence[int]) -> list[Setting]:
    """Return every combination of the values that are asked for."""
    of_params: list[Setting] = [{"params": dict(zip(params, v, strict=True))} for v in product(*params.values())]
    of_caps: list[Setting] = [{"max_per_prompt": cap} for cap in caps] or [{}]
    named: Setting = {"rule": rule} if rule else {}
    found: list[Setting] = [{**named, **one, **cap} for one, cap in product(of_params, of_caps)]
    if len(found) > MAX_SETTINGS:
        raise ConfigError(f"{len(found)} settings are asked for, at most {MAX_SETTINGS} are previewed at once")
    return found


def label(acceptance: AcceptanceConfig) -> str:
    """Return a setting in words: the rule with its parameters, and the cap."""
    params = "".join(f" {name}={value}" for name, value in acceptance.rule.params.items())
    cap = f", at most {acceptance.max_per_prompt} a prompt" if acceptance.max_per_prompt else ""
    return f"{_short(acceptance.rule)}{params}{cap}"


def preview(stored: StoredRound, current: Selecting, others: Sequence[Selecting], scoring: str = SEALED) -> Preview:
    """Return what the current setting and others keep, and how scores and lengths lie."""
    ways = [current, *others]
    sums = [_Sums() for _ in ways]
    scores, lengths = _Counts(), _Counts()
    for block in blocks(stored, ways, list(stored.units(scoring))):
        kept = [select(block.judged, how).accepted for how in ways]
        for one, chosen in zip(sums, kept, strict=True):
            one.add(block, chosen)
        passed = block.scores.column("passed").fill_null(False).to_numpy()
        known = block.scores.column("score").is_valid().to_numpy()
        score = np.rint(block.scores.column("score").to_numpy() * NUM_SCORE_BINS)
        scores.add(score[known].astype(np.int64), kept[0][known], passed[known])
        lengths.add(block.scores.column("num_tokens").to_numpy().astype(np.int64)[known], kept[0][known], passed[known])
    totals = stored.manifest.totals
    return Preview(
        round=stored.number,
        scoring=scoring,
        num_prompts=totals.num_prompts,
        num_candidates=totals.num_candidates,
        forecasts=tuple(
            one.forecast(label(how.acceptance), totals.num_prompts, totals.num_candidates, is_current=i == 0)
            for i, (how, one) in enumerate(zip(ways, sums, strict=True))
        ),
        scores=scores.histogram(np.linspace(0, NUM_SCORE_BINS, NUM_BINS + 1), NUM_SCORE_BINS),
        lengths=lengths.histogram(_edges(lengths), 1),
    )


@dataclass
class _Sums:
    num_accepted: int = 0
    num_prompts: int = 0
    score: float = 0.0
    num_tokens: int = 0

    def add(self, block: Block, kept: NDArray[np.bool_]) -> None:
        chosen = block.scores.select(["prompt_id", "score", "num_tokens"]).filter(kept)
        self.num_accepted += chosen.num_rows
        self.num_prompts += len(chosen.column("prompt_id").unique())
        self.score += float(np.sum(chosen.column("score").to_numpy()))
        self.num_tokens += int(np.sum(chosen.column("num_tokens").to_numpy()))

    def forecast(self, setting: str, num_prompts: int, num_candidates: int, *, is_current: bool) -> Forecast:
        return Forecast(
            setting=setting,
            is_current=is_current,
            num_accepted=self.num_accepted,
            acceptance_rate=self.num_accepted / max(num_candidates, 1),
            num_prompts_accepted=self.num_prompts,
            prompt_coverage=self.num_prompts / max(num_prompts, 1),
            mean_score=self.score / self.num_accepted if self.num_accepted else None,
            mean_tokens=self.num_tokens / self.num_accepted if self.num_accepted else None,
        )


@dataclass
class _Counts:
    """How often each whole number came, of what is kept, what passed and what failed: a row each."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 1), dtype=np.int64))

    def add(self, values: NDArray[np.int64], kept: NDArray[np.bool_], passed: NDArray[np.bool_]) -> None:
        """Take in values; memory grows with the largest alone."""
        if not len(values):
            return
        size = max(self.counts.shape[1], int(values.max()) + 1)
        self.counts = np.pad(self.counts, ((0, 0), (0, size - self.counts.shape[1])))
        for row, chosen in enumerate((kept, passed & ~kept, ~passed & ~kept)):
            self.counts[row] += np.bincount(values[chosen], minlength=size)

    def histogram(self, edges: NDArray[np.float64], unit: float) -> Histogram:
        """Count by bins; the last one takes what lies beyond it too."""
        values = np.arange(self.counts.shape[1])
        place = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        rows = [np.bincount(place, weights=row, minlength=len(edges) - 1).astype(int).tolist() for row in self.counts]
        kept, passed, failed = map(tuple, rows)
        return Histogram(edges=tuple((edges / unit).tolist()), kept=kept, passed=passed, failed=failed)


def _edges(lengths: _Counts) -> NDArray[np.float64]:
    """Return bins of a round width up to where but one in a hundred lies, and one more up to the longest."""
    of_all = np.cumsum(lengths.counts.sum(axis=0))
    most = int(np.searchsorted(of_all, 0.99 * of_all[-1])) + 1
    least = 10.0 ** np.floor(np.log10(max(most / NUM_BINS, 1)))
    width = next(least * f for f in (1, 2, 5, 10) if least * f * NUM_BINS >= most)
    edges = np.arange(0.0, most + width, width)
    longest = len(of_all) - 1
    return np.append(edges, longest + 1) if longest >= edges[-1] else edges


def _short(rule: Plugin) -> str:
    return rule.use.rpartition(":")[2]

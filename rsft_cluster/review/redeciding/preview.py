"""What other settings would keep of a sealed round, all of them computed in one pass over its stored scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from rsft_cluster.acceptance.base import Setting, rule_of
from rsft_cluster.acceptance.decide import bind_rule, parameters_of, select
from rsft_cluster.acceptance.selection import SelectionRules
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


def declared_settings(acceptance: AcceptanceConfig, num_candidates: int) -> list[Setting]:
    """Return the settings to preview beside the current one: those that its rule declares, and other caps.

    A prompt has at most `num_candidates` candidates.
    """
    bound = bind_rule(acceptance)
    caps = [cap for cap in CAPS if cap < num_candidates and cap != acceptance.max_per_prompt]
    settings = rule_of(bound).previews(parameters_of(bound), num_candidates)
    return [*settings, *({"max_per_prompt": cap} for cap in caps)]


def combined_settings(rule: str | None, params: Mapping[str, Sequence[object]], caps: Sequence[int]) -> list[Setting]:
    """Return every combination of the given values; raises ConfigError for more than MAX_SETTINGS."""
    of_params: list[Setting] = [{"params": dict(zip(params, v, strict=True))} for v in product(*params.values())]
    of_caps: list[Setting] = [{"max_per_prompt": cap} for cap in caps] or [{}]
    named: Setting = {"rule": rule} if rule else {}
    settings: list[Setting] = [{**named, **chosen, **cap} for chosen, cap in product(of_params, of_caps)]
    if len(settings) > MAX_SETTINGS:
        raise ConfigError(f"{len(settings)} settings are asked for, at most {MAX_SETTINGS} are previewed at once")
    return settings


def label(acceptance: AcceptanceConfig) -> str:
    """Return a setting in words: the rule with its parameters, and the cap."""
    params = "".join(f" {name}={value}" for name, value in acceptance.rule.params.items())
    cap = f", at most {acceptance.max_per_prompt} a prompt" if acceptance.max_per_prompt else ""
    return f"{_short(acceptance.rule)}{params}{cap}"


def preview(
    stored: StoredRound, current: SelectionRules, others: Sequence[SelectionRules], scoring: str = SEALED
) -> Preview:
    """Return what the current setting and others keep, with histograms of scores and lengths."""
    selections = [current, *others]
    all_sums = [_Sums() for _ in selections]
    scores, lengths = _Counts(), _Counts()
    for block in blocks(stored, selections, list(stored.units(scoring))):
        kept = [select(block.judged, selection).accepted for selection in selections]
        for sums, chosen in zip(all_sums, kept, strict=True):
            sums.add(block, chosen)
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
            sums.forecast(label(selection.acceptance), totals.num_prompts, totals.num_candidates, is_current=i == 0)
            for i, (selection, sums) in enumerate(zip(selections, all_sums, strict=True))
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
    """(3, largest value + 1): how often each value occurs among candidates that are kept, only passed, and failed."""

    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((3, 1), dtype=np.int64))

    def add(self, values: NDArray[np.int64], kept: NDArray[np.bool_], passed: NDArray[np.bool_]) -> None:
        """Count values; memory grows with the largest of them, not with their number."""
        if not len(values):
            return
        size = max(self.counts.shape[1], int(values.max()) + 1)
        self.counts = np.pad(self.counts, ((0, 0), (0, size - self.counts.shape[1])))
        for row, chosen in enumerate((kept, passed & ~kept, ~passed & ~kept)):
            self.counts[row] += np.bincount(values[chosen], minlength=size)

    def histogram(self, edges: NDArray[np.float64], unit: float) -> Histogram:
        """Return the counts by bins; the last bin holds larger values too."""
        values = np.arange(self.counts.shape[1])
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, len(edges) - 2)
        rows = [np.bincount(bins, weights=row, minlength=len(edges) - 1).astype(int).tolist() for row in self.counts]
        kept, passed, failed = map(tuple, rows)
        return Histogram(edges=tuple((edges / unit).tolist()), kept=kept, passed=passed, failed=failed)


def _edges(lengths: _Counts) -> NDArray[np.float64]:
    """Return bins of a round width up to the 99th percentile, and one more up to the longest."""
    cumulative = np.cumsum(lengths.counts.sum(axis=0))
    upper = int(np.searchsorted(cumulative, 0.99 * cumulative[-1])) + 1
    power = 10.0 ** np.floor(np.log10(max(upper / NUM_BINS, 1)))
    width = next(power * f for f in (1, 2, 5, 10) if power * f * NUM_BINS >= upper)
    edges = np.arange(0.0, upper + width, width)
    longest = len(cumulative) - 1
    return np.append(edges, longest + 1) if longest >= edges[-1] else edges


def _short(rule: Plugin) -> str:
    return rule.use.rpartition(":")[2]

"""Where the next wave of candidates goes: which prompts are open, how many each gets, and what that will bring.

Pure: arrays in, counts out. A prompt's acceptance a is known by its Beta posterior, Beta(1/2 + drawn, 1/2 + not drawn)
(Jeffreys' prior). Since every candidate's acceptance is decided alone and those of the lowest indices are kept, when to
stop may depend on all that was seen, and what is kept still follows the rule's target.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from rsft_cluster.acceptance.selection import posterior_mean
from rsft_cluster.config import BudgetConfig

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class Standing:
    """How far every prompt of a round is; arrays with a place a prompt."""

    num_candidates: Counts
    """Asked for so far."""
    num_drawn: Counts
    """Of those, the ones whose u was below their probability."""
    num_kept: Counts
    """Of those, the distinct ones."""
    goals: Counts
    """Distinct ones that are wanted."""
    is_lost: NDArray[np.bool_]
    """Cannot be answered: quarantined."""


@dataclass(frozen=True)
class Allowance:
    """What the run's budget still allows; None is no limit."""

    num_candidates: int | None = None
    num_tokens: int | None = None
    tokens_a_candidate: float = 0.0
    """Mean so far; before the first wave 0, or with `num_tokens` the most that a candidate may have."""

    def candidates(self) -> int | None:
        """Return how many candidates may still be asked for."""
        limits = [] if self.num_candidates is None else [self.num_candidates]
        if self.num_tokens is not None:
            limits.append(int(self.num_tokens / self.tokens_a_candidate))
        return max(0, min(limits)) if limits else None


@dataclass(frozen=True)
class Wave:
    """The next wave, and its forecast."""

    counts: Counts
    """Candidates for every prompt; 0 for those that are done, futile or out of budget."""
    num_done: int
    """Prompts that have what they need."""
    num_futile: int
    """Prompts given up, or at the most candidates that a prompt gets."""
    num_over_budget: int
    """Open prompts that the run's budget does not reach."""
    expected_accepted: float
    expected_tokens: float | None

    @property
    def num_candidates(self) -> int:
        """Candidates of the wave."""
        return int(self.counts.sum())

    def describe(self) -> str:
        """Return the forecast in one line."""
        tokens = "" if self.expected_tokens is None else f", about {self.expected_tokens:,.0f} tokens"
        left = f"; {self.num_over_budget:,} open prompts are over the run's budget" if self.num_over_budget else ""
        return (
            f"{self.num_candidates:,} candidates for {np.count_nonzero(self.counts):,} prompts{tokens}, "
            f"about {self.expected_accepted:,.0f} to be accepted; {self.num_done:,} prompts are done, "
            f"{self.num_futile:,} given up{left}"
        )


def next_wave(standing: Standing, budget: BudgetConfig, *, most: int, allowance: Allowance) -> Wave:
    """Return the wave that follows on a standing; `most` is the most candidates that a prompt gets in a round."""
    assert budget.wave_size is not None
    done = standing.num_kept >= standing.goals
    futile = ~done & (standing.is_lost | (standing.num_candidates >= most) | is_futile(standing, budget, most))
    is_open = ~done & ~futile
    acceptance = posterior_mean(standing.num_drawn, standing.num_candidates)
    counts = np.where(is_open, _spread(acceptance, is_open, budget), 0)
    counts = np.minimum(counts, most - standing.num_candidates)
    allowed = allowance.candidates()
    reached = is_open if allowed is None else is_open & (np.cumsum(counts) <= allowed)
    counts = np.where(reached, counts, 0)
    known = allowance.tokens_a_candidate
    return Wave(
        counts=counts,
        num_done=int(done.sum()),
        num_futile=int(futile.sum()),
        num_over_budget=int((is_open & ~reached).sum()),
        expected_accepted=float((counts * acceptance).sum()),
        expected_tokens=float(counts.sum() * known) if known else None,
    )


def is_futile(standing: Standing, budget: BudgetConfig, most: int) -> NDArray[np.bool_]:
    """Return where the candidates that a prompt may still get hardly bring what is wanted.

    That is where the chance of so many acceptances among them, by the posterior (a beta-binomial), is below
    `futile_below`. Without a goal that can be met nothing is futile.
    """
    left = most - standing.num_candidates
    missing = standing.goals - standing.num_kept
    rejected = standing.num_candidates - standing.num_drawn
    chance = betabinom.sf(missing - 1, np.maximum(left, 0), standing.num_drawn + 0.5, rejected + 0.5)
    return (standing.goals <= most) & (chance < budget.futile_below)


def spent(allowance: Allowance, *, num_candidates: int, num_tokens: int) -> Allowance:
    """Return what is left after a wave."""
    return replace(
        allowance,
        num_candidates=None if allowance.num_candidates is None else allowance.num_candidates - num_candidates,
        num_tokens=None if allowance.num_tokens is None else allowance.num_tokens - num_tokens,
    )


def _spread(acceptance: NDArray[np.float64], is_open: NDArray[np.bool_], budget: BudgetConfig) -> Counts:
    """Return how many candidates open prompts get, `wave_size` each on average."""
    size = budget.wave_size or 1
    if budget.allocation != "variance" or not is_open.any():
        return np.full(len(acceptance), size, dtype=np.int64)
    weights = acceptance**-0.5
    share = weights / weights[is_open].mean()
    return np.maximum(1, np.rint(size * share)).astype(np.int64)

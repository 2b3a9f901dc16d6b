"""How fast a constraint judges, and from when on a call of it is slow: late, then overdue."""

import math
from dataclasses import dataclass

LATE, OVERDUE = 1.5, 1.1
"""A call is late after LATE times the mean, and overdue after OVERDUE times the most CPU time of any call that came
back. A late call does not keep other candidates waiting: they go to another process. An overdue one goes on at the
lowest priority, but only where calls do hang."""
MIN_LATE_S, MIN_OVERDUE_S = 0.02, 0.02
PLAGUED = 0.02
"""Share of killed calls above which slow ones are taken to hang."""


@dataclass
class Speed:
    """What a constraint has taken for the candidates so far."""

    num: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    """Most CPU time of a candidate whose call came back."""
    num_killed: int = 0
    """Calls killed at their deadline."""
    hanging_s: float = 0.0
    """Time that the killed calls had taken before they were late."""

    @property
    def mean_s(self) -> float | None:
        """Mean time for a candidate; None before the first."""
        return self.total_s / self.num if self.num else None

    @property
    def is_plagued(self) -> bool:
        """Whether calls hang often enough to suspect slow ones."""
        return self.num_killed > PLAGUED * self.num

    def late_s(self, num_candidates: int) -> float:
        """Return the time after which a call is late; infinite while the speed is not known."""
        return math.inf if self.mean_s is None else max(MIN_LATE_S, LATE * self.mean_s * num_candidates)

    def overdue_s(self, num_candidates: int) -> float:
        """Return the CPU time after which a call is overdue; infinite while the speed is not known."""
        return math.inf if self.mean_s is None else max(MIN_OVERDUE_S, OVERDUE * self.longest_s * num_candidates)

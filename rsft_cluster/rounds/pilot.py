"""Which temperature and threshold suit a policy now: B-STaR's balance score on a few prompts; pure.

Zeng et al. 2025: a prompt's balance score is min(n'/n*, 1) n'/n, n the candidates that the threshold selects, n' the
distinct ones among them that pass, n* as many as are enough. It is low where few different right answers are found
(too cold, or too strict) and where the selected are often wrong (too hot, or too lax).
"""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from rsft_cluster.config import PilotConfig
from rsft_cluster.records import PilotChoice

COLUMNS = ("prompt_id", "content", "score", "passed")
"""What of SCORE a balance score looks at."""


def balance_score(scores: pa.Table, *, min_score: float, wanted: int) -> float:
    """Return the mean balance score of the prompts of SCORE rows; one of which nothing is selected counts 0."""
    groups: dict[str, tuple[int, set[str]]] = {}
    for prompt, content, score, passed in zip(*(scores.column(c).to_pylist() for c in COLUMNS), strict=True):
        num_selected, right = groups.setdefault(prompt, (0, set()))
        if passed is None or score < min_score:
            continue
        if passed:
            right.add(content)
        groups[prompt] = (num_selected + 1, right)
    found = [min(len(r) / wanted, 1.0) * len(r) / n if n else 0.0 for n, r in groups.values()]
    return float(np.mean(found)) if found else 0.0


def choose(pilot: PilotConfig, judged: Mapping[float, pa.Table]) -> PilotChoice:
    """Return the best combination, given SCORE rows by temperature; of equal ones the first in the config's order."""
    tried = [
        (temperature, min_score, balance_score(judged[temperature], min_score=min_score or 0.0, wanted=pilot.wanted))
        for temperature in pilot.temperatures
        for min_score in pilot.min_scores or (None,)
    ]
    temperature, min_score, _ = max(tried, key=lambda one: one[2])
    return PilotChoice(
        temperature=temperature, min_score=min_score, num_prompts=pilot.num_prompts, balance=tuple(tried)
    )

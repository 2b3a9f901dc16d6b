"""Prompts on their way through a session: waiting, prefilled, finished."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from rsft_cluster.generators.base import Completion
from rsft_cluster.generators.completing import Row
from rsft_cluster.generators.engine.blocks import BLOCK


class Group:
    """A prompt and its candidates. It gets all of its completions or a refusal."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.prompt = rows[0].prompt
        self.token_ids = rows[0].prompt_token_ids
        self.keys = np.array([row.key for row in rows], np.uint64).view(np.int64)
        self.num_blocks = -(-len(self.token_ids) // BLOCK)
        """That the prompt's tokens fill."""
        self.finished: dict[int, Completion] = {}
        self.forget()

    def forget(self) -> None:
        """Go back to before the prefill; finished candidates stay finished."""
        self.waiting = deque(i for i in range(len(self.rows)) if i not in self.finished)
        """Candidates that neither have a row nor are finished, lowest first."""
        self.number = -1
        """Among the prefilled ones."""
        self.blocks: list[int] = []
        self.num_prefilled = 0
        """Tokens in the store."""
        self.first: dict[int, np.ndarray] = {}
        """Token and log-probabilities, drawn at the prefill for each candidate that waited then."""
        self.num_live = 0
        """Candidates that have a row."""

    @property
    def is_finished(self) -> bool:
        """Whether all candidates are."""
        return len(self.finished) == len(self.rows)

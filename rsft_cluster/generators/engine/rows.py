"""The rows that are being decoded, host side: dense arrays, so that row 0 to `num` are always the live ones."""

import numpy as np


class Rows:
    """Up to `capacity` growing completions."""

    def __init__(self, capacity: int, *, max_tokens: int, max_blocks: int) -> None:
        self.capacity = capacity
        self.num = 0
        self.group = np.zeros(capacity, np.int64)
        """Number of the row's prompt among those prefilled."""
        self.index = np.zeros(capacity, np.int64)
        """Which of the prompt's candidates it is."""
        self.key = np.zeros(capacity, np.int64)
        self.prompt_length = np.zeros(capacity, np.int64)
        self.length = np.zeros(capacity, np.int64)
        """Tokens drawn; all but the last are in the store."""
        self.last = np.zeros(capacity, np.int64)
        self.tokens = np.zeros((capacity, max_tokens), np.int32)
        self.logprob = np.zeros(capacity)
        self.target_logprob = np.zeros(capacity)
        self.num_blocks = np.zeros(capacity, np.int64)
        self.blocks = np.zeros((capacity, max_blocks), np.int64)
        self._columns = [value for value in vars(self).values() if isinstance(value, np.ndarray)]

    @property
    def own(self) -> np.ndarray:
        """A row's own tokens in the store."""
        return self.length - 1

    def add(self, *, group: int, index: int, key: int, prompt_length: int) -> int:
        """Begin a row that has drawn nothing; return its number."""
        row = self.num
        self.num += 1
        self.group[row], self.index[row], self.key[row], self.prompt_length[row] = group, index, key, prompt_length
        self.length[row] = self.num_blocks[row] = 0
        self.logprob[row] = self.target_logprob[row] = 0.0
        return row

    def push(self, rows: slice | np.ndarray, tokens: np.ndarray, logprobs: np.ndarray, targets: np.ndarray) -> None:
        """Add a token to each of the rows."""
        numbers = np.arange(self.num)[rows]
        self.tokens[numbers, self.length[numbers]] = tokens
        self.last[numbers] = tokens
        self.length[numbers] += 1
        self.logprob[numbers] += logprobs
        self.target_logprob[numbers] += targets

    def remove(self, row: int) -> int:
        """End a row; the last row takes its number. Return the number that row had."""
        self.num -= 1
        for column in self._columns:
            column[row] = column[self.num]
        return self.num

    def by_group(self, num_groups: int, *, fill: int) -> np.ndarray:
        """Return the rows of every group, (num_groups, width), filled up with `fill`."""
        return listed(self.group[: self.num], num_groups, fill=fill)


def listed(values: np.ndarray, num_values: int, *, fill: int) -> np.ndarray:
    """Return where each of the values 0 to `num_values` stands in `values`, (num_values, width), filled up with `fill`.

    The width is the most that any of them has, 1 at least; larger values are left out.
    """
    order = np.argsort(values, kind="stable")
    order = order[: np.searchsorted(values[order], num_values)]
    found = values[order]
    counts = np.bincount(found, minlength=num_values)
    table = np.full((num_values, max(int(counts.max(initial=0)), 1)), fill, np.int64)
    table[found, np.arange(len(order)) - (np.cumsum(counts) - counts)[found]] = order
    return table

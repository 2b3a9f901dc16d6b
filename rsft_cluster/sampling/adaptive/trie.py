"""What is left of one prompt's proposal, prefix by prefix, after rejections.

Adaptive rejection sampling on sequences: with pi the proposal, a the acceptance probability and left(y) the share of a
completion's probability that is left, a trie T draws with q(y) = pi(y) left(y) / L(T), L(T) = sum pi left, and y is
accepted with a(y) / left(y). As long as left >= a everywhere, P(accept y) = pi(y) a(y) / L(T): what is accepted follows
pi a / Z whatever T is, and the nearer L(T) is to Z the more of it. So T may lag behind what is known, as long as a
whole completion is drawn from one T and divided by the share left in that one. To kill prefixes that no accepted
completion begins with is constrained adaptive rejection sampling (CARS, arXiv 2510.01902); a left(y) between 0 and 1
carries the envelope of Gilks and Wild (1992), pressed down where it was looked at, over to sequences.

Masses are kept as sums of positive terms and never as one minus something, so they are precise near 0 as near 1. A
token's probability is that of the first time it was remembered: later forwards differ in their last bits, and the
masses of a prefix's tokens would no longer add up.
"""

import math
from collections.abc import Sequence

import numpy as np

from rsft_cluster.generators.base import Known

MAX_NODES = 20_000
"""Prefixes a trie holds, at some 800 bytes each. Beyond that nothing new is remembered; draws stay exact."""
ROUNDING = 1e-12
"""A smaller share than this of a mass is its rounding."""


class Node:
    """A prefix of completions, and the law after it (generators.base.Law)."""

    __slots__ = ("_known", "children", "left", "probability", "rest")

    def __init__(self, probability: float) -> None:
        self.probability = probability
        """Of the prefix's last token under the proposal."""
        self.left = 1.0
        """Share of the probability of all that begins so that is left."""
        self.rest = 1.0
        """Probability of all next tokens without a node."""
        self.children: dict[int, Node] = {}
        self._known: Known | None = None

    @property
    def known(self) -> Known:
        """The next tokens that have a node."""
        if self._known is None:
            nodes = self.children.values()
            self._known = Known(
                np.fromiter(self.children, np.int64),
                np.array([node.probability for node in nodes], np.float64),
                np.array([node.left for node in nodes], np.float64),
            )
        return self._known

    def after(self, token: int) -> "Node | None":
        """Return the law one token further on; None for the proposal."""
        return self.children.get(token)

    def add(self, token: int, logprob: float) -> "Node":
        """Remember a next token, taking its probability out of the rest."""
        share = min(0.0, logprob - math.log(self.rest)) if self.rest > 0.0 else 0.0
        node = Node(self.rest * math.exp(share))
        others = -math.expm1(share)
        self.rest *= others if others > ROUNDING else 0.0
        self.children[token] = node
        self._known = None
        return node

    def cut(self, left: float) -> int:
        """Leave so much of all that begins so, and forget what follows; return how many prefixes are forgotten."""
        num_forgotten, below = 0, list(self.children.values())
        while below:
            num_forgotten += 1
            below += below.pop().children.values()
        self.left, self.children, self._known = left, {}, None
        return num_forgotten

    def reckon(self) -> None:
        """Find again what is left, after something changed below."""
        self.left = self.rest + math.fsum(node.probability * node.left for node in self.children.values())
        self._known = None


class Trie:
    """What is left of the proposal for one prompt."""

    def __init__(self, max_nodes: int = MAX_NODES) -> None:
        self.root = Node(1.0)
        self._max_nodes = max_nodes
        self.num_nodes = 1

    @property
    def left(self) -> float:
        """Mass that is left of the whole proposal; it falls to the acceptance rate of plain rejection."""
        return self.root.left

    @property
    def is_exhausted(self) -> bool:
        """Whether nothing is left but rounding."""
        return self.left < ROUNDING

    def look_up(self, token_ids: Sequence[int]) -> tuple[float, int]:
        """Return the share that is left of a completion, and how many of its tokens tell that."""
        node = self.root
        for depth, token in enumerate(token_ids):
            if node.left == 0.0:
                return 0.0, depth
            if token not in node.children:
                return 1.0, depth
            node = node.children[token]
        return node.left, len(token_ids)

    def remember(self, token_ids: Sequence[int], logprobs: Sequence[float], left: float) -> None:
        """Leave the share `left` of a completion, or of all that begin with a prefix.

        `logprobs` are those of the tokens as they were drawn. A share below the completion's acceptance probability,
        or below the largest of those that begin so, would make the accepted ones follow something else.
        """
        if left >= 1.0:
            return
        path = [self.root]
        for token, logprob in zip(token_ids, logprobs, strict=True):
            node = path[-1]
            if node.left == 0.0:
                return
            child = node.children.get(token)
            if child is None:
                if self.num_nodes >= self._max_nodes:
                    return
                child = node.add(token, logprob)
                self.num_nodes += 1
            path.append(child)
        self.num_nodes -= path.pop().cut(left)
        for node in reversed(path):
            node.reckon()

"""How completions end: what a stop string cut off is given the end token that sampling did not wait for.

Nothing changes in sampling, which stops there before it would ask for another token; but a policy that is used where
nothing stops it would have learned never to end.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import AutoConfig, GenerationConfig

from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import end_token_ids, load_tokenizer, num_context_tokens

TokenIds = NDArray[np.int32]


@dataclass(frozen=True)
class Ending:
    """The end token of a policy, and when it is missing."""

    token_id: int | None
    """The tokenizer's end-of-sequence token; without one nothing is ever added."""
    ends: frozenset[int]
    """All tokens with which the policy ends by itself."""
    num_context_tokens: int | None

    @classmethod
    def of(cls, policy: PolicySpec) -> "Ending":
        """Return the ending of a policy."""
        tokenizer = load_tokenizer(policy)
        remote = {"revision": policy.revision, "trust_remote_code": policy.trust_remote_code}
        config = AutoConfig.from_pretrained(policy.model, **remote)
        try:
            listed = GenerationConfig.from_pretrained(policy.model, revision=policy.revision or "main").eos_token_id
        except OSError:  # it has none
            listed = getattr(config.get_text_config(decoder=True), "eos_token_id", None)
        ends = end_token_ids(tokenizer, listed)
        own = tokenizer.eos_token_id
        return cls(own if isinstance(own, int) else None, ends, num_context_tokens(config))

    def complete(self, prompt: TokenIds, completion: TokenIds) -> TokenIds:
        """Return a completion that ended by itself or by a stop string, with its end token where there is room."""
        length, limit = len(prompt) + len(completion), self.num_context_tokens
        is_full = limit is not None and length >= limit
        if self.token_id is None or int(completion[-1]) in self.ends or is_full:
            return completion
        return np.append(completion, np.int32(self.token_id))

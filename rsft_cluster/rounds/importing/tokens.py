"""Token ids of what a file brings as text alone, as the policy would read and end it."""

from collections.abc import Sequence
from functools import cached_property
from typing import cast

from transformers import AutoConfig, PreTrainedTokenizerBase

from rsft_cluster.errors import ConfigError
from rsft_cluster.policies.references import localised
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import encode_prompt, load_tokenizer
from rsft_cluster.rounds.importing.completions import ImportedCompletion
from rsft_cluster.schemas import Message


class Encoder:
    """The policy's tokenizer and vocabulary, loaded when they are first needed."""

    def __init__(self, policy: PolicySpec) -> None:
        self.policy = policy

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(localised(self.policy))

    @cached_property
    def vocabulary(self) -> int:
        """How many tokens the policy has; raises ConfigError where its config cannot be read."""
        policy = localised(self.policy)
        try:
            config = AutoConfig.from_pretrained(
                policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
            )
        except (OSError, ValueError) as error:
            raise ConfigError(f"policy.model {policy.model}: its config cannot be loaded: {error}") from error
        return config.get_text_config(decoder=True).vocab_size

    @property
    def _end(self) -> int:
        end = self._tokenizer.eos_token_id
        if not isinstance(end, int):
            model = self.policy.model
            raise ConfigError(f"{model}: its tokenizer has no end-of-sequence token; bring token_ids with completions")
        return end

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """Return what the policy would continue; raises UnencodablePromptError where these messages do not fit."""
        return encode_prompt(self._tokenizer, messages, self.policy.chat_template)

    def completion(self, answer: ImportedCompletion) -> list[int]:
        """Return what was answered; it ends with the end-of-sequence token unless it was cut off."""
        if answer.token_ids is not None:
            return list(answer.token_ids)
        ids = cast("list[int]", self._tokenizer(answer.text, add_special_tokens=False)["input_ids"])
        return [*ids, self._end] if answer.finish_reason == "stop" else ids

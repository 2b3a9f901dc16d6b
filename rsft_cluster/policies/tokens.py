"""Messages to token ids and back, and the tokens that end an answer.

A chat template is applied exactly once and its text tokenised exactly once, so a prompt starts with at most one
beginning-of-sequence token. This module knows nothing about sampling and loads no weights.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

from jinja2 import TemplateError
from transformers import AutoTokenizer, PretrainedConfig, PreTrainedTokenizerBase

from rsft_cluster.errors import ConfigError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

RAW = "raw"


class UnencodablePromptError(ConfigError):
    """A prompt cannot be encoded for the policy; others may be."""


def load_tokenizer(policy: PolicySpec) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer. Raises ConfigError naming the model where there is none."""
    try:
        return AutoTokenizer.from_pretrained(
            policy.model, revision=policy.revision, trust_remote_code=policy.trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ConfigError(f"policy.model {policy.model}: its tokenizer cannot be loaded: {error}") from error


def encode_prompt(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], chat_template: str | None = None
) -> list[int]:
    """Return the token ids that the policy continues.

    Chat messages go through `chat_template`, or else the tokenizer's own, with the cue for an answer at the end.
    One message of role `raw` is plain text, after whatever the tokenizer itself puts before a text. Raises
    ConfigError without any template, UnencodablePromptError where these messages do not fit it.
    """
    if any(message.role == RAW for message in messages):
        return _encode_raw(tokenizer, messages)
    if chat_template is None and tokenizer.chat_template is None:
        raise ConfigError(
            f"{tokenizer.name_or_path}: has no chat template, and the prompts are chat messages. Give raw text as "
            "prompts, or a Jinja file as policy.chat_template, or choose a model that has a template"
        )
    conversation = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(
            conversation, chat_template=chat_template, tokenize=False, add_generation_prompt=True
        )
    except TemplateError as error:
        raise UnencodablePromptError(f"the chat template refuses these messages: {error}") from error
    return _with_one_bos(tokenizer, _ids(tokenizer, str(text), add_special_tokens=False))


def decode(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Return the text of token ids, special tokens left out and spaces as they are."""
    text = tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return str(text)


def end_token_ids(
    tokenizer: PreTrainedTokenizerBase,
    generation_eos: int | Iterable[int] | None = None,
    stop_token_ids: Iterable[int] = (),
) -> frozenset[int]:
    """Return every token that ends a completion.

    The tokenizer's end-of-sequence token, those of the checkpoint's generation_config (chat models list their
    end-of-turn token there, and nothing else is taken from it), and the configured ones.
    """
    listed = [generation_eos] if isinstance(generation_eos, int) else list(generation_eos or ())
    own = _special_id(tokenizer.eos_token_id)
    return frozenset([*listed, *stop_token_ids, *([] if own is None else [own])])


def added_token_ids(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> frozenset[int]:
    """Return the ids of those texts that are one added token, special or not."""
    added: Mapping[str, int] = cast("Any", tokenizer).get_added_vocab()
    return frozenset(added[text] for text in texts if text in added)


def pad_token_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return a filler for unused positions: the pad token, else the end token, else 0.

    Padding is recognised by length and never by value, so a policy may well draw this id.
    """
    pad, end = _special_id(tokenizer.pad_token_id), _special_id(tokenizer.eos_token_id)
    return next(token for token in (pad, end, 0) if token is not None)


def num_context_tokens(config: PretrainedConfig) -> int | None:
    """Return how many positions the model has; None where its architecture sets no limit."""
    # transformers maps n_positions, n_ctx and their like to this one name; recurrent models lack it.
    limit: Any = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return None if limit is None else int(limit)


def _encode_raw(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    if len(messages) != 1:
        roles = [message.role for message in messages]
        raise UnencodablePromptError(f"a raw message stands alone in its prompt; the roles here are {roles}")
    text = messages[0].content
    plain = _ids(tokenizer, text, add_special_tokens=False)
    # What the tokenizer puts after a text (an end token) would end the prompt, so only what comes before is kept.
    around = _ids(tokenizer, text, add_special_tokens=True)
    if not plain:
        return around[:1] if around[:1] == [tokenizer.bos_token_id] else []
    return _with_one_bos(tokenizer, _before(plain, around) + plain)


def _before(plain: list[int], around: list[int]) -> list[int]:
    """Return the special tokens that `around` has before `plain`."""
    starts = range(len(around) - len(plain) + 1)
    start = next((i for i in starts if around[i : i + len(plain)] == plain), 0)
    return around[:start]


def _with_one_bos(tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> list[int]:
    bos = tokenizer.bos_token_id
    while bos is not None and token_ids[:2] == [bos, bos]:
        token_ids = token_ids[1:]
    return token_ids


def _special_id(token: Any) -> int | None:
    """Return a special token's id as an int; transformers types it as anything."""
    return None if token is None else int(token)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str, *, add_special_tokens: bool) -> list[int]:
    # Lengths are checked against the model's context; the tokenizer's own limit would only warn.
    encoded = tokenizer(text, add_special_tokens=add_special_tokens, verbose=False)
    return [int(token) for token in encoded["input_ids"]]  # pyright: ignore[reportGeneralTypeIssues]

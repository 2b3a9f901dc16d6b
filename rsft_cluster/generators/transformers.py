"""The generator that decodes a Hugging Face causal language model, in batches, by its own loop.

Prompts, decoding and keys in; completions and refusals out. A checkpoint's generation_config gives its end
tokens and nothing else. In float32 the tokens of a candidate do not depend on the batch it was decoded in.
"""

import gc
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.nn import Embedding
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators import encoding
from rsft_cluster.generators.base import Completion, Decoding, PolicySpec, Prompt, Refusal
from rsft_cluster.generators.batch import BatchDecoder, Row
from rsft_cluster.generators.stopping import StopRule

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(slots=True)
class _Collected:
    """Completions of one prompt, held back until all are there: a prompt gets all of them or a refusal."""

    num_expected: int
    completions: list[Completion]


class TransformersGenerator:
    """A causal language model on one device."""

    def __init__(self, policy: PolicySpec) -> None:
        _fix_numerics(policy)
        self._policy = policy
        self.tokenizer = encoding.load_tokenizer(policy)
        self.model = _load_model(policy)
        self._num_context_tokens = encoding.num_context_tokens(self.model.config)
        self._num_known_tokens = cast("Embedding", self.model.get_input_embeddings()).num_embeddings
        self._decoder = BatchDecoder(self.model, pad_token_id=encoding.pad_token_id(self.tokenizer))

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal]:
        """Yield one Completion for every key of every prompt, or one Refusal for a prompt.

        Prompts that do not fit the model are refused before anything is sampled. The batches follow from the
        prompts, their order and `decoding.batch_size` alone.
        """
        rows: list[list[Row]] = []
        for i, prompt in enumerate(prompts):
            token_ids = self._encode(prompt, decoding)
            if isinstance(token_ids, str):
                yield Refusal(i, token_ids)
            elif keys[i]:
                rows.append([Row(i, j, key, token_ids) for j, key in enumerate(keys[i])])
        yield from self._decode(rows, decoding)

    def _encode(self, prompt: Prompt, decoding: Decoding) -> tuple[int, ...] | str:
        """Return a prompt's token ids, or why it cannot be answered."""
        try:
            token_ids = encoding.encode_prompt(self.tokenizer, prompt.messages, self._policy.chat_template)
        except encoding.UnencodablePromptError as error:
            return str(error)
        if not token_ids:
            return "empty: the prompt has no tokens to continue"
        if max(token_ids) >= self._num_known_tokens:
            return f"unknown token: id {max(token_ids)}, and the model knows {self._num_known_tokens}"
        total, context = len(token_ids) + decoding.max_tokens, self._num_context_tokens
        if context is not None and total > context:
            return (
                f"too long: {len(token_ids)} prompt tokens + {decoding.max_tokens} max_tokens = {total}, "
                f"the model's context is {context}"
            )
        return tuple(token_ids)

    def _decode(self, prompts: Sequence[Sequence[Row]], decoding: Decoding) -> Iterator[Completion | Refusal]:
        """Decode the rows of every prompt, halving a batch that does not fit in memory until it does."""
        rule = self._stop_rule(decoding)
        collected = {rows[0].prompt: _Collected(len(rows), []) for rows in prompts}
        todo = _batches(prompts, decoding.batch_size if self._decoder.mixes_lengths else 1)
        todo.reverse()
        while todo:
            batch = [row for row in todo.pop() if row.prompt in collected]
            if not batch:
                continue
            done: set[tuple[int, int]] = set()
            for completion in self._until_out_of_memory(batch, decoding, rule):
                done.add((completion.prompt, completion.index))
                group = collected[completion.prompt]
                group.completions.append(completion)
                if len(group.completions) == group.num_expected:
                    yield from collected.pop(completion.prompt).completions
            left = [row for row in batch if (row.prompt, row.index) not in done]
            if len(left) == 1 == len(batch):
                del collected[left[0].prompt]
                yield Refusal(left[0].prompt, _out_of_memory(left[0], decoding))
            elif left:
                half = (min(len(left), decoding.batch_size) + 1) // 2
                logger.warning("event=out_of_memory rows=%d next=%d", len(left), half)
                todo += [left[start : start + half] for start in range(0, len(left), half)][::-1]

    def _until_out_of_memory(self, batch: Sequence[Row], decoding: Decoding, rule: StopRule) -> Iterator[Completion]:
        """Yield the batch's completions, fewer than its rows where memory runs out."""
        try:
            for completions in self._decoder.decode(batch, decoding, rule=rule, num_rows=decoding.batch_size):
                yield from completions
        except torch.OutOfMemoryError:
            logger.debug("event=out_of_memory", exc_info=True)
        else:
            return
        # Outside of the handler: the traceback held the tensors of the failed batch.
        gc.collect()
        if self.model.device.type == "cuda":
            torch.cuda.empty_cache()

    def _stop_rule(self, decoding: Decoding) -> StopRule:
        listed = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = encoding.end_token_ids(self.tokenizer, listed, decoding.stop_token_ids)
        # A stop string that is a token of its own may be a special one, which decoded text leaves out.
        ends |= encoding.added_token_ids(self.tokenizer, decoding.stop)
        return StopRule(ends, decoding.stop, lambda ids: encoding.decode(self.tokenizer, ids))


def _batches(prompts: Sequence[Sequence[Row]], batch_size: int) -> list[list[Row]]:
    """Group whole prompts of similar length, longest first, so that memory runs out early or not at all.

    A prompt with more rows than `batch_size` makes a batch of its own.
    """
    batches: list[list[Row]] = []
    for rows in sorted(prompts, key=lambda rows: -len(rows[0].prompt_token_ids)):
        if batches and len(batches[-1]) + len(rows) <= batch_size:
            batches[-1].extend(rows)
        else:
            batches.append(list(rows))
    return batches


def _out_of_memory(row: Row, decoding: Decoding) -> str:
    return (
        f"out of memory: one completion of {len(row.prompt_token_ids)} prompt tokens and up to "
        f"{decoding.max_tokens} more does not fit on the device"
    )


def _load_model(policy: PolicySpec) -> PreTrainedModel:
    # A progress bar an actor would drown the job's log.
    disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            policy.model,
            revision=policy.revision,
            dtype=DTYPES[policy.dtype],
            attn_implementation=policy.attention,
            use_safetensors=True,
            trust_remote_code=policy.trust_remote_code,
        )
    except (OSError, ValueError, ImportError) as error:
        raise ConfigError(f"policy.model {policy.model}: cannot be loaded: {error}") from error
    model.eval()
    model.to(policy.device)  # pyright: ignore[reportArgumentType] a decorator hides the signature
    return model


def _fix_numerics(policy: PolicySpec) -> None:
    """Make the same call give the same bytes: deterministic kernels, full float32, a fixed number of threads."""
    # cuBLAS reads this when it starts; without it its matrix products are not reproducible.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing reads memory that was not written, so filling it would be time lost.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue] a property made at run time
    torch.set_float32_matmul_precision("highest")
    if policy.device == "cpu":
        torch.set_num_threads(policy.threads)

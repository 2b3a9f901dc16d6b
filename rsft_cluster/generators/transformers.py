"""The generator that samples from a Hugging Face causal language model, by its own loop.

Prompts, decoding and keys in; completions and refusals out. A checkpoint's generation_config gives its end
tokens and nothing else. In float32 the tokens of a candidate do not depend on the batch it was decoded in.
"""

import ctypes
import logging
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Literal, cast

import torch
from torch.nn import Embedding
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.base import Completion, Decoding, Law, Prompt, Refusal
from rsft_cluster.generators.completing import Row
from rsft_cluster.generators.engine.compiled import kernel_for
from rsft_cluster.generators.engine.engine import Engine, Limits
from rsft_cluster.generators.engine.layers import compile_layers
from rsft_cluster.generators.engine.packing import pack
from rsft_cluster.generators.engine.probe import UnsupportedModelError, layer_shapes
from rsft_cluster.generators.plain.batches import BatchedDecoder
from rsft_cluster.generators.stopping import StopRule
from rsft_cluster.policies import tokens
from rsft_cluster.policies.loading import load_model
from rsft_cluster.policies.spec import PolicySpec

logger = logging.getLogger(__name__)

CPU_KV_BYTES = 2 << 30
"""Memory for keys and values on a CPU."""
GPU_SHARE = 0.85
"""Share of a GPU's memory for weights, keys and values; the rest is for activations and logits."""
MALLOPT = (-1, 1 << 30), (-3, 1 << 25)
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h, in bytes; more than the latter is not taken."""
PREFILL_TOKENS = {"cpu": 512, "cuda": 4096}
"""Prompt tokens a forward, by device."""


class TransformersGenerator:
    """A causal language model on one device."""

    def __init__(
        self,
        policy: PolicySpec,
        *,
        engine: Literal["blocks", "batches"] = "blocks",
        kv_bytes: int | None = None,
        packed: bool = True,
        compiled: bool | None = None,
    ) -> None:
        """Load the policy.

        `engine` is `blocks` for continuous sampling, or `batches` for plain batched decoding, which a model that the
        first does not fit gets in any case. `kv_bytes` bounds the memory for keys and values. `packed` is whether the
        engine packs weights for a CPU. `compiled` is whether it compiles attention, norms and gates for one: left
        out, where numba is installed; true, it must be. Last bits of log-probabilities differ, in float32 no draws do.
        """
        _fix_numerics(policy)
        self._policy = policy
        self.tokenizer = tokens.load_tokenizer(policy)
        self.model = _load_model(policy)
        self._num_context_tokens = tokens.num_context_tokens(self.model.config)
        self._num_known_tokens = cast("Embedding", self.model.get_input_embeddings()).num_embeddings
        self.decoder = (
            engine == "blocks" and _engine(self.model, policy, kv_bytes, packed=packed, compiled=compiled)
        ) or BatchedDecoder(self.model, pad_token_id=tokens.pad_token_id(self.tokenizer))
        _libc("malloc_trim", 0)  # loading leaves as much behind as the weights take

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        keys: Sequence[Sequence[int]],
        laws: Sequence[Law] | None = None,
    ) -> Iterator[Completion | Refusal]:
        """Yield one Completion for every key of every prompt, or one Refusal for a prompt.

        Prompts that do not fit the model are refused before anything is sampled. What is computed together follows
        from the prompts, their order and the settings alone. `laws` are what prompts are answered by in place of the
        proposal; plain batched decoding alone can.
        """
        if laws is not None and not isinstance(self.decoder, BatchedDecoder):
            raise ConfigError(
                "candidates are drawn by laws in plain batches alone; build the generator with engine: batches"
            )
        rows: list[list[Row]] = []
        for i, prompt in enumerate(prompts):
            token_ids = self._encode(prompt, decoding)
            if isinstance(token_ids, str):
                yield Refusal(i, token_ids)
            elif keys[i]:
                law = laws[i] if laws is not None else None
                rows.append([Row(i, j, key, token_ids, law) for j, key in enumerate(keys[i])])
        yield from self.decoder.run(rows, decoding, self._stop_rule(decoding))

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return tokens.decode(self.tokenizer, token_ids)

    def _encode(self, prompt: Prompt, decoding: Decoding) -> tuple[int, ...] | str:
        """Return a prompt's token ids, or why it cannot be answered."""
        try:
            token_ids = tokens.encode_prompt(self.tokenizer, prompt.messages, self._policy.chat_template)
        except tokens.UnencodablePromptError as error:
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

    def _stop_rule(self, decoding: Decoding) -> StopRule:
        listed = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ends = tokens.end_token_ids(self.tokenizer, listed, decoding.stop_token_ids)
        # A stop string that is a token of its own may be a special one, which decoded text leaves out.
        ends |= tokens.added_token_ids(self.tokenizer, decoding.stop)
        return StopRule(ends, decoding.stop, self.decode)


def _engine(
    model: PreTrainedModel, policy: PolicySpec, kv_bytes: int | None, *, packed: bool, compiled: bool | None
) -> Engine | None:
    """Return the engine, with the weights packed on a CPU; None, and a word in the log, for a model it does not fit."""
    can_compile = model.device.type == "cpu" and compiled is not False and kernel_for(model.dtype) is not None
    if compiled and not can_compile:
        raise ConfigError(
            "compiled: nothing can be compiled here; install rsft-cluster[cpu] for a CPU, or leave it out"
        )
    try:
        layers = layer_shapes(model, compiled=can_compile)
    except UnsupportedModelError as error:
        logger.warning("event=batched_decoding model=%s reason=%s", policy.model, error)
        return None
    if can_compile:
        compile_layers(model)  # before they are packed: it puts matrices together
    if packed and model.device.type == "cpu":
        pack(model)
    limits = Limits(kv_bytes or _kv_bytes(model), PREFILL_TOKENS[model.device.type])
    return Engine(model, layers, limits, compiled=can_compile)


def _kv_bytes(model: PreTrainedModel) -> int:
    """Return the memory for keys and values: the same on every machine of a kind, whatever else runs there."""
    if model.device.type != "cuda":
        return CPU_KV_BYTES
    whole = torch.cuda.get_device_properties(model.device).total_memory
    weights = sum(p.nbytes for p in model.parameters())
    return max(int(whole * GPU_SHARE) - weights, whole // 10)


def _load_model(policy: PolicySpec) -> PreTrainedModel:
    # A progress bar an actor would drown the job's log.
    disable_progress_bar()
    model = load_model(policy)
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
        _keep_freed_memory()


def _keep_freed_memory() -> None:
    """Let glibc keep what is freed: logits come and go with each step, and fresh pages for them are slow to get."""
    for parameter, num_bytes in MALLOPT:
        _libc("mallopt", parameter, num_bytes)


def _libc(name: str, *arguments: int) -> None:
    """Call a function of glibc; other C libraries have none."""
    function = getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
    if function is not None:
        function(*arguments)

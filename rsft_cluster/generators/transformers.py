"""The generator that samples from a Hugging Face causal language model, by a decoding loop of its own.

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
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators import arithmetic
from rsft_cluster.generators.arithmetic import ComputeDtype
from rsft_cluster.generators.base import Completion, Decoding, Law, Prompt, Refusal
from rsft_cluster.generators.completing import Row
from rsft_cluster.generators.engine.compiled import kernel_for
from rsft_cluster.generators.engine.engine import Engine, Limits
from rsft_cluster.generators.engine.layers import compile_layers
from rsft_cluster.generators.engine.packing import pack
from rsft_cluster.generators.engine.probe import UnsupportedModelError, layer_shapes
from rsft_cluster.generators.engine.trial import text_ids
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
FALLEN_BACK = (
    "decoded in plain batches, slower than the engine (with a 135 M model at a half to three quarters of its speed): {}"
)
WIDENED = "bfloat16 weights are computed in float32"
PREFILL_TOKENS = {"cpu": 512, "cuda": 4096}
"""Prompt tokens per forward pass, by device."""


class TransformersGenerator:
    """A causal language model on one device."""

    def __init__(
        self,
        policy: PolicySpec,
        *,
        engine: Literal["blocks", "batches", "required"] = "blocks",
        kv_bytes: int | None = None,
        packed: bool = True,
        compiled: bool | None = None,
        compute_dtype: ComputeDtype = "weights",
    ) -> None:
        """Load the policy.

        `engine` is `blocks` for continuous sampling, or `batches` for plain batched decoding, which a model that the
        first does not fit gets in any case; `required` refuses such a model with a ConfigError. `kv_bytes` bounds the
        memory for keys and values. `packed` is whether the engine packs weights for a CPU. `compiled` is whether it
        compiles attention, norms and gates for one: left out, where numba is installed; true, it must be. Last bits of
        log-probabilities differ, in float32 no draws do. `compute_dtype` is what the model is computed in: `auto`
        widens bfloat16 to float32 on a CPU whose bfloat16 products are not faster.
        """
        _fix_numerics(policy)
        self._policy = policy
        self.tokenizer = tokens.load_tokenizer(policy)
        self.model = _load_model(policy)
        stored = self.model.dtype
        computed = arithmetic.compute_dtype(self.model, stored, compute_dtype)
        if computed != stored:
            arithmetic.widen(self.model, computed)
        self.remarks: tuple[str, ...] = () if computed == stored else (WIDENED,)
        """What a person should know about how the policy is decoded."""
        self._num_context_tokens = tokens.num_context_tokens(self.model.config)
        self._num_known_tokens = cast("Embedding", self.model.get_input_embeddings()).num_embeddings
        self.decoder: Engine | BatchedDecoder
        if engine == "batches":
            self.decoder = self._batches()
        else:
            try:
                self.decoder = _engine(self.model, self.tokenizer, kv_bytes, packed=packed, compiled=compiled)
            except UnsupportedModelError as error:
                self.decoder = self._fallen_back(error, required=engine == "required")
        _libc("malloc_trim", 0)  # loading leaves as much behind as the weights take

    def generate(
        self,
        prompts: Sequence[Prompt],
        decoding: Decoding,
        keys: Sequence[Sequence[int]],
        laws: Sequence[Law] | None = None,
    ) -> Iterator[Completion | Refusal]:
        """Yield one Completion for every key of every prompt, or one Refusal for a prompt.

        Prompts that do not fit the model are refused before anything is sampled. What is computed together depends
        only on the prompts, their order and the settings. `laws` replace the proposal of each prompt; only plain
        batched decoding can use them.
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

    def _batches(self) -> BatchedDecoder:
        return BatchedDecoder(self.model, pad_token_id=tokens.pad_token_id(self.tokenizer))

    def _fallen_back(self, error: UnsupportedModelError, *, required: bool) -> BatchedDecoder:
        """Return plain batched decoding, and say why; raises ConfigError where the engine is required."""
        if required:
            raise ConfigError(f"engine: required, and {self._policy.model} cannot be decoded by it: {error}") from error
        logger.warning("event=batched_decoding model=%s reason=%s", self._policy.model, error)
        self.remarks = (*self.remarks, FALLEN_BACK.format(error))
        return self._batches()

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids, special tokens left out."""
        return tokens.decode(self.tokenizer, token_ids)

    def _encode(self, prompt: Prompt, decoding: Decoding) -> tuple[int, ...] | str:
        """Return a prompt's token ids, or the reason why it cannot be answered."""
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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kv_bytes: int | None,
    *,
    packed: bool,
    compiled: bool | None,
) -> Engine:
    """Return the engine, with the weights packed on a CPU; raises UnsupportedModelError for a model it does not fit."""
    can_compile = model.device.type == "cpu" and compiled is not False and kernel_for(model.dtype) is not None
    if compiled and not can_compile:
        raise ConfigError(
            "compiled: nothing can be compiled here; install rsft-cluster[cpu] for a CPU, or leave it out"
        )
    layers = layer_shapes(model, text_ids(tokenizer), compiled=can_compile)
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
    # Nothing reads memory before writing it, so filling it would waste time.
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

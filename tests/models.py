"""Tiny random models and tokenizers, saved as Hugging Face folders: what tests use for policies.

Every builder writes a complete folder (weights, tokenizer, configs) and returns its path. Weights follow from
`seed`. The byte-level tokenizer reads any text, Chinese included; `alphabet` makes one a character instead.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GptOssConfig,
    Lfm2Config,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Phi3Config,
    PhiConfig,
    PretrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from rsft_cluster.generators.transformers import TransformersGenerator
from rsft_cluster.policies.spec import PolicySpec

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def tokenizer(
    *,
    alphabet: str | None = None,
    chat_template: str | None = CHAT_TEMPLATE,
    adds_bos: bool = True,
    adds_eos: bool = False,
    pad_is_eos: bool = False,
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of bytes, or of the characters of `alphabet`; ids 0-2 are pad, bos and eos."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet()) if alphabet is None else list(alphabet)
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *letters])}
    if alphabet is None:
        core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        core.decoder = decoders.ByteLevel()
    else:
        core = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token="<pad>"))
        core.pre_tokenizer = pre_tokenizers.Split(Regex("."), behavior="isolated")
        core.decoder = decoders.Fuse()
    single = [*(["<s>"] if adds_bos else []), "$A", *(["</s>"] if adds_eos else [])]
    core.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>" if pad_is_eos else "<pad>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )


def save(
    path: Path,
    config: PretrainedConfig,
    tokens: PreTrainedTokenizerFast,
    *,
    seed: int = 0,
    scale: float = 1.0,
    generation_config: Mapping[str, Any] | None = None,
    max_parameters: int = 500_000,
    dtype: torch.dtype = torch.float32,
) -> str:
    """Write a model folder with random weights, multiplied by `scale`: larger is surer of its next token."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
    assert model.num_parameters() < max_parameters
    model.save_pretrained(path)
    tokens.save_pretrained(path)
    if generation_config is not None:
        Path(path, "generation_config.json").write_text(json.dumps(dict(generation_config)))
    return str(path)


def tiny_llama(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Llama with grouped key and value heads."""
    return _tiny(path, LlamaConfig, {"max_position_embeddings": num_context_tokens}, options)


def tiny_qwen2(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Qwen2."""
    return _tiny(path, Qwen2Config, {"max_position_embeddings": num_context_tokens}, options)


def tiny_mistral(path: Path, *, window: int | None = 8, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Mistral whose attention reaches back `window` tokens."""
    shape = {"max_position_embeddings": num_context_tokens, "sliding_window": window}
    return _tiny(path, MistralConfig, shape, options)


def tiny_gemma(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Gemma."""
    shape = {"max_position_embeddings": num_context_tokens, "head_dim": 8}
    return _tiny(path, GemmaConfig, shape, options)


def tiny_gemma2(path: Path, *, window: int = 8, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Gemma 2: layers with and without a sliding window in turn."""
    shape = {"max_position_embeddings": num_context_tokens, "sliding_window": window, "head_dim": 8}
    return _tiny(path, Gemma2Config, shape, options)


def tiny_gpt2(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a GPT-2, whose positions are learned: it cannot read beyond its context."""
    shape = {"n_positions": num_context_tokens, "n_layer": 2, "n_head": 4}
    return _tiny(path, GPT2Config, shape, options)


def tiny_qwen3(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Qwen3, which normalises queries and keys."""
    return _tiny(path, Qwen3Config, {"max_position_embeddings": num_context_tokens, "head_dim": 16}, options)


def tiny_gemma3(path: Path, *, window: int = 8, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Gemma 3: layers with and without a sliding window, each with rotary positions of its own."""
    shape = {"max_position_embeddings": num_context_tokens, "sliding_window": window, "head_dim": 8}
    kinds = {"layer_types": ["sliding_attention", "full_attention"], "query_pre_attn_scalar": 8}
    return _tiny(path, Gemma3TextConfig, shape | kinds, options)


def tiny_phi(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Phi, which rotates half of a head, and whose attention and feed-forward run side by side."""
    return _tiny(path, PhiConfig, {"max_position_embeddings": num_context_tokens}, options)


def tiny_phi3(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Phi 3, whose queries, keys and values come from one matrix."""
    return _tiny(path, Phi3Config, {"max_position_embeddings": num_context_tokens}, options)


def tiny_mqa(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Llama with one head of keys and values for all queries, and tied embeddings."""
    shape = {"max_position_embeddings": num_context_tokens, "num_key_value_heads": 1, "tie_word_embeddings": True}
    return _tiny(path, LlamaConfig, shape, options)


def tiny_mixtral(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a Mixtral, which sends each token to two of four experts."""
    shape = {"max_position_embeddings": num_context_tokens, "num_local_experts": 4, "sliding_window": None}
    return _tiny(path, MixtralConfig, shape, options)


def tiny_gpt_oss(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write a GPT-OSS, whose attention has sinks: a learned score that takes mass and gives nothing."""
    shape = {"max_position_embeddings": num_context_tokens, "sliding_window": 8, "head_dim": 16}
    return _tiny(path, GptOssConfig, shape | {"num_local_experts": 4, "num_experts_per_tok": 2}, options)


def tiny_bloom(path: Path, **options: Any) -> str:
    """Write a Bloom: distances instead of positions, read off the attention mask. It wants eager attention."""
    options.pop("num_context_tokens", None)
    return _tiny(path, BloomConfig, {"n_layer": 2, "n_head": 4}, options)


def tiny_lfm2(path: Path, *, num_context_tokens: int = 128, **options: Any) -> str:
    """Write an LFM2: one layer with a recurrent state, one with attention."""
    shape = {"max_position_embeddings": num_context_tokens, "layer_types": ["conv", "full_attention"]}
    return _tiny(path, Lfm2Config, shape, options)


def _tiny(path: Path, kind: type[PretrainedConfig], shape: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    options = dict(options)
    weights = {name: options.pop(name) for name in ("seed", "scale", "generation_config") if name in options}
    hidden_size = options.pop("hidden_size", 32)
    tokens = tokenizer(**options)
    ids = {"bos_token_id": BOS, "eos_token_id": EOS, "pad_token_id": tokens.pad_token_id}
    sizes: dict[str, Any] = {"initializer_range": 0.5, "hidden_size": hidden_size}
    if kind not in (GPT2Config, BloomConfig):
        sizes |= {"intermediate_size": 48, "num_hidden_layers": 2}
        sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    return save(path, kind(**{"vocab_size": len(tokens), **sizes, **ids, **shape}), tokens, **weights)


FAMILIES = {
    "llama": tiny_llama,
    "qwen2": tiny_qwen2,
    "qwen3": tiny_qwen3,
    "phi": tiny_phi,
    "phi3": tiny_phi3,
    "mqa": tiny_mqa,
    "mixtral": tiny_mixtral,
    "mistral": tiny_mistral,
    "gemma": tiny_gemma,
    "gemma2": tiny_gemma2,
    "gemma3": tiny_gemma3,
    "gpt_oss": tiny_gpt_oss,
    "gpt2": tiny_gpt2,
    "bloom": tiny_bloom,
    "lfm2": tiny_lfm2,
}
EAGER = ("gemma2", "gpt_oss", "bloom")
"""Families that are exact with eager attention only."""
TIED = ("gemma2", "gemma3", "mqa")
"""Families whose tied embeddings would repeat the last token for ever, were the weights not scaled down."""
BATCHED = ("gpt_oss", "bloom", "lfm2")
"""Families that the engine leaves to batched decoding."""


def load_family(family: str, path: Path, **options: Any) -> TransformersGenerator:
    """Write and load a tiny model of a family, with weights that make its answers vary."""
    scale = 0.3 if family in TIED else 1.0
    folder = FAMILIES[family](path, **{"alphabet": "abcdefgh", "scale": scale, **options})
    return TransformersGenerator(PolicySpec(folder, attention="eager" if family in EAGER else "sdpa"))

"""Models small enough to train in seconds, with tokenizers of one token a sign, as Hugging Face folders."""

from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar


def write_untrained(folder: Path, symbols: str, *, end: str, pad: str, num_context_tokens: int, seed: int) -> None:
    """Write an untrained Llama of 0.1 M parameters whose tokens are the given signs."""
    signs = Tokenizer(models.WordLevel({s: i for i, s in enumerate(symbols)}, unk_token=pad))
    signs.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    signs.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=signs, eos_token=end, pad_token=pad)
    torch.manual_seed(seed)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(symbols),
            hidden_size=64,
            intermediate_size=176,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=num_context_tokens,
            eos_token_id=symbols.index(end),
            pad_token_id=symbols.index(pad),
            bos_token_id=None,
            tie_word_embeddings=False,
        )
    )
    disable_progress_bar()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)

"""What is sampled: random models of several sizes, prompts of spread lengths, answers whose ends nobody knows.

Random weights give a next token that is near uniform, so declaring one token in sixty an end token gives answer
lengths that are near geometric, with a mean of about 60, and not known before the answer is over. Every engine
gets the same folder, the same token ids and the same list of end tokens.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

PAD, BOS, EOS = 0, 1, 2
SPECIAL = ("<pad>", "<s>", "</s>")
END_EVERY = 60
"""One token in so many ends an answer: the mean length of an answer that is not cut off."""


@dataclass(frozen=True, slots=True)
class Shape:
    """A Llama's sizes, and what a repetition of it can afford."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    num_slow_prompts: int
    """Prompts a repetition of a contestant that would take minutes for all of them."""
    vocabulary: int = 8192
    context: int = 1024

    @property
    def head_dim(self) -> int:
        """The width of one head."""
        return self.hidden // self.heads

    @property
    def num_cache_values(self) -> int:
        """Numbers that the keys and values of one token are."""
        return 2 * self.layers * self.kv_heads * self.head_dim

    def linears(self) -> list[tuple[int, int, int]]:
        """Return every weight matrix that a token passes: inputs, outputs, and how many of the kind there are."""
        kv = self.kv_heads * self.head_dim
        return [
            (self.hidden, self.hidden, 2 * self.layers),
            (self.hidden, kv, 2 * self.layers),
            (self.hidden, self.intermediate, 2 * self.layers),
            (self.intermediate, self.hidden, self.layers),
            (self.hidden, self.vocabulary, 1),
        ]


SHAPES = {
    "tiny": Shape(64, 2, 2, 1, 128, num_slow_prompts=2, vocabulary=512),
    "15m": Shape(384, 8, 6, 2, 1024, num_slow_prompts=16),
    "60m": Shape(640, 12, 10, 2, 1792, num_slow_prompts=8),
    "300m": Shape(1024, 20, 16, 4, 3840, num_slow_prompts=4),
}
"""15.7, 58.3 and 296.8 million parameters, input and output embeddings tied; `tiny` is for tests."""


def prepare(name: str, folder: Path) -> Path:
    """Write the model into `folder`, unless an earlier run did; return where it is."""
    shape, path = SHAPES[name], folder / name
    written = path / "shape.json"
    if written.exists() and json.loads(written.read_text()) == asdict(shape):
        return path
    disable_progress_bar()
    torch.manual_seed(0)
    model = LlamaForCausalLM(_config(shape))
    model.generation_config = GenerationConfig(
        eos_token_id=end_tokens(shape), bos_token_id=BOS, pad_token_id=PAD, do_sample=True
    )
    model.save_pretrained(path)
    _tokenizer(shape).save_pretrained(path)
    # Last, so that an interrupted run starts over.
    written.write_text(json.dumps(asdict(shape)))
    return path


def end_tokens(shape: Shape) -> list[int]:
    """Return the tokens that end an answer, the tokenizer's own among them."""
    return list(range(EOS, shape.vocabulary, END_EVERY))


def prompts(shape: Shape, count: int, *, shortest: int, longest: int, seed: int = 0) -> list[list[int]]:
    """Return token ids of `count` prompts, in mixed order; their lengths are log-uniform.

    The lengths are the quantiles themselves: every count of prompts has the same spread.
    """
    rng = random.Random(seed)
    lengths = [round(shortest * (longest / shortest) ** ((i + 0.5) / count)) for i in range(count)]
    rng.shuffle(lengths)
    words = sorted(set(range(len(SPECIAL), shape.vocabulary)) - set(end_tokens(shape)))
    return [rng.choices(words, k=length) for length in lengths]


def text_of(token_ids: Sequence[int]) -> str:
    """Return the text that the tokenizer reads as exactly these tokens."""
    return " ".join(f"w{token}" for token in token_ids)


def thinned(prompts: Sequence[list[int]], count: int, *, group: int = 1) -> list[list[int]]:
    """Return about `count` of the prompts with the same spread of lengths, in whole groups of neighbours by length."""
    ordered = sorted(prompts, key=len)
    groups = [ordered[start : start + group] for start in range(0, len(ordered), group)]
    kept = max(1, min(len(groups), count // group))
    picked = [groups[int((i + 0.5) * len(groups) / kept)] for i in range(kept)]
    return [prompt for members in picked for prompt in members]


def _config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context,
        tie_word_embeddings=True,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )


def _tokenizer(shape: Shape) -> PreTrainedTokenizerFast:
    """Return a tokenizer whose token i reads `wi`, but for the special ones."""
    names = [*SPECIAL, *(f"w{i}" for i in range(len(SPECIAL), shape.vocabulary))]
    core = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token=SPECIAL[PAD]))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token=SPECIAL[PAD], bos_token=SPECIAL[BOS], eos_token=SPECIAL[EOS]
    )

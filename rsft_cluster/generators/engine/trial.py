"""Two prompts that a model reads by itself and through the engine's batches: the logits of both, to be compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self, cast

import torch
from torch import Tensor
from torch.nn import Embedding
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rsft_cluster.generators.engine.attention import installed, reading
from rsft_cluster.generators.engine.batches import Chunk, PrefillBatch
from rsft_cluster.generators.engine.blocks import BLOCK, BlockStore, LayerShape
from rsft_cluster.generators.engine.forward import Forward
from rsft_cluster.generators.engine.rows import Rows
from rsft_cluster.generators.engine.steps import steps_of
from rsft_cluster.policies.tokens import num_context_tokens

LENGTHS = (3 * BLOCK + 5, BLOCK + 9)
"""Tokens of the prompts; the first one has two candidates and is prefilled in three chunks."""
SHORT = (BLOCK + 5, 7)
"""The same for models with a small context."""
NUM_STEPS = 4
"""Tokens decoded after each prompt."""
MOST_TOKENS = {"cpu": 768, "cuda": 10_000}
"""Longest first prompt, by device. It is made longer than the widest window where this allows it."""
NUM_COMPARED = 128
"""Tokens of a prompt whose logits are compared, at most."""
DISTINCT = 32
"""Fewer different tokens say too little: a tokenizer that does not know the text."""
TEXT = (
    "The river rises in the hills above the old town, runs past two mills and a school, and reaches the sea after "
    "ninety-one kilometres. In 1874 a flood carried away the wooden bridge; the stone one that replaced it still "
    'stands. "Nobody remembers the winter of that year," wrote the teacher to her sister, "but everyone knows how '
    'high the water came."\n\n'
    "Question: A train leaves at 9:40 and takes 2 hours and 35 minutes. When does it arrive?\n"
    "Answer: 9:40 plus 2 hours is 11:40, and 35 minutes more make 12:15.\n\n"
    "def mean(values: list[float]) -> float:\n    return sum(values) / len(values)\n\n"
    "1. Wash the rice until the water is clear.\n2. Add one and a half cups of water, and a pinch of salt.\n"
    "3. Cook it covered, over a low heat, for fifteen minutes.\n\n"
    "水をきれいに保つことは、町に住むすべての人の仕事です。 Die Brücke ist seit gestern wieder offen.\n"
)
"""What the prompts are made of: prose, speech, figures, code, a list, other languages."""


def text_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the token ids of some real text."""
    encoded = tokenizer(TEXT, add_special_tokens=False, verbose=False)
    return [int(token) for token in cast("list[int]", encoded["input_ids"])]


@dataclass(frozen=True, slots=True)
class Trial:
    """A model and the prompts that it is tried on."""

    model: PreTrainedModel
    lengths: tuple[int, int]
    """Tokens of the prompts."""
    prompts: tuple[Tensor, Tensor]
    """Each with the tokens that are decoded after it."""

    @classmethod
    def of(cls, model: PreTrainedModel, token_ids: Sequence[int], windows: Sequence[int | None]) -> Self:
        """Return a trial on a text's tokens, repeated as often as is needed.

        Ids in an order of their own take their place where the text has too few different ones for the model.
        """
        context = num_context_tokens(model.config) or 1 << 30
        most = min(MOST_TOKENS.get(model.device.type, MOST_TOKENS["cpu"]), context - NUM_STEPS)
        reaching = [w + BLOCK + 5 for w in windows if w is not None and w + BLOCK + 5 <= most]
        first, second = LENGTHS if LENGTHS[0] <= most else SHORT
        lengths = max(first, *reaching, 0), second
        num_known = cast("Embedding", model.get_input_embeddings()).num_embeddings
        known = [token for token in token_ids if token < num_known]
        if len({*known}) < min(DISTINCT, num_known // 2):
            known = [(7919 * i + 3) % num_known for i in range(num_known)]
        start = lengths[0] + NUM_STEPS
        total = start + lengths[1] + NUM_STEPS
        ids = torch.tensor(known * -(-total // len(known)), device=model.device)
        return cls(model, lengths, (ids[:start], ids[start:total]))

    def by_itself(self) -> list[Tensor]:
        """Return the logits that the model gives by itself: of the prompts' tokens, then of the decoded ones."""
        forward = Forward(self.model)
        read, decoded = [], []
        for ids, length in zip(self.prompts, self.lengths, strict=True):
            keep = [*_compared(length), *range(length, length + NUM_STEPS)]
            logits = forward(ids, None, keep=keep).float()
            read.append(logits[:-NUM_STEPS])
            decoded.append(logits[-NUM_STEPS:])
        return [torch.cat(read), torch.cat(decoded)]

    def through_blocks(self, layers: Sequence[LayerShape], dtype: torch.dtype, *, compiled: bool) -> list[Tensor]:
        """Return the same through a store of `dtype`: two rows on the first prompt, one on the second."""
        num_blocks = sum(-(-length // BLOCK) for length in self.lengths) + 4
        store = BlockStore(layers, num_blocks, dtype=dtype, device=self.model.device)
        forward = Forward(self.model)
        with installed(self.model):
            read = [self._read(forward, store, number) for number in range(len(self.prompts))]
            decoded = self._decode(forward, store, compiled=compiled)
        return [torch.cat(read).float(), torch.cat(decoded).float()]

    def _read(self, forward: Forward, store: BlockStore, number: int) -> Tensor:
        """Prefill a prompt; return the logits of those of its tokens that are compared."""
        ids, length = self.prompts[number], self.lengths[number]
        blocks = store.take_shared(number, length)
        size = -(-length // 3) if number == 0 else length
        compared = _compared(length)
        logits = []
        for start in range(0, length, size):
            stop = min(start + size, length)
            batch = PrefillBatch([Chunk(ids[start:stop].tolist(), start, blocks)], store)
            with reading(batch):
                keep = [i - start for i in compared if start <= i < stop]
                logits.append(forward(batch.tokens, batch.positions, keep=keep))
        return torch.cat(logits)

    def _decode(self, forward: Forward, store: BlockStore, *, compiled: bool) -> list[Tensor]:
        """Return the logits of the tokens after each prompt, (NUM_STEPS, vocabulary) each."""
        rows = Rows(3, max_tokens=NUM_STEPS + 1, max_blocks=2)
        for number in (0, 1, 0):
            row = rows.add(group=number, index=0, key=0, prompt_length=self.lengths[number])
            rows.length[row], rows.last[row] = 1, int(self.prompts[number][self.lengths[number]])
            rows.blocks[row, 0] = store.take_private(row, 0)
        batch = steps_of(forward, compiled=compiled).batch(rows, store, independent=False)
        decoded: tuple[list[Tensor], list[Tensor]] = ([], [])
        for step in range(NUM_STEPS):
            with reading(batch):
                logits = forward(batch.tokens, batch.token_positions)
            if not torch.allclose(logits[0], logits[2], atol=1e-2 * float(logits[0].std()) + 1e-6):
                raise ValueError("two rows with the same tokens differ")
            following = torch.zeros_like(batch.tokens)
            for number, length in enumerate(self.lengths):
                decoded[number].append(logits[number].clone())
                if step + 1 < NUM_STEPS:
                    following[number] = self.prompts[number][length + step + 1]
            following[2] = following[0]
            batch.advance(following)
        return [torch.stack(logits) for logits in decoded]


def _compared(length: int) -> list[int]:
    """Return the tokens of a prompt whose logits are compared: evenly spread, the last one among them."""
    every = -(-length // NUM_COMPARED)
    return list(range((length - 1) % every, length, every))

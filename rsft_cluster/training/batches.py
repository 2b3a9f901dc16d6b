"""From accepted samples and worked examples to batches: the same ones for any number of workers.

Token ids are taken as they were sampled, never made again from text; only an end token may be added (`ending.py`).
Labels are masked by length, never by the padding value, so that the end-of-sequence token is learned. Which example is
seen when is a pure function of (seed, epoch, index). Knows nothing of Ray, DeepSpeed or the model.
"""

import hashlib
import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor

from rsft_cluster.config import TrainingConfig
from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.policies.tokens import encode_prompt, load_tokenizer
from rsft_cluster.schemas import Message
from rsft_cluster.store import open_uri
from rsft_cluster.training.ending import Ending, TokenIds
from rsft_cluster.training.losses import IGNORED

COLUMNS = ["candidate_id", "prompt_id", "round", "prompt_token_ids", "token_ids", "finish_reason", "weight"]


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, the completion to learn, and how much it counts."""

    prompt_ids: TokenIds
    completion_ids: TokenIds
    weight: float
    logprob: float = math.nan
    """What the completion was drawn with, where the loss needs it: of rejected candidates."""

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.completion_ids)


def load_examples(
    uris: Sequence[str], *, per_prompt: bool, ending: Callable[[], Ending] | None = None
) -> list[Example]:
    """Read ACCEPTED files into examples, in an order that depends on their content alone.

    A completion that a prompt got in several rounds counts as in the first of them; how often it counts there is the
    acceptance's to say (`acceptance.dedupe`). With `per_prompt` each example is weighted by 1 / (examples of its
    prompt), on top of its row's weight. With `ending`, which loads that of the policy, completions that a stop string
    ended have its end token after them.
    """
    rows = [row for uri in uris for row in _accepted_rows(uri)]
    rows.sort(key=lambda r: (r["round"], r["candidate_id"]))
    first_round: dict[tuple[str, bytes], int] = {}
    for row in rows:
        first_round.setdefault((row["prompt_id"], row["token_ids"].tobytes()), row["round"])
    rows = [r for r in rows if r["round"] == first_round[r["prompt_id"], r["token_ids"].tobytes()]]
    num_of = Counter(r["prompt_id"] for r in rows)
    if ending and (stopped := [r for r in rows if r["finish_reason"] == "stop"]):
        loaded = ending()
        for r in stopped:
            r["token_ids"] = loaded.complete(r["prompt_token_ids"], r["token_ids"])
    return [
        Example(r["prompt_token_ids"], r["token_ids"], r["weight"] / (num_of[r["prompt_id"]] if per_prompt else 1))
        for r in rows
    ]


def load_replay(uri: str, policy: PolicySpec, *, weight: float) -> list[Example]:
    """Read worked examples: rows of `completion` and either `prompt` (raw text) or `messages`.

    The prompt is encoded as it is for sampling, the completion ends with the end-of-sequence token.
    """
    tokenizer = load_tokenizer(policy)
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"{policy.model}: its tokenizer has no end-of-sequence token; replay needs one")
    examples = []
    for where, row in _replay_rows(uri):
        messages, completion = _worked_example(row, where)
        prompt = encode_prompt(tokenizer, messages, policy.chat_template)
        answer = [*tokenizer(completion, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]
        examples.append(Example(np.asarray(prompt, np.int32), np.asarray(answer, np.int32), weight))
    return examples


def num_steps(config: TrainingConfig, num_examples: int) -> int:
    """Return the optimizer steps that the config asks for, given what there is to learn from."""
    if config.steps is not None:
        return config.steps
    batch_size = min(config.batch_size, num_examples)
    return max(1, math.ceil((config.epochs or 1.0) * num_examples / batch_size))


@dataclass(frozen=True)
class DataOrder:
    """Which examples each step sees. Epochs follow each other without a gap, so every batch is full."""

    num_examples: int
    batch_size: int
    seed: int

    def batch_indices(self, step: int) -> list[int]:
        """Return the global batch of a step, counted from 0. Across two epochs an example may stand twice."""
        positions = range(step * self.batch_size, (step + 1) * self.batch_size)
        return [self._index(position) for position in positions]

    def _index(self, position: int) -> int:
        epoch, offset = divmod(position, self.num_examples)
        return int(_permutation(self.num_examples, self.seed, epoch)[offset])


@lru_cache(maxsize=4)
def _permutation(num_examples: int, seed: int, epoch: int) -> NDArray[np.int64]:
    source = np.random.Philox(np.random.SeedSequence([seed, epoch]))
    return np.random.Generator(source).permutation(num_examples)


@dataclass(frozen=True, slots=True)
class Batch:
    """Right-padded rows of one forward pass."""

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    weights: Tensor
    logprobs: Tensor
    num_logits: int
    """How many of the last positions' logits the loss needs."""

    def to(self, device: torch.device) -> "Batch":
        """Return the batch on a device."""
        tensors = (self.input_ids, self.attention_mask, self.labels, self.weights, self.logprobs)
        return Batch(*(t.to(device) for t in tensors), num_logits=self.num_logits)


def collate(examples: Sequence[Example]) -> Batch:
    """Pad examples on the right. Positions are masked by the recorded lengths, whatever the token ids are."""
    width = max(len(e) for e in examples)
    input_ids = torch.zeros(len(examples), width, dtype=torch.long)
    attention_mask = torch.zeros(len(examples), width, dtype=torch.long)
    labels = torch.full((len(examples), width), IGNORED, dtype=torch.long)
    for row, example in enumerate(examples):
        start, end = len(example.prompt_ids), len(example)
        input_ids[row, :start] = torch.from_numpy(example.prompt_ids.astype(np.int64))
        input_ids[row, start:end] = torch.from_numpy(example.completion_ids.astype(np.int64))
        attention_mask[row, :end] = 1
        labels[row, start:end] = input_ids[row, start:end]
    weights = torch.tensor([e.weight for e in examples], dtype=torch.float64)
    logprobs = torch.tensor([e.logprob for e in examples], dtype=torch.float64)
    first = min(len(e.prompt_ids) for e in examples)
    return Batch(input_ids, attention_mask, labels, weights, logprobs, width - first + 1)


def denominator(examples: Sequence[Example]) -> float:
    """Return the weighted number of completion tokens: what a batch's loss is divided by."""
    return math.fsum(e.weight * len(e.completion_ids) for e in examples)


def examples_digest(examples: Sequence[Example]) -> str:
    """Return a digest of what is learned, in its order."""
    state = hashlib.sha256()
    for e in examples:
        state.update(f"{len(e.prompt_ids)} {len(e.completion_ids)} {e.weight!r} {e.logprob!r} ".encode())
        state.update(e.prompt_ids.tobytes() + e.completion_ids.tobytes())
    return state.hexdigest()[:32]


def read_columns(uri: str, columns: Sequence[str], *, what: str, optional: Sequence[str] = ()) -> pa.Table:
    """Read some columns of a Parquet file; one of them may be part of a nested one (`verdicts.list.element.passed`).

    `optional` names columns of text that files of earlier versions do not have: null there. Raises StoreError where the
    file cannot be read, or is not one of `what`.
    """
    filesystem, path = open_uri(uri)
    try:
        with filesystem.open_input_file(path) as file:
            table = pq.ParquetFile(file, page_checksum_verification=True).read(columns=list(columns))
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{uri}: {what} cannot be read: {error}") from error
    for name in optional:
        if name not in table.column_names:
            table = table.append_column(name, pa.nulls(table.num_rows, pa.string()))
    missing = [c for c in columns if c.split(".")[0] not in table.column_names]
    if missing:
        raise StoreError(f"{uri}: columns {missing} are missing; it is not a file of {what}")
    return table


def ragged(column: pa.ChunkedArray) -> Iterator[TokenIds]:
    """Yield each list of a list column as a view on its values."""
    for chunk in column.chunks:
        values = chunk.flatten().to_numpy().astype(np.int32, copy=False)
        lengths = chunk.value_lengths().to_numpy()
        ends = np.cumsum(lengths)
        yield from (values[end - n : end] for n, end in zip(lengths, ends, strict=True))


def _accepted_rows(uri: str) -> Iterator[dict[str, Any]]:
    table = read_columns(uri, COLUMNS, what="accepted examples", optional=("finish_reason",))
    narrow = table.select(["candidate_id", "prompt_id", "round", "finish_reason", "weight"]).to_pylist()
    prompts, completions = ragged(table["prompt_token_ids"]), ragged(table["token_ids"])
    for row, prompt, completion in zip(narrow, prompts, completions, strict=True):
        if not len(prompt) or not len(completion):
            raise ConfigError(f"{uri}: candidate {row['candidate_id']} has an empty prompt or completion")
        if not (math.isfinite(row["weight"]) and row["weight"] > 0):
            found = f"candidate {row['candidate_id']} has the weight {row['weight']}"
            raise ConfigError(f"{uri}: {found}; it must be finite and above 0")
        yield {**row, "prompt_token_ids": prompt, "token_ids": completion}


def _replay_rows(uri: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    filesystem, path = open_uri(uri)
    try:
        with filesystem.open_input_file(path) as file:
            payload = file.read()
        if path.endswith(".parquet"):
            rows = pq.read_table(pa.BufferReader(payload)).to_pylist()
            yield from ((f"{uri}: row {n}", row) for n, row in enumerate(rows, 1))
            return
    except StoreError:
        raise
    except (OSError, pa.ArrowInvalid) as error:
        raise ConfigError(f"training.replay: {uri}: cannot be read: {error}") from error
    # Split on the newline byte alone: JSON strings may hold other line separators.
    for n, line in enumerate(payload.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            yield f"{uri}:{n}", json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{uri}:{n}: not valid JSON in UTF-8: {error}") from error


def _worked_example(row: Any, where: str) -> tuple[list[Message], str]:
    completion = row.get("completion") if isinstance(row, Mapping) else None
    if not isinstance(completion, str) or not completion:
        raise ConfigError(f"{where}: `completion` is {completion!r}; a worked example needs some text there")
    if row.get("messages"):
        messages = row["messages"]
        if not all(isinstance(m, Mapping) and {"role", "content"} <= set(m) for m in messages):
            raise ConfigError(f"{where}: `messages` is {messages!r}; expected a list of {{role, content}}")
        return [Message(m["role"], m["content"]) for m in messages], completion
    if isinstance(row.get("prompt"), str) and row["prompt"]:
        return [Message("raw", row["prompt"])], completion
    raise ConfigError(f"{where}: has neither `prompt` nor `messages`; its fields are {sorted(row)}")

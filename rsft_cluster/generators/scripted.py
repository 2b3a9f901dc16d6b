"""The generator that answers from a script: for dry runs without a model, and for tests.

A whole run, several rounds of it, works on a laptop in seconds, with the accounting of a real one. Knows
nothing about torch or models; a tokenizer is used where the policy's folder has one, else UTF-8 bytes are tokens.
"""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from tokenizers import Tokenizer

from rsft_cluster.errors import ConfigError
from rsft_cluster.generators.base import Completion, Decoding, Prompt, Refusal
from rsft_cluster.policies.spec import PolicySpec

NUM_WRONG = 9
"""Number of different wrong answers to a prompt whose reference is a whole number."""


class ScriptedGenerator:
    """Answers from a file, or from the prompts' own references.

    `answers` is a JSONL file of {"prompt": text, "completions": [text, ...]}, the prompt being the content of the
    last message; each candidate's key picks one. Without it a candidate gives the reference with probability
    `accuracy`, decided by its key, and a wrong answer otherwise. `delay_s` passes per prompt, as on a GPU.
    Temperature, truncation and stop settings have no effect; max_tokens does.
    """

    def __init__(
        self,
        policy: PolicySpec,
        *,
        answers: str | None = None,
        accuracy: float = 0.5,
        delay_s: float = 0.0,
    ) -> None:
        if not 0 <= accuracy <= 1:
            raise ConfigError(f"scripted: accuracy is a probability, not {accuracy!r}")
        if delay_s < 0:
            raise ConfigError(f"scripted: delay_s is a number of seconds, not {delay_s!r}")
        self._answers = None if answers is None else _read_answers(Path(answers))
        self._accuracy = accuracy
        self._delay_s = delay_s
        self._codec = _Codec(policy)

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal]:
        """Yield one Completion for every key of every prompt, or a Refusal where the script has no answer."""
        for i, prompt in enumerate(prompts):
            if self._delay_s:
                time.sleep(self._delay_s)
            question = prompt.messages[-1].content if prompt.messages else ""
            if self._answers is not None and question not in self._answers:
                yield Refusal(i, f"no scripted answer to the prompt {question[:80]!r}")
                continue
            prompt_token_ids = self._codec.encode("\n".join(message.content for message in prompt.messages))
            for j, key in enumerate(keys[i]):
                text, probability = self._answer(question, prompt.reference, key)
                yield self._complete(i, j, prompt_token_ids, text, math.log(probability), decoding)

    def _answer(self, question: str, reference: str | None, key: int) -> tuple[str, float]:
        """Return the text that a key decides on, and its probability over all keys."""
        if self._answers is not None:
            completions = self._answers[question]
            text = completions[key % len(completions)]
            return text, completions.count(text) / len(completions)
        if reference is None:
            return _DONT_KNOW, 1.0
        # The high bits decide between right and wrong, the low ones between wrong answers.
        if (key >> 11) * 2.0**-53 < self._accuracy:
            return reference, self._accuracy
        try:
            return str(int(reference) + 1 + key % NUM_WRONG), (1 - self._accuracy) / NUM_WRONG
        except ValueError:
            return _DONT_KNOW, 1 - self._accuracy

    def _complete(
        self,
        prompt: int,
        index: int,
        prompt_token_ids: tuple[int, ...],
        text: str,
        logprob: float,
        decoding: Decoding,
    ) -> Completion:
        token_ids = self._codec.encode(text) + self._codec.end
        cut = len(token_ids) > decoding.max_tokens
        if cut:
            token_ids = token_ids[: decoding.max_tokens]
            text = self._codec.decode(token_ids)
        return Completion(
            prompt=prompt,
            index=index,
            prompt_token_ids=prompt_token_ids,
            token_ids=token_ids,
            text=text,
            finish_reason="length" if cut else "stop",
            logprob=logprob,
            target_logprob=logprob,
        )


_DONT_KNOW = "I do not know."


class _Codec:
    """The policy's tokenizer where its folder has one, else UTF-8 bytes without an end token."""

    def __init__(self, policy: PolicySpec) -> None:
        folder = Path(policy.model)
        file = folder / "tokenizer.json"
        self._tokenizer: Tokenizer | None = Tokenizer.from_file(str(file)) if file.is_file() else None
        self.end = self._end_token(folder / "tokenizer_config.json")

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the token ids of a text, without special tokens around it."""
        if self._tokenizer is None:
            return tuple(text.encode())
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids; a character cut in half becomes U+FFFD."""
        if self._tokenizer is None:
            return bytes(token_ids).decode(errors="replace")
        return self._tokenizer.decode(list(token_ids), skip_special_tokens=True)

    def _end_token(self, config: Path) -> tuple[int, ...]:
        if self._tokenizer is None or not config.is_file():
            return ()
        declared = json.loads(config.read_text(encoding="utf-8")).get("eos_token")
        content = declared.get("content") if isinstance(declared, dict) else declared
        end = None if content is None else self._tokenizer.token_to_id(content)
        return () if end is None else (end,)


def _read_answers(path: Path) -> Mapping[str, Sequence[str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"scripted: answers {path} cannot be read: {error}") from error
    answers: dict[str, Sequence[str]] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            prompt, completions = _parse_answer(line, f"{path}, line {number}")
            if prompt in answers:
                raise ConfigError(f"{path}, line {number}: the prompt {prompt[:80]!r} stands twice")
            answers[prompt] = completions
    return answers


def _parse_answer(line: str, where: str) -> tuple[str, Sequence[str]]:
    expected = 'expected {"prompt": text, "completions": [text, ...]}'
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON ({error}); {expected}") from error
    if not isinstance(row, dict) or set(row) != {"prompt", "completions"}:
        raise ConfigError(f"{where}: {expected}, got {line[:80]}")
    prompt, completions = row["prompt"], row["completions"]
    texts = isinstance(completions, list) and all(isinstance(text, str) for text in completions)
    if not isinstance(prompt, str) or not texts or not completions:
        raise ConfigError(f"{where}: {expected}, got {line[:80]}")
    return prompt, completions

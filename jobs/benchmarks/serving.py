"""A contestant's side of the conversation: it loads, says so, and then answers one run a line, as JSON.

Standard library alone, since a contestant may run in a Python that has nothing of this project. What a library
prints goes to stderr; stdout carries answers and nothing else.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any, Literal, TypedDict


class Spec(TypedDict):
    """What a contestant is built from."""

    model: str
    dtype: Literal["float32", "bfloat16"]
    threads: int
    rows: int
    """Sequences that are decoded together."""
    context: int
    """Tokens of the longest prompt and the longest answer together."""
    cache_bytes: int
    """Keys and values of `rows` sequences of that length."""
    max_tokens: int
    candidates: int
    end_token_ids: list[int]


class Run(TypedDict):
    """One run: every prompt is to be answered `candidates` times."""

    prompts: list[list[int]]
    seed: int


Answers = list[list[list[int]]]
"""Token ids: of every prompt, of every candidate, the end token included and nothing after it."""
Engine = Callable[[Run], Answers]


def serve(build: Callable[[Spec], Engine]) -> None:
    """Build the engine from the spec in the first argument and answer until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    spec: Spec = json.loads(sys.argv[-1])
    began = time.perf_counter()
    engine = build(spec)
    print(json.dumps({"load_seconds": time.perf_counter() - began}), file=answers)
    for line in sys.stdin:
        print(json.dumps(_timed(engine, json.loads(line), spec)), file=answers)


def until_end(token_ids: list[int], ends: set[int]) -> list[int]:
    """Return the tokens up to the first end token: an engine may fill up what comes after it."""
    for position, token in enumerate(token_ids):
        if token in ends:
            return token_ids[: position + 1]
    return token_ids


def _timed(engine: Engine, run: Run, spec: Spec) -> dict[str, Any]:
    began = time.perf_counter()
    answers = engine(run)
    seconds = time.perf_counter() - began
    _check(answers, run, spec)
    return {"seconds": seconds, "lengths": [[len(answer) for answer in of_prompt] for of_prompt in answers]}


def _check(answers: Answers, run: Run, spec: Spec) -> None:
    """Raise ValueError unless every candidate of every prompt is there and over."""
    counts = [len(of_prompt) for of_prompt in answers]
    if counts != [spec["candidates"]] * len(run["prompts"]):
        raise ValueError(f"{len(run['prompts'])} prompts with {spec['candidates']} candidates each; answered: {counts}")
    ends = set(spec["end_token_ids"])
    for answer in (answer for of_prompt in answers for answer in of_prompt):
        ended = bool(answer) and answer[-1] in ends and ends.isdisjoint(answer[:-1])
        if not ended and (len(answer) != spec["max_tokens"] or not ends.isdisjoint(answer)):
            raise ValueError(f"an answer of {len(answer)} tokens is neither ended nor cut off")

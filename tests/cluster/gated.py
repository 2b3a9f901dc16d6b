"""A generator that stands still for as long as a file exists: time for something to happen while units are open."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from rsft_cluster.generators.base import Completion, Decoding, Prompt, Refusal
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.policies.spec import PolicySpec


class Gated(ScriptedGenerator):
    """Answers as `scripted` does, a prompt at a time, none of them while the gate's file is there."""

    def __init__(self, policy: PolicySpec, *, gate: str, accuracy: float = 0.5, delay_s: float = 0.0) -> None:
        super().__init__(policy, accuracy=accuracy, delay_s=delay_s)
        self._gate = Path(gate)

    def generate(
        self, prompts: Sequence[Prompt], decoding: Decoding, keys: Sequence[Sequence[int]]
    ) -> Iterator[Completion | Refusal]:
        while self._gate.exists():
            time.sleep(0.05)
        yield from super().generate(prompts, decoding, keys)

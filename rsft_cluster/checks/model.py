"""What a model is like on this machine: `rsft check MODEL` loads it and lets it answer a little."""

import time
from pathlib import Path

from rsft_cluster.checks.findings import Finding
from rsft_cluster.generators.base import Completion, Decoding, Prompt
from rsft_cluster.policies.files import ModelFiles
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import Message

NUM_ROWS = 16
"""Answers decoded at once, to see how fast."""
NUM_TOKENS = 32


def check_model(folder: Path) -> list[Finding]:
    """Load a model, on one CPU thread, and return what sampling with it will be like; ConfigError where it fails."""
    # torch and transformers take seconds to import, and a check of a config needs neither.
    from rsft_cluster.generators.engine.engine import Engine  # noqa: PLC0415
    from rsft_cluster.generators.transformers import TransformersGenerator  # noqa: PLC0415

    files = ModelFiles(folder)
    files.check()
    start = time.monotonic()
    generator = TransformersGenerator(PolicySpec(str(folder), dtype=files.dtype))
    findings = [
        Finding("model", f"{files.num_parameters:,} parameters in {files.dtype}, loaded in {_since(start):.1f} s"),
        Finding("chat template", "there is one" if files.has_chat_template else "none: prompts are raw text"),
    ]
    if isinstance(generator.decoder, Engine):
        findings.append(Finding("engine", "decodes it: rows over shared blocks of keys and values"))
    findings += [Finding("sampling", remark, warns="plain batches" in remark) for remark in generator.remarks]
    role = "user" if files.has_chat_template else "raw"
    prompt = Prompt("check", [Message(role=role, content="Write a few sentences about the sea.")])
    start = time.monotonic()
    answers = list(generator.generate([prompt], Decoding(max_tokens=NUM_TOKENS), [list(range(NUM_ROWS))]))
    num_tokens = sum(len(answer.token_ids) for answer in answers if isinstance(answer, Completion))
    rate = num_tokens / _since(start)
    findings.append(Finding("speed", f"{rate:,.0f} tokens a second, {NUM_ROWS} short answers at once on one thread"))
    return findings


def _since(start: float) -> float:
    return max(time.monotonic() - start, 1e-9)

"""A folder as a user has it: a config, prompts, a tiny model. For tests of configs, checks and the command line."""

import json
from pathlib import Path
from typing import Any

import yaml
from factories import write_jsonl

NUM_PROMPTS, NUM_HELD_OUT = 14, 6


def sums(num: int, first: int = 0) -> list[dict[str, str]]:
    """Rows of prompts that ask for small sums, all different."""
    return [{"prompt": f"{i} + 1 =", "answer": str(i + 1)} for i in range(first, first + num)]


def settings(**changes: Any) -> dict[str, Any]:
    """A whole config of a run with the scripted generator; `changes` are dotted keys with `__` for the dot."""
    config: dict[str, Any] = {
        "run": "sums",
        "store": "runs",
        "policy": {"model": "./model"},
        "prompts": {"paths": ["prompts.jsonl"], "columns": {"reference": "answer"}},
        "sampling": {"generator": "scripted", "num_candidates": 4, "max_tokens": 16},
        "scoring": {"constraints": ["finished", "answer_matches"]},
        "evaluation": {"prompts": {"paths": ["held_out.jsonl"], "columns": {"reference": "answer"}}},
    }
    for key, value in changes.items():
        *parts, leaf = key.split("__")
        node = config
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = value
    return config


def write_project(folder: Path) -> Path:
    """Write run.yaml and the prompts it names into a folder; return the config's path. No model is written."""
    write_jsonl(folder / "prompts.jsonl", sums(NUM_PROMPTS))
    write_jsonl(folder / "held_out.jsonl", sums(NUM_HELD_OUT, NUM_PROMPTS))
    write_jsonl(folder / "chat.jsonl", [{"messages": [{"role": "user", "content": "hello"}]}])
    config = folder / "run.yaml"
    config.write_text(yaml.safe_dump(settings(), sort_keys=False))
    return config


def write_fake_model(folder: Path, *, num_context_tokens: int = 128) -> Path:
    """Write what a check reads of a model folder, with weights of four parameters; no engine could load it."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"max_position_embeddings": num_context_tokens}))
    save_file({"weight": np.zeros((2, 2), np.float32)}, folder / "model.safetensors")
    tokenizer = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text("{}")
    return folder

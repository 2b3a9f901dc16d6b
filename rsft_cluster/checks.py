"""Everything about a config that can be found out without a cluster: `rsft check`.

Binds every plug-in, looks at the model folder, reads the first prompts, and estimates tokens, memory and disk. Loads no
weights and imports no engine.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open
from tokenizers import Tokenizer

from rsft_cluster.acceptance import bind_rule
from rsft_cluster.config import PromptsConfig, RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.needs import needs
from rsft_cluster.plugins import bind
from rsft_cluster.policies import base_policy, context_tokens, is_folder
from rsft_cluster.prompts import BadLine, read_prompts
from rsft_cluster.runs import open_store
from rsft_cluster.scoring import Judge

PEEK = 1000
"""Prompts looked at of each source."""
BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Finding:
    """One line of the check's report."""

    about: str
    says: str


def check(config: RunConfig) -> list[Finding]:
    """Return what a run of this config will be like; raises ConfigError or PluginError at the first fault."""
    bind(config.sampling.generator, "generators", num_leading=1)
    Judge(config.scoring.constraints)
    rule = bind_rule(config.acceptance)
    bind(config.promotion.rule, "promotion_rules", num_leading=2)
    open_store(config)
    found = [Finding("acceptance", f"targets {rule.load().target}")]
    scripted = config.sampling.generator.use == "scripted"
    if not scripted or is_folder(config.policy.model):
        base_policy(config.policy)
        found += _model(config)
    for name, prompts in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        found.append(Finding(name, _prompts(config, prompts, name)))
    if config.training.replay and not Path(config.training.replay).exists():
        raise ConfigError(f"training.replay: {config.training.replay}: there is no such file")
    found += _budget(config)
    found.append(Finding("cluster", f"must offer {needs(config).describe()}"))
    return found


def _model(config: RunConfig) -> Iterator[Finding]:
    model = config.policy.model
    if not is_folder(model) or "://" in model:
        yield Finding("policy", f"{model}, looked at when the run starts")
        return
    num_parameters = sum(_num_parameters(path) for path in sorted(Path(model).glob("*.safetensors")))
    context = context_tokens(model)
    says = f"{num_parameters:,} parameters, {num_parameters * BYTES[config.policy.dtype] / 1e9:.3g} GB of weights"
    yield Finding("policy", says + (f", context of {context:,} tokens" if context else ""))
    if context is not None and config.sampling.max_tokens >= context:
        raise ConfigError(
            f"sampling.max_tokens: {config.sampling.max_tokens} leaves no room for a prompt in the model's context of "
            f"{context} tokens"
        )
    wanted = config.training.batch_size / (config.training.workers * config.training.micro_batch_size)
    # Weights, gradients and AdamW's two moments, the moments and master weights in float32.
    total = num_parameters * (2 * BYTES[config.policy.dtype] + (8 if config.policy.dtype == "float32" else 12))
    sharded = total / config.training.workers if config.training.zero_stage == 3 else total
    yield Finding(
        "training",
        f"{config.training.workers} workers, {max(1, round(wanted))} micro-batches a step, at least "
        f"{sharded / 1e9:.3g} GB a worker beside activations",
    )


def _num_parameters(path: Path) -> int:
    total = 0
    with safe_open(path, framework="numpy") as file:
        for key in file.keys():  # noqa: SIM118 not a mapping
            size = 1
            for extent in file.get_slice(key).get_shape():
                size *= extent
            total += size
    return total


def _prompts(config: RunConfig, prompts: PromptsConfig, name: str) -> str:
    bad: list[BadLine] = []
    peek = prompts.model_copy(update={"limit": min(prompts.limit or PEEK, PEEK)})
    rows = [row for batch in read_prompts(peek, on_bad=bad.append) for row in batch.to_pylist()]
    chat = any(row["messages"][0]["role"] != "raw" for row in rows)
    if chat and not _has_template(config):
        raise ConfigError(
            f"{name}: these are chat prompts, and the tokenizer of {config.policy.model} has no chat template. Set "
            "policy.chat_template to a Jinja file, use raw text prompts, or a model that has one"
        )
    lengths = _lengths(config, [row["messages"][-1]["content"] for row in rows])
    more = "or more" if len(rows) == PEEK and prompts.limit != PEEK else "in all"
    return f"{len(rows):,} {more}, {'chat' if chat else 'raw text'}, {lengths}" + (
        f"; {len(bad)} bad lines" if bad else ""
    )


def _has_template(config: RunConfig) -> bool:
    model = config.policy.model
    if config.policy.chat_template or not is_folder(model) or "://" in model:
        return True
    folder = Path(model)
    if (folder / "chat_template.jinja").exists() or (folder / "chat_template.json").exists():
        return True
    settings = folder / "tokenizer_config.json"
    return settings.exists() and bool(json.loads(settings.read_text(encoding="utf-8")).get("chat_template"))


def _lengths(config: RunConfig, texts: list[str]) -> str:
    path = Path(config.policy.model) / "tokenizer.json"
    if not path.exists():
        return f"{sum(map(len, texts)) / len(texts):.0f} characters on average"
    encoded = Tokenizer.from_file(str(path)).encode_batch(texts, add_special_tokens=False)
    counts = [len(e.ids) for e in encoded]
    return f"{sum(counts) / len(counts):.0f} tokens on average, {max(counts)} at most"


def _budget(config: RunConfig) -> Iterator[Finding]:
    sampling, evaluation = config.sampling, config.evaluation
    yield Finding(
        "a round",
        f"{sampling.num_candidates} candidates a prompt, at most {sampling.num_candidates * sampling.max_tokens:,} "
        f"tokens each prompt; an evaluation adds {evaluation.num_samples + 1} completions a held-out prompt",
    )
    # Token ids, text, log-probabilities and verdicts, compressed; the text is what counts.
    per_candidate = 300 + 4 * sampling.max_tokens
    yield Finding(
        "disk", f"about {sampling.num_candidates * per_candidate / 1e3:.3g} kB a prompt and round at full length"
    )

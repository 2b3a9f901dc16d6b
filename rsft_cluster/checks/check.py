"""Everything about a config that can be checked without a cluster: `rsft check`.

Binds every plug-in and tries the rules, looks at the model folder, reads the first prompts, and estimates tokens,
memory and disk. Loads no weights and imports no engine. Reports all faults, not only the first.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from rsft_cluster.checks.findings import Finding, Findings
from rsft_cluster.checks.plugin_trials import bind_all, try_constraints
from rsft_cluster.cluster.needs import Needs, describe_nodes, lacking, needs, pools
from rsft_cluster.config import FairnessConfig, PolicyConfig, PromptsConfig, RunConfig
from rsft_cluster.config.file import check_store_uri
from rsft_cluster.errors import ConfigError
from rsft_cluster.plugins import bind
from rsft_cluster.policies.files import ModelFiles, check_template
from rsft_cluster.policies.references import base_policy, check_adapter, check_folder, is_folder
from rsft_cluster.prompts import BadLine, read_prompts
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store, join_uri, open_uri, parse_uri

PEEK = 1000
"""Prompts read of each source."""
EARLY = 100
"""More bad lines than this among those are judged by the allowed share at once, as a run judges them."""
BYTES = {"float32": 4, "bfloat16": 2}


def check(config: RunConfig, nodes: Sequence[Needs] | None = None) -> list[Finding]:
    """Return what a run of this config will be like; raises ConfigError with every fault, or StoreError.

    `nodes` are those of the cluster that is to serve it, where one is known.
    """
    findings = Findings(config)
    bind_all(findings)
    with findings.faults_of("store"):
        _store(config)
    model = None
    _policy_settings(findings)
    with findings.faults_of("policy.adapter"):
        check_adapter(config.policy)
    with findings.faults_of("policy.model"):
        model = _model(findings)
    rows = {}
    for name, prompts in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        with findings.faults_of(name):
            rows[name] = _prompts(findings, name, prompts, model)
    with findings.faults_of("evaluation.prompts"):
        _overlap(rows.get("prompts", ()), rows.get("evaluation.prompts", ()))
    for peeked in rows.values():
        try_constraints(findings, peeked[0])
    with findings.faults_of("training.replay"):
        _replay(config.training.replay)
    _budget(findings)
    findings.say("cluster", f"must offer {needs(config).describe()}")
    if nodes is not None:
        _cluster(findings, nodes)
    return findings.conclude()


def check_plugins(config: RunConfig) -> None:
    """Raise ConfigError unless every plug-in is there and takes its parameters."""
    findings = Findings(config)
    bind_all(findings)
    for name, prompts in (("prompts", config.prompts), ("evaluation.prompts", config.evaluation.prompts)):
        with findings.faults_of(f"{name}.source"):
            bind(prompts.source, "prompt_sources", num_leading=2)
    findings.conclude()


def _store(config: RunConfig) -> None:
    check_store_uri(config.store)
    run = Store(join_uri(config.store, config.run))
    # A run's folder is the run's to make.
    (run if not parse_uri(run.uri).is_local or run.exists("") else Store(config.store)).probe()


def _policy_settings(findings: Findings) -> None:
    config, policy = findings.config, findings.config.policy
    if policy.chat_template:
        with findings.faults_of("policy.chat_template"):
            check_template(Path(policy.chat_template))
    on_cpus = [name for name in ("sampling", "training") if not getattr(config, name).num_gpus]
    if policy.attention == "flash_attention_2" and on_cpus:
        with findings.faults_of("policy.attention"):
            raise ConfigError(
                f"flash_attention_2 runs on GPUs alone, and {on_cpus[0]}.num_gpus is 0; expected sdpa or eager there"
            )


def _model(findings: Findings) -> ModelFiles | None:
    """Look at the model; return its files where they are here."""
    policy = findings.config.policy
    if not is_folder(policy.model):
        _ask_hub(policy)
        findings.say("policy", f"{policy.model} from the hub; its files are looked at when the run starts")
        return None
    if "://" in policy.model:
        check_folder(policy.model)
        findings.say("policy", f"{policy.model}, looked at when the run starts")
        return None
    model = ModelFiles(Path(policy.model))
    model.check()
    _describe(findings, model)
    context, room = model.num_context_tokens, findings.config.sampling.max_tokens
    if context is not None and room >= context:
        with findings.faults_of("sampling.max_tokens"):
            raise ConfigError(f"{room} leaves no room for a prompt in the model's context of {context} tokens")
    return model


def _ask_hub(policy: PolicyConfig) -> None:
    remedy = "expected a hub id, or a folder, relative to the config file"
    try:
        base_policy(policy)
    except ConfigError as error:
        raise ConfigError(f"{error}; {remedy}") from error
    except Exception as error:  # the hub's client lets its HTTP library's errors through
        raise ConfigError(
            f"{policy.model!r} is no folder here, and the hub could not be asked for it ({error}); {remedy}"
        ) from error


def _describe(findings: Findings, model: ModelFiles) -> None:
    policy, training = findings.config.policy, findings.config.training
    weights = model.num_parameters * BYTES[policy.dtype]
    context = model.num_context_tokens
    findings.say(
        "policy",
        f"{model.num_parameters:,} parameters, {_size(weights)} of weights"
        + (f", context of {context:,} tokens" if context else ""),
    )
    if model.has_code:
        findings.say("policy", "Python code comes with the model: read it, then give --trust-remote-code", warns=True)
    share = training.batch_size / (training.workers * training.micro_batch_size)
    # Weights, gradients and AdamW's two moments, the moments and master weights in float32; a base and a mean beside.
    each = (3 if training.kl_weight else 2) * BYTES[policy.dtype] + (8 if policy.dtype == "float32" else 12)
    total = model.num_parameters * (each + (4 if training.ema_decay else 0))
    total /= training.workers if training.zero_stage == 3 else 1
    findings.say(
        "training",
        f"{_count(training.workers, 'worker')}, {_count(max(1, round(share)), 'micro-batch', 'es')} a step, at least "
        f"{_size(total)} a worker beside activations",
    )


def _prompts(findings: Findings, name: str, prompts: PromptsConfig, model: ModelFiles | None) -> list[dict[str, Any]]:
    """Look at the first prompts of a source and return them."""
    config = findings.config
    swaps = config.fairness.num_swaps if config.fairness else 1
    rows, num_bad = _peek(prompts, config.fairness, swaps)
    chat = any(row["messages"][0]["role"] != "raw" for row in rows)
    if chat and model and not config.policy.chat_template and not model.has_chat_template:
        raise ConfigError(
            f"these are chat prompts, and the tokenizer of {config.policy.model} has no chat template. Set "
            "policy.chat_template to a Jinja file, use raw text prompts, or a model that has one"
        )
    more = "or more" if len(rows) == PEEK * swaps and prompts.limit != PEEK else "in all"
    texts = ["\n".join(m["content"] for m in row["messages"]) for row in rows]
    counts = _tokens(texts, model)
    lengths, unit = counts or [len(text) for text in texts], "tokens" if counts else "characters"
    mean = sum(lengths) / len(lengths)
    kind = "chat" if chat else "raw text"
    findings.say(name, f"{len(rows):,} {more}, {kind}, {mean:.0f} {unit} on average, {max(lengths):,} at most")
    if num_bad:
        findings.say(name, f"{_count(num_bad, 'unusable line')} among the first ones, to be set aside", warns=True)
    if counts and model:
        _long_prompts(findings, name, counts, model.num_context_tokens)
    return rows


def _peek(prompts: PromptsConfig, fairness: FairnessConfig | None, swaps: int) -> tuple[list[dict[str, Any]], int]:
    bad: list[BadLine] = []
    limit = min(prompts.limit or PEEK, PEEK)
    # The allowed share of bad lines is one of the whole source: the first ones may be worse.
    few = prompts.model_copy(update={"limit": limit})
    lenient = read_prompts(few.model_copy(update={"max_bad_rate": 1.0}), on_bad=bad.append, fairness=fairness)
    rows = [row for batch in lenient for row in batch.to_pylist()]
    if len(bad) > EARLY or len(rows) < limit * swaps:
        for _ in read_prompts(few, on_bad=lambda _: None, fairness=fairness):
            pass
    return rows, len(bad)


def _tokens(texts: Sequence[str], model: ModelFiles | None) -> list[int] | None:
    if model is None or model.tokenizer is None:
        return None
    return [len(e.ids) for e in model.tokenizer.encode_batch(list(texts), add_special_tokens=False)]


def _long_prompts(findings: Findings, name: str, counts: Sequence[int], context: int | None) -> None:
    """Say which prompts do not fit: a lower bound, since what a chat template adds is not counted."""
    room = findings.config.sampling.max_tokens
    num_long = sum(count + room > context for count in counts) if context is not None and room < context else 0
    problem = f"leave no room for sampling.max_tokens = {room} in the context of {context} tokens"
    if num_long == len(counts) < PEEK:
        raise ConfigError(f"all {len(counts)} prompts {problem}")
    if num_long:
        findings.say(name, f"{num_long:,} of the first {len(counts):,} {problem}; they will be set aside", warns=True)


def _overlap(rows: Sequence[dict[str, Any]], held_out: Sequence[dict[str, Any]]) -> None:
    training = {digest(row["messages"]): row["source"] for row in rows}
    for row in held_out:
        if twin := training.get(digest(row["messages"])):
            source = row["source"]
            raise ConfigError(
                f"{source['file']}:{source['line']}: this held-out prompt also stands among the training prompts, at "
                f"{twin['file']}:{twin['line']}; a policy must not be trained on what it is evaluated on"
            )


def _replay(path: str | None) -> None:
    if path is None:
        return
    filesystem, inner = open_uri(path)
    if filesystem.get_file_info(inner).type != pafs.FileType.File:
        raise ConfigError(f"{path}: there is no such file")


def _budget(findings: Findings) -> None:
    sampling, evaluation = findings.config.sampling, findings.config.evaluation
    findings.say(
        "a round",
        f"{_count(sampling.num_candidates, 'candidate')} a prompt, at most "
        f"{sampling.num_candidates * sampling.max_tokens:,} tokens each prompt; an evaluation adds "
        f"{evaluation.num_samples + 1} completions a held-out prompt",
    )
    # Token ids, text, log-probabilities and verdicts, compressed; the text is what counts.
    per_candidate = 300 + 4 * sampling.max_tokens
    findings.say("disk", f"about {_size(sampling.num_candidates * per_candidate)} a prompt and round at full length")


def _cluster(findings: Findings, nodes: Sequence[Needs]) -> None:
    findings.say("cluster", f"has {describe_nodes(nodes)}")
    for shortage in (text for stage in pools(findings.config) for text in lacking(stage, nodes)):
        if findings.config.cluster.autoscaling:
            findings.say("cluster", f"as it is now, {shortage}. More nodes are asked for when a run starts", warns=True)
            continue
        with findings.faults_of("cluster"):
            raise ConfigError(shortage)


def _size(num_bytes: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"


def _count(number: int, noun: str, ending: str = "s") -> str:
    return f"{number:,} {noun}{'' if number == 1 else ending}"

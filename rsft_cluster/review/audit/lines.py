"""From a sealed round to its audit lines: everything that a decision rests on, one line a candidate."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from rsft_cluster.acceptance.base import rule_of
from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.acceptance.piloted import config_of_round
from rsft_cluster.config import RunConfig
from rsft_cluster.errors import ConfigError
from rsft_cluster.records import AuditHead, Manifest, Plan
from rsft_cluster.review.audit.chain import START, chained
from rsft_cluster.review.inspection import Filter, inspect
from rsft_cluster.schemas import digest
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

COPIED = (
    "candidate_id", "prompt_id", "index", "wave", "seed", "policy", "text", "finish_reason", "num_tokens", "content",
    "logprob", "target_logprob", "survival", "decision", "score", "passed", "u", "rule_probability", "cell",
    "cell_weight", "swaps_agree", "acceptance_probability", "repeat_of", "rank", "cap", "accepted", "reason",
)  # fmt: skip
"""What a line takes over from candidate and score as it stands there."""
FORM = 2
"""Of the lines that are written here. Another number with every change of what a line holds: its hash is another then.
In form 1 `decided_by` had the module that a built-in rule lies in, in 2 it has the rule as the config names it."""


def round_lines(store: Store, number: int, previous: str) -> Iterator[dict[str, Any]]:
    """Yield the chained lines of a sealed round, its own facts first; `previous` is the hash that they follow on."""
    yield from chained(_lines(store, number), previous)


def previous_head(store: Store, number: int) -> str:
    """Return the head of the sealed round before, or START."""
    layout = RunLayout(store)
    earlier = [n for n in layout.sealed_rounds() if n < number]
    return store.read_record(layout.round(earlier[-1]).audit, AuditHead).head if earlier else START


def head_of(store: Store, number: int) -> AuditHead:
    """Go through the lines of a sealed round and return the end of its chain."""
    head, num_lines = previous_head(store, number), 0
    for line in round_lines(store, number, head):
        head, num_lines = line["hash"], num_lines + 1
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return AuditHead(round=number, num_lines=num_lines, head=head, sealed_at=now, form=FORM)


def of_another_form(head: AuditHead) -> str | None:
    """Say of a round whose lines cannot be made again here that this is so; None of another."""
    if head.form == FORM:
        return None
    version = "an earlier version" if head.form < FORM else "a later version"
    return (
        f"round {head.round}: {version} of rsft-cluster sealed its audit trail, in lines of form {head.form}, and this "
        f"one writes form {FORM}: verify it with that version, or what that version exports of it"
    )


def exported_lines(store: Store, number: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of a sealed round; raises ConfigError where they were sealed in another form."""
    path = RunLayout(store).round(number).audit
    if store.exists(path) and (refusal := of_another_form(store.read_record(path, AuditHead))):
        raise ConfigError(refusal)
    yield from round_lines(store, number, previous_head(store, number))


def _lines(store: Store, number: int) -> Iterator[dict[str, Any]]:
    run = RunLayout(store)
    layout = run.round(number)
    if not store.exists(layout.manifest):
        sealed = ", ".join(map(str, run.sealed_rounds())) or "none"
        raise ConfigError(f"{store.uri}: round {number} is not sealed; sealed rounds: {sealed}")
    config, manifest = config_of_round(store, number), store.read_record(layout.manifest, Manifest)
    plan = store.read_record(layout.plan, Plan)
    yield _facts(store.read(run.config), plan, manifest)
    decided_by = _decided_by(config, number)
    parts = {c.name: {"required": c.required, "weight": c.weight} for c in config.scoring.constraints}
    for row in inspect(store, number, Filter()):
        if row["state"] == "quarantined":
            yield {
                "kind": "quarantined", "round": number, "prompt_id": row["prompt_id"],
                "prompt_sha": digest(row["messages"]), "reason": row["reason"],
            }  # fmt: skip
            continue
        yield {
            "kind": "candidate",
            "round": number,
            "prompt_sha": digest(row["messages"]),
            "swap_group": row["attributes"].get("swap_group"),
            "keyed_by": {"seed": plan.seed, "stream": plan.stream},
            "verdicts": [_verdict(v, parts[v["constraint"]]) for v in row["verdicts"]],
            "decided_by": decided_by,
            **{name: row[name] for name in COPIED},
        }


def _facts(config: bytes, plan: Plan, manifest: Manifest) -> dict[str, Any]:
    """Return what holds for all candidates of a round. The config as it was stored: a later version may read more."""
    return {
        "kind": "round",
        "run": json.loads(config)["run"],
        "round": manifest.round,
        "config_sha": hashlib.sha256(config).hexdigest(),
        "fingerprint": manifest.fingerprint,
        "policy": manifest.policy.model_dump(),
        "generator": manifest.generator,
        "passes": [sampling_pass.model_dump(mode="json") for sampling_pass in plan.passes],
        "processors": list(manifest.processors),
        "target": manifest.rule,
        "chosen": manifest.chosen,
        "content": manifest.content,
    }


def _decided_by(config: RunConfig, number: int) -> dict[str, Any]:
    rule = bind_rule(config.acceptance, number)
    return {
        "use": rule.name,
        "params": dict(rule.params),
        "scope": rule_of(rule).scope,
        "drop_all_passed": config.acceptance.drop_all_passed,
        "weighs_cells": config.fairness is not None and config.fairness.cells != "none",
    }


def _verdict(verdict: dict[str, Any], part: dict[str, Any]) -> dict[str, Any]:
    """Return a verdict for a line: without its duration, and with the part it plays in the score."""
    copied = {name: verdict[name] for name in ("constraint", "score", "passed", "reason", "fatal_at")}
    applies = verdict["error"] is not None or verdict["score"] is not None
    return {**copied, "is_error": verdict["error"] is not None, "applies": applies, **part}

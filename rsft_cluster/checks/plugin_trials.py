"""Trials of a config's plug-ins: rules on made-up rows, constraints on the reference of a real prompt."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.compatible import check_compatible
from rsft_cluster.acceptance.decide import bind_rule, decide, target_of
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.checks.findings import Findings
from rsft_cluster.config import AcceptanceConfig, Constraint, Plugin
from rsft_cluster.constraints.base import BatchConstraint, Candidate
from rsft_cluster.constraints.building import build, cases_of, is_isolated
from rsft_cluster.constraints.outcomes import outcomes_of
from rsft_cluster.errors import ConfigError
from rsft_cluster.evaluation.figures import PER_PROMPT
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.schemas import to_messages
from rsft_cluster.scoring.isolation.pool import ProcessPool
from rsft_cluster.scoring.judge import Judge, applies
from rsft_cluster.training.terms.configured import terms_of


def bind_all(findings: Findings) -> None:
    """Bind every plug-in but the prompt sources, and try the rules."""
    config = findings.config
    with findings.faults_of("sampling.generator"):
        generator = bind(config.sampling.generator, "generators", num_leading=1)
        if config.sampling.generator.use == "scripted":
            generator(PolicySpec(os.devnull))  # its parameters are meant, not the model
    for i, constraint in enumerate(config.scoring.constraints):
        with findings.faults_of(f"scoring.constraints.{i}"):
            Judge([constraint])
            cases_of(constraint)
    with findings.faults_of("acceptance.rule"):
        rule = bind_rule(config.acceptance)
        with _trying(config.acceptance.rule.use):
            decide(_made_up_candidates(), SelectionRules(rule, AcceptanceConfig(dedupe=False)))
        findings.say("acceptance", f"targets {target_of(rule)}")
        check_compatible(config)
    with findings.faults_of("promotion.rule"):
        promote = bind(config.promotion.rule, "promotion_rules", num_leading=2)
        with _trying(config.promotion.rule.use):
            promote(_made_up_results(0), _made_up_results(1))
    for i, term in enumerate(config.training.terms):
        with findings.faults_of(f"training.terms.{i}"):
            terms_of(config.training.model_copy(update={"terms": (term,)}))
    for i, tracker in enumerate(config.trackers):
        with findings.faults_of(f"trackers.{i}"):
            bind(tracker, "trackers", num_leading=1)


@contextmanager
def _trying(use: str) -> Iterator[None]:
    """Turn whatever a rule raises on made-up rows into a ConfigError: its parameters are wrong, or it is."""
    try:
        yield
    except ConfigError:
        raise
    except Exception as error:  # a plug-in may raise anything
        raise ConfigError(f"{use} fails on a few made-up rows: {type(error).__name__}: {error}") from error


def _made_up_candidates() -> pa.Table:
    rows = [
        {
            "candidate_id": f"c{i}",
            "prompt_id": f"p{i // 2}",
            "index": i % 2,
            "score": score,
            "passed": None if score is None else score == 1.0,
            "num_tokens": 3,
            "logprob": -3.0,
            "target_logprob": -3.0,
            "survival": 1.0,
            "content": f"t{i}",
            "u": 0.5,
        }
        for i, score in enumerate((1.0, 0.5, 1.0, None))
    ]
    return pa.Table.from_pylist(rows, schema=JUDGED)


def _made_up_results(shift: int) -> pa.Table:
    rows = [
        {
            "prompt_id": f"p{i}",
            "greedy_passed": bool((i + shift) % 2),
            "num_samples": 4,
            "num_passed": i,
            "pass_rate": i / 4,
            "mean_score": i / 4,
        }
        for i in range(4)
    ]
    return pa.Table.from_pylist(rows, schema=PER_PROMPT)


def try_constraints(findings: Findings, row: dict[str, Any]) -> None:
    """Let constraints judge the reference of a prompt; skip those that may load a model at their first call."""
    candidate = Candidate(
        completion=row["reference"] or "I do not know.",
        messages=to_messages(row["messages"]),
        reference=row["reference"],
        attributes=dict(row["attributes"]),
        num_tokens=3,
        prompt_id=row["prompt_id"],
    )
    origin = f"{row['source']['file']}:{row['source']['line']}"
    for i, constraint in enumerate(findings.config.scoring.constraints):
        try:
            is_built_in, error = _try(constraint, candidate, findings.config.scoring.process_memory_bytes)
        except ConfigError:
            continue  # reported already
        if error is None:
            continue
        problem = f"{constraint.use} cannot judge an answer to {origin}: {error.strip().splitlines()[-1]}"
        if row["reference"] is None:
            problem += "; `columns.reference` of these prompts names the right answers"
        key = f"scoring.constraints.{i}"
        if is_built_in:
            with findings.faults_of(key):
                raise ConfigError(problem)
        # Somebody's own constraint may need what only the cluster has.
        findings.say(key, problem, warns=True)


def _try(constraint: Constraint, candidate: Candidate, memory_bytes: int) -> tuple[bool, str | None]:
    """Return whether a constraint is built in, and its error. Another one may hang: it runs in its own process."""
    built, is_built_in = build(constraint, name=constraint.name), _is_built_in(constraint)
    if not applies(constraint, candidate) or not is_isolated(built):
        return is_built_in, None
    if is_built_in:
        return is_built_in, outcomes_of(built, [candidate])[0].error
    if isinstance(built, BatchConstraint) and not _parts(constraint):
        return is_built_in, None
    pool = ProcessPool([constraint], num_processes=1, memory_bytes=memory_bytes)
    try:
        return is_built_in, pool.judge([candidate], [[0]])[0][0].error
    finally:
        pool.close()


def _is_built_in(constraint: Plugin) -> bool:
    attribute = bind(constraint, "constraints", num_leading=1).load()
    return attribute.__module__.startswith("rsft_cluster.constraints.") and all(map(_is_built_in, _parts(constraint)))


def _parts(constraint: Plugin) -> Sequence[Plugin]:
    """Return what a composed constraint is made of."""
    bound = bind(constraint, "constraints", num_leading=1)
    return bound.params["constraints"] if bound.use.startswith("rsft_cluster.constraints.composed:") else ()

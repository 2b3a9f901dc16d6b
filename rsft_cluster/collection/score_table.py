"""From judgements to SCORE rows, and from SCORE rows to decisions: the same function in a unit and at the seal."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import hashlib
import re
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.decide import DECIDED, decide
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.config import FairnessConfig
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.keys import acceptance_uniform
from rsft_cluster.records import Plan
from rsft_cluster.schemas import ACCEPTED, SCORE, conform, rows_to_table, to_messages
from rsft_cluster.scoring.judge import ConstraintVerdict, Judgement

UNDECIDED = {
    "rule_probability": 0.0,
    "cell": None,
    "cell_weight": 1.0,
    "swaps_agree": None,
    "acceptance_probability": 0.0,
    "repeat_of": None,
    "rank": None,
    "cap": None,
    "accepted": False,
}
"""What the decision's columns hold before it is made. The reason is that of the judgement until then."""

Attributes = Mapping[str, Sequence[tuple[str, str]]]
"""Of every prompt, by its id."""


def undecided_table(
    candidates: pa.Table, judgements: Sequence[Judgement], plan: Plan, fairness: FairnessConfig | None
) -> pa.Table:
    """Return the SCORE rows of judged candidates, in their order, with all that a decision rests on."""
    decision = re.compile(fairness.decision) if fairness else None
    rows = [
        {
            **UNDECIDED,
            "candidate_id": row["candidate_id"],
            "prompt_id": row["prompt_id"],
            "index": row["index"],
            "score": judgement.score,
            "passed": judgement.passed,
            "verdicts": [verdict_row(verdict) for verdict in judgement.verdicts],
            "num_tokens": len(row["token_ids"]),
            "logprob": row["logprob"],
            "target_logprob": row["target_logprob"],
            "survival": row["survival"],
            "content": _digest_of(row["token_ids"]),
            "decision": _decision(decision, row["text"]) if decision else None,
            "u": acceptance_uniform(plan.seed, plan.stream, row["prompt_id"], row["index"]),
            "reason": judgement.reason,
        }
        for row, judgement in zip(candidates.to_pylist(), judgements, strict=True)
    ]
    return rows_to_table(rows, SCORE)


def verdict_row(verdict: ConstraintVerdict) -> dict[str, object]:
    """Return a verdict as SCORE rows hold it: a row of schemas.VERDICT."""
    return verdict._asdict()


def attributes_of(prompts: pa.Table) -> Attributes:
    """Return the attributes of PROMPT rows."""
    ids, attributes = prompts.column("prompt_id").to_pylist(), prompts.column("attributes").to_pylist()
    return dict(zip(ids, attributes, strict=True))


def judged_table(scores: pa.Table, attributes: Attributes | None, texts: Sequence[str] | None) -> pa.Table:
    """Return the JUDGED rows of SCORE rows, in their order; attributes and texts only where a decision needs them."""
    size, kind = scores.num_rows, JUDGED.field("attributes").type
    of_each = [attributes[p] for p in scores.column("prompt_id").to_pylist()] if attributes is not None else None
    given = {
        "attributes": pa.nulls(size, kind) if of_each is None else pa.array(of_each, kind),
        "text": pa.nulls(size, pa.string()) if texts is None else pa.array(texts, pa.string()),
    }
    columns = [given[name] if name in given else scores.column(name) for name in JUDGED.names]
    return pa.table(columns, names=JUDGED.names).cast(JUDGED)


def decided_table(scores: pa.Table, prompts: pa.Table, candidates: pa.Table, selection: SelectionRules) -> pa.Table:
    """Return the SCORE rows of whole groups with their decisions."""
    texts = candidates.column("text").to_pylist() if selection.needs_text else None
    attributes = attributes_of(prompts) if selection.fairness else None
    return with_decisions(scores, decide(judged_table(scores, attributes, texts), selection).table)


def with_decisions(scores: pa.Table, decided: pa.Table) -> pa.Table:
    """Return SCORE rows with the DECIDED rows of the same candidates, in the same order, put in.

    A candidate that did not pass keeps the reason of its judgement, unless it was accepted all the same.
    """
    assert scores.column("candidate_id") == decided.column("candidate_id")
    judged = pc.fill_null(scores.column("passed"), False)
    reasons = pc.if_else(pc.or_(judged, decided.column("accepted")), decided.column("reason"), scores.column("reason"))
    for name in DECIDED.names:
        column = reasons if name == "reason" else decided.column(name)
        scores = scores.set_column(scores.column_names.index(name), name, column)
    return conform(scores, SCORE)


def _digest_of(token_ids: Sequence[int]) -> str:
    return hashlib.blake2b(np.asarray(token_ids, dtype=np.int32).tobytes(), digest_size=12).hexdigest()


def _decision(pattern: re.Pattern[str], text: str) -> str | None:
    found = pattern.search(text)
    return found[1] if found else None


def as_candidates(prompts: pa.Table, candidates: pa.Table) -> list[Candidate]:
    """Return what constraints see of CANDIDATE rows, given their PROMPT rows."""
    by_id = {row["prompt_id"]: row for row in prompts.to_pylist()}
    messages = {key: to_messages(row["messages"]) for key, row in by_id.items()}
    return [
        Candidate(
            completion=row["text"],
            messages=messages[row["prompt_id"]],
            reference=by_id[row["prompt_id"]]["reference"],
            attributes=dict(by_id[row["prompt_id"]]["attributes"]),
            finish_reason=row["finish_reason"],
            num_tokens=len(row["token_ids"]),
            index=row["index"],
            candidate_id=row["candidate_id"],
            prompt_id=row["prompt_id"],
        )
        for row in candidates.to_pylist()
    ]


def accepted_table(prompts: pa.Table, candidates: pa.Table, scores: pa.Table) -> pa.Table:
    """Return the ACCEPTED rows: the candidates that the rule kept, as sampled."""
    kept = scores.column("accepted")
    chosen = candidates.filter(kept).combine_chunks()
    places = pc.index_in(chosen.column("prompt_id"), value_set=prompts.column("prompt_id"))
    table = chosen.append_column("messages", prompts.column("messages").take(places))
    table = table.append_column("score", scores.column("score").filter(kept))
    table = table.append_column("weight", pa.array(np.ones(chosen.num_rows)))
    return conform(table.select(ACCEPTED.names).combine_chunks(), ACCEPTED)

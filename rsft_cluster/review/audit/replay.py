"""Replay of a decision from its audit line, with nothing else at hand."""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from rsft_cluster.acceptance.base import JUDGED, Chosen
from rsft_cluster.acceptance.decide import DROPPED
from rsft_cluster.errors import RsftError
from rsft_cluster.keys import acceptance_uniform
from rsft_cluster.plugins import Bound, known, locate
from rsft_cluster.schemas import candidate_id
from rsft_cluster.scoring.judge import combined

Line = Mapping[str, Any]
TOLERANCE = 1e-9


def replay(line: Line, trusted: Collection[str] | None = None) -> list[str]:
    """Return what in a candidate's line does not follow from the rest of it; nothing where the decision holds.

    From the verdicts the score; from the score, where the rule decides candidate by candidate, the rule's probability;
    from that, the fairness cell and the survival the acceptance probability; from the key the uniform; from all of
    them, the rank and the cap whether it was accepted. Rules that look at whole groups are checked by `verify`; of the
    others only those among `trusted` are asked, by default the ones that are installed under a name.
    """
    declared = known("acceptance_rules")
    trusted = {*declared, *declared.values()} if trusted is None else trusted
    problems = [*_identity(line), *_judgement(line), *_probability(line, trusted), *_decision(line)]
    return [problem for problem in problems if problem]


def _identity(line: Line) -> list[str]:
    problems = []
    if line["candidate_id"] != candidate_id(line["prompt_id"], line["round"], line["index"]):
        problems.append("candidate_id is not the digest of prompt, round and index")
    keyed_by = line["keyed_by"]
    if line["u"] != acceptance_uniform(keyed_by["seed"], keyed_by["stream"], line["prompt_id"], line["index"]):
        problems.append("u is not the uniform of its key")
    return problems


def _judgement(line: Line) -> list[str]:
    """Check score and passed against the verdicts; an error of a constraint that counts leaves both open."""
    verdicts = line["verdicts"]
    counting = [v for v in verdicts if v["required"] or v["weight"] > 0]
    if any(v["is_error"] for v in counting):
        is_open = line["score"] is None and line["passed"] is None
        return [] if is_open else ["a constraint failed to judge it, and it has a score all the same"]
    if not any(v["applies"] for v in counting):
        is_open = line["score"] is None and line["passed"] is None
        return [] if is_open else ["no constraint that counts judged it, and it has a score all the same"]
    judged = [v for v in verdicts if v["applies"] and not v["is_error"]]
    score, passed = combined([(v["required"], v["weight"], v["score"], v["passed"]) for v in judged])
    problems = []
    if line["passed"] is not passed:
        problems.append(f"passed is {line['passed']}, its verdicts say {passed}")
    if line["score"] is None or not math.isclose(line["score"], score, abs_tol=TOLERANCE):
        problems.append(f"score is {line['score']}, its verdicts say {score}")
    return problems


def _probability(line: Line, trusted: Collection[str]) -> list[str]:
    problems, rule = [], line["rule_probability"]
    if line["passed"] is None and rule != 0:
        problems.append(f"rule_probability is {rule} for what could not be judged")
    elif line["passed"] is not None and line["decided_by"]["scope"] == "candidate":
        problems += _rule(line, trusted)
    expected = min(1.0, rule / line["survival"]) * line["cell_weight"]
    if line["swaps_agree"] is False or (line["decided_by"]["weighs_cells"] and line["decision"] is None):
        expected = 0.0
    if not math.isclose(line["acceptance_probability"], expected, abs_tol=TOLERANCE):
        problems.append(f"acceptance_probability is {line['acceptance_probability']}, from the rest follows {expected}")
    return problems


def _rule(line: Line, trusted: Collection[str]) -> list[str]:
    """Ask the rule itself about this one candidate.

    A line may come from anywhere, and what it names is code: only the trusted rules are asked.
    """
    if line["decided_by"]["use"] not in trusted:
        return []
    row = {name: line.get(name) for name in JUDGED.names}
    try:
        use = line["decided_by"]["use"]
        rule = Bound(locate(use, "acceptance_rules"), line["decided_by"]["params"], use)
        answer = rule(pa.Table.from_pylist([row], schema=JUDGED))
    except RsftError as error:
        return [f"the rule cannot be asked again: {error}"]
    answer = answer.probabilities if isinstance(answer, Chosen) else answer
    probability = float(np.asarray(answer)[0])
    if math.isclose(probability, line["rule_probability"], abs_tol=TOLERANCE):
        return []
    return [f"rule_probability is {line['rule_probability']}, the rule says {probability}"]


def _decision(line: Line) -> list[str]:
    drawn = line["u"] < line["acceptance_probability"]
    fresh = drawn and line["repeat_of"] is None
    problems = []
    if (line["rank"] is not None) != fresh:
        problems.append("has a rank without being drawn" if not fresh else "was drawn and has no rank")
    within = fresh and (line["cap"] is None or line["rank"] is None or line["rank"] < line["cap"])
    dropped = line["decided_by"]["drop_all_passed"] and line["reason"] == DROPPED
    if line["accepted"] is not (within and not dropped):
        problems.append(f"accepted is {line['accepted']}, from the rest follows {within and not dropped}")
    return problems

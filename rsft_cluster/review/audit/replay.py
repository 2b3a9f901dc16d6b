"""The decision again, from an audit line alone."""

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

    From the verdicts the score; from the score, where the rule decides each candidate alone, the rule's probability;
    from that, the fairness cell and the survival the acceptance probability; from the key the uniform; from all of
    them, the rank and the cap whether it was accepted. Rules that look at whole groups are checked by `verify`; of the
    others those among `trusted` are asked, by default the ones that are installed under a name.
    """
    declared = known("acceptance_rules")
    trusted = {*declared, *declared.values()} if trusted is None else trusted
    found = [*_identity(line), *_judgement(line), *_probability(line, trusted), *_decision(line)]
    return [problem for problem in found if problem]


def _identity(line: Line) -> list[str]:
    found = []
    if line["candidate_id"] != candidate_id(line["prompt_id"], line["round"], line["index"]):
        found.append("candidate_id is not the digest of prompt, round and index")
    keyed_by = line["keyed_by"]
    if line["u"] != acceptance_uniform(keyed_by["seed"], keyed_by["stream"], line["prompt_id"], line["index"]):
        found.append("u is not the uniform of its key")
    return found


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
    found = []
    if line["passed"] is not passed:
        found.append(f"passed is {line['passed']}, its verdicts say {passed}")
    if line["score"] is None or not math.isclose(line["score"], score, abs_tol=TOLERANCE):
        found.append(f"score is {line['score']}, its verdicts say {score}")
    return found


def _probability(line: Line, trusted: Collection[str]) -> list[str]:
    found, rule = [], line["rule_probability"]
    if line["passed"] is None and rule != 0:
        found.append(f"rule_probability is {rule} for what could not be judged")
    elif line["passed"] is not None and line["decided_by"]["scope"] == "candidate":
        found += _rule(line, trusted)
    expected = min(1.0, rule / line["survival"]) * line["cell_weight"]
    if line["swaps_agree"] is False or (line["decided_by"]["weighs_cells"] and line["decision"] is None):
        expected = 0.0
    if not math.isclose(line["acceptance_probability"], expected, abs_tol=TOLERANCE):
        found.append(f"acceptance_probability is {line['acceptance_probability']}, from the rest follows {expected}")
    return found


def _rule(line: Line, trusted: Collection[str]) -> list[str]:
    """Ask the rule itself about this one candidate.

    A line may come from anywhere, and what it names is code: other rules than the trusted ones are not asked.
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
    said = float(np.asarray(answer)[0])
    if math.isclose(said, line["rule_probability"], abs_tol=TOLERANCE):
        return []
    return [f"rule_probability is {line['rule_probability']}, the rule says {said}"]


def _decision(line: Line) -> list[str]:
    drawn = line["u"] < line["acceptance_probability"]
    fresh = drawn and line["repeat_of"] is None
    found = []
    if (line["rank"] is not None) != fresh:
        found.append("has a rank without being drawn" if not fresh else "was drawn and has no rank")
    within = fresh and (line["cap"] is None or line["rank"] is None or line["rank"] < line["cap"])
    dropped = line["decided_by"]["drop_all_passed"] and line["reason"] == DROPPED
    if line["accepted"] is not (within and not dropped):
        found.append(f"accepted is {line['accepted']}, from the rest follows {within and not dropped}")
    return found

"""Why a candidate was kept or not, in words, step by step, from its audit line."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rsft_cluster.acceptance.decide import DROPPED
from rsft_cluster.errors import ConfigError
from rsft_cluster.review.audit.lines import previous_head, round_lines
from rsft_cluster.review.inspection import Filter, inspect
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout


@dataclass(frozen=True)
class Step:
    """One step of a decision."""

    title: str
    says: str
    holds: bool | None = None
    """Whether the candidate passed it; None where there was nothing to pass."""


def find_line(store: Store, candidate: str) -> tuple[dict[str, Any], list[dict[str, str]]]:
    """Return the audit line of a candidate of a sealed round, by the beginning of its id, and its prompt's messages.

    Raises ConfigError where none begins so, or several do.
    """
    candidates = []
    for number in RunLayout(store).sealed_rounds():
        rows = [r for r in inspect(store, number, Filter()) if r.get("candidate_id", "").startswith(candidate)]
        candidates += [(number, row) for row in rows]
    if not candidates:
        raise ConfigError(f"{candidate}: no candidate of a sealed round begins so; `rsft inspect --json` lists them")
    if len(candidates) > 1:
        some = ", ".join(row["candidate_id"] for _, row in candidates[:3])
        raise ConfigError(f"{candidate}: {len(candidates)} candidates begin so ({some}, ...); give more of the id")
    number, row = candidates[0]
    lines = round_lines(store, number, previous_head(store, number))
    line = next(line for line in lines if line.get("candidate_id") == row["candidate_id"])
    return line, row["messages"]


def explained(line: Mapping[str, Any]) -> list[Step]:
    """Return the steps of a candidate's decision, as far as it came."""
    steps = [_verdict(verdict) for verdict in line["verdicts"]]
    if line["passed"] is None:
        counting = [v for v in line["verdicts"] if v["required"] or v["weight"] > 0]
        judged = any(v["applies"] for v in counting)
        why = "a constraint failed to judge it" if judged else "no constraint that counts judged it"
        return [*steps, Step("judgement", f"{why}, so it is never accepted", holds=False)]
    judged = "passed every required constraint" if line["passed"] else "a required constraint did not pass"
    steps.append(Step("judgement", f"{judged}; its score is {line['score']:.4g}", holds=line["passed"]))
    rule = line["decided_by"]
    name = rule["use"].rpartition(":")[2]
    params = ", ".join(f"{key} = {value}" for key, value in rule["params"].items())
    chance = line["rule_probability"]
    steps.append(
        Step(f"rule {name}", f"{params + ': ' if params else ''}keeps it with probability {chance:.4g}", chance > 0)
    )
    steps += _fairness(line)
    if line["survival"] != 1.0:
        says = f"{line['survival']:.4g} of its chance was left when it was drawn; the rest had been rejected already"
        steps.append(Step("adaptive sampling", says))
    if line["acceptance_probability"] > 0:
        steps += _draw(line)
    return steps


def _verdict(verdict: Mapping[str, Any]) -> Step:
    part = "required" if verdict["required"] else f"weight {verdict['weight']:g}"
    if verdict["is_error"]:
        return Step(verdict["constraint"], f"could not judge: {verdict['reason']} ({part})", holds=False)
    if not verdict["applies"]:
        return Step(verdict["constraint"], f"{verdict['reason']} ({part})", holds=None)
    reason = f": {verdict['reason']}" if verdict["reason"] else ""
    return Step(verdict["constraint"], f"score {verdict['score']:.4g}{reason} ({part})", holds=verdict["passed"])


def _fairness(line: Mapping[str, Any]) -> list[Step]:
    steps = []
    if line["decision"] is not None:
        steps.append(Step("decides", f"{line['decision']}"))
    elif line["decided_by"]["weighs_cells"]:
        steps.append(Step("decides", "nothing: no decision was found in it", holds=False))
    if line["swaps_agree"] is not None:
        says = "passed and decided alike under every protected value" if line["swaps_agree"] else line["reason"]
        steps.append(Step("swapped attributes", says, line["swaps_agree"]))
    if line["cell_weight"] != 1.0:
        steps.append(
            Step("fairness cell", f"{line['cell']}: its probability is multiplied by {line['cell_weight']:.4g}")
        )
    return steps


def _draw(line: Mapping[str, Any]) -> list[Step]:
    u, chance = line["u"], line["acceptance_probability"]
    drawn = u < chance
    steps = [Step("draw", f"u = {u:.4f} {'is' if drawn else 'is not'} below {chance:.4g}", drawn)]
    if line["repeat_of"] is not None:
        steps.append(Step("repeats", f"candidate {line['repeat_of']} of this prompt", holds=False))
    elif line["cap"] is not None and line["rank"] is not None:
        rank = f"number {line['rank'] + 1} of its prompt, which keeps {line['cap']}"
        steps.append(Step("cap", rank, line["rank"] < line["cap"]))
    if line["reason"] == DROPPED:
        steps.append(Step("its prompt", "all of its candidates passed: nothing is left to learn there", holds=False))
    return steps

"""Acceptance: which judged candidates become training examples. JUDGED -> probability, accepted, reason.

A rule gives each candidate a probability, fairness may lower it; `decide` compares it with the candidate's stored u,
drops repeats and applies the caps. Pure and independent of row order, so deciding again on stored facts gives the same
answer.
"""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from rsft_cluster import config
from rsft_cluster.acceptance.base import JUDGED, Chosen, rule_of
from rsft_cluster.acceptance.fairness import Fairness, judge_fairness
from rsft_cluster.acceptance.group_arrays import codes
from rsft_cluster.acceptance.selection import Flags, SelectionRules, prompt_goals, rank_drawn, repeats
from rsft_cluster.errors import ConfigError, PluginError, SchemaError, StageError
from rsft_cluster.plugins import Bound, bind

DECIDED = pa.schema(
    [
        pa.field("candidate_id", pa.string(), nullable=False),
        pa.field("rule_probability", pa.float64(), nullable=False),
        pa.field("cell", pa.string()),
        pa.field("cell_weight", pa.float64(), nullable=False),
        pa.field("swaps_agree", pa.bool_()),
        pa.field("acceptance_probability", pa.float64(), nullable=False),
        pa.field("repeat_of", pa.int32()),
        pa.field("rank", pa.int32()),
        pa.field("cap", pa.int32()),
        pa.field("accepted", pa.bool_(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
    ]
)
"""What `decide` returns, one row a candidate."""


DROPPED = "every candidate of its prompt passed"
"""The reason given to candidates that `drop_all_passed` leaves out."""
NO_CAP = 2**31 - 1


@dataclass(frozen=True)
class Decided:
    """Every candidate's decision, and the numbers chosen by looking at all of them."""

    table: pa.Table
    """DECIDED rows, in the order of the judged ones."""
    chosen: Mapping[str, float] = field(default_factory=dict)


def selection_rules(run: config.RunConfig, round_number: int) -> SelectionRules:
    """Return what a round of a run decides by; rounds are counted from 1."""
    budget = run.budget if run.budget.wave_size else None
    return SelectionRules(bind_rule(run.acceptance, round_number), run.acceptance, budget, run.fairness)


def bind_rule(acceptance: config.AcceptanceConfig, round_number: int = 1) -> Bound:
    """Return the acceptance rule bound to its parameters of a round; PluginError where it is none."""
    bound = bind(scheduled(acceptance, round_number), "acceptance_rules", num_leading=1)
    attribute = bound.load()
    undeclared = [name for name in ("target", "scope") if not isinstance(getattr(attribute, name, None), str)]
    if undeclared:
        raise PluginError(
            f"{acceptance.rule.use}: declares no {' and no '.join(undeclared)}; "
            'an acceptance rule is decorated with @rule(target="...") of rsft_cluster.acceptance.base'
        )
    return bound


def scheduled(acceptance: config.AcceptanceConfig, round_number: int) -> config.Plugin:
    """Return the rule with the parameters that the schedule gives it in a round, counted from 1."""
    params = {name: values[min(round_number, len(values)) - 1] for name, values in acceptance.schedule.items()}
    return acceptance.rule.model_copy(update={"params": {**acceptance.rule.params, **params}})


def parameters_of(rule: Bound) -> dict[str, Any]:
    """Return a bound rule's parameters, defaults included."""
    signature = inspect.signature(rule.load()).parameters.items()
    return {name: p.default for name, p in signature if p.default is not p.empty} | dict(rule.params)


def target_of(rule: Bound) -> str:
    """Return the target distribution of a bound rule in words, its parameters filled in."""
    target = rule_of(rule).target
    for name, value in parameters_of(rule).items():
        target = target.replace(f"{{{name}}}", str(value))
    return target


@dataclass(frozen=True)
class Selected:
    """Every candidate's way through the decision, as arrays with one value a row."""

    probability: NDArray[np.float64]
    """The rule's probability; 0 for candidates that could not be judged."""
    fair: Fairness
    final: NDArray[np.float64]
    """The probability after survival and fairness."""
    drawn: Flags
    original: NDArray[np.int64]
    """The index of the candidate that it repeats; -1 where it repeats none."""
    rank: NDArray[np.int64]
    cap: NDArray[np.int64]
    dropped: Flags
    """Whether `drop_all_passed` leaves its prompt out."""
    chosen: Mapping[str, float]

    @property
    def fresh(self) -> Flags:
        """Which rows are drawn and repeat nothing."""
        return self.drawn & (self.original < 0)

    @property
    def within(self) -> Flags:
        """Which of the fresh rows the caps leave."""
        return self.fresh & (self.rank < self.cap)

    @property
    def accepted(self) -> Flags:
        """Which rows are kept."""
        return self.within & ~self.dropped


def select(judged: pa.Table, selection: SelectionRules) -> Selected:
    """Select among JUDGED rows, which must hold complete groups, or the complete round, as the rule's scope requires.

    A candidate is accepted when its u is below its probability. Then, of several with the same tokens (or nearly the
    same text) in a prompt, the one of lowest index stays, and then as many as the caps allow. A candidate that could
    not be judged is never accepted. Raises ConfigError where candidates lack a column that the rule needs.
    """
    _check_needs(selection.rule, judged)
    probability, chosen = _probabilities(selection.rule, judged)
    usable = _numpy(judged, "passed", is_valid=True)
    probability[~usable] = 0.0
    final = np.clip(probability / _numpy(judged, "survival"), 0.0, 1.0)
    fair = judge_fairness(judged, final, selection.fairness)
    final = np.where(fair.objected, 0.0, final * fair.weights)
    drawn: Flags = _numpy(judged, "u") < final
    original = repeats(judged, drawn, selection.acceptance)
    rank = rank_drawn(judged, drawn & (original < 0), selection)
    cap = np.full(len(rank), selection.acceptance.max_per_prompt or NO_CAP)
    cap = np.minimum(cap, prompt_goals(judged, drawn, selection.budget)) if selection.budget else cap
    dropped = _all_passed(judged) if selection.acceptance.drop_all_passed else np.zeros(len(rank), dtype=bool)
    return Selected(probability, fair, final, drawn, original, rank, cap, dropped, {**chosen, **fair.chosen})


def decide(judged: pa.Table, selection: SelectionRules) -> Decided:
    """Select, and give every candidate its reason."""
    judged = _judged(judged)
    selected = select(judged, selection)
    reasons = _reasons(judged, selected.probability, selected.final, selected.fair)
    reasons = pc.if_else(selected.drawn & ~selected.fresh, _repeat_reasons(selected.original), reasons)
    reasons = pc.if_else(selected.fresh & ~selected.within, _cap_reasons(selected.cap), reasons)
    reasons = pc.if_else(selected.within & selected.dropped, DROPPED, reasons)
    reasons = pc.if_else(selected.accepted, "kept", reasons)
    columns = [
        judged.column("candidate_id"),
        pa.array(selected.probability),
        selected.fair.cells,
        pa.array(selected.fair.weights),
        selected.fair.agreement,
        pa.array(selected.final),
        pa.array(selected.original, mask=selected.original < 0),
        pa.array(selected.rank, mask=~selected.fresh),
        pa.array(selected.cap, mask=selected.cap == NO_CAP),
        pa.array(selected.accepted),
        reasons,
    ]
    columns = [c.cast(f.type) for c, f in zip(columns, DECIDED, strict=True)]
    return Decided(pa.table(columns, schema=DECIDED), selected.chosen)


def _check_needs(rule: Bound, judged: pa.Table) -> None:
    for name in rule_of(rule).needs:
        if num_missing := judged.column(name).null_count:
            raise ConfigError(
                f"acceptance.rule: {rule.use} needs the {name} of every candidate, and {num_missing:,} of "
                f"{judged.num_rows:,} have none: they were brought in without. Bring them in with it, or use a rule "
                "that looks at scores alone"
            )


def _judged(table: pa.Table) -> pa.Table:
    missing = [name for name in JUDGED.names if name not in table.column_names]
    if missing:
        raise SchemaError(f"judged: missing columns {missing}; expected {JUDGED.names}")
    return table.select(JUDGED.names).cast(JUDGED)


def _probabilities(rule: Bound, judged: pa.Table) -> tuple[NDArray[np.float64], Mapping[str, float]]:
    """Return the rule's probabilities, checked to be one number in [0, 1] a row, and the numbers that it chose."""
    answer = rule(judged)
    values, chosen = (answer.probabilities, answer.numbers) if isinstance(answer, Chosen) else (answer, {})
    if chosen and rule_of(rule).scope != "round":
        raise StageError(f"rule {rule.use}: chooses {', '.join(chosen)} by looking at candidates; declare scope round")
    if not isinstance(values, pa.Array | pa.ChunkedArray):
        raise StageError(f"rule {rule.use}: returned a {type(values).__name__}, expected a pyarrow array")
    if len(values) != judged.num_rows:
        raise StageError(f"rule {rule.use}: returned {len(values)} probabilities for {judged.num_rows} candidates")
    if not (pa.types.is_floating(values.type) or pa.types.is_integer(values.type)) or values.null_count:
        raise StageError(
            f"rule {rule.use}: returned {values.type} with {values.null_count} nulls, expected float64 without"
        )
    probability = np.array(values.cast(pa.float64()).to_numpy(zero_copy_only=False), dtype=np.float64)
    wrong = np.flatnonzero(~((probability >= 0.0) & (probability <= 1.0)))
    if len(wrong):
        candidate = judged.column("candidate_id")[int(wrong[0])]
        raise StageError(
            f"rule {rule.use}: {len(wrong)} probabilities are not in [0, 1], the first "
            f"being {probability[wrong[0]]} for candidate {candidate}"
        )
    return probability, chosen


def _all_passed(judged: pa.Table) -> Flags:
    """Return which rows are of a prompt whose candidates all passed, prompts with a single candidate left out."""
    prompts = codes(judged, "prompt_id")
    size = np.bincount(prompts)
    num_passed = np.bincount(prompts, weights=pc.fill_null(judged.column("passed"), False).to_numpy())
    return ((size > 1) & (num_passed == size))[prompts]


def _reasons(
    judged: pa.Table, probability: NDArray[np.float64], final: NDArray[np.float64], fair: Fairness
) -> pa.ChunkedArray:
    """Return, for every row, the reason that it gets if it is not drawn."""
    not_drawn = pc.binary_join_element_wise(
        "u",
        pc.round(judged.column("u"), 3).cast(pa.string()),
        "is not below the probability",
        pc.round(pa.array(final), 3).cast(pa.string()),
        " ",
    )
    reasons = pc.if_else(final > 0.0, not_drawn, "the rule gives it probability 0")
    reasons = pc.coalesce(fair.objections, reasons)
    failed = pc.and_(pc.invert(judged.column("passed")), pa.array(probability == 0.0))
    return pc.if_else(judged.column("passed").is_null(), "error", pc.if_else(failed, "not passed", reasons))


def _cap_reasons(cap: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise("over the cap of", pa.array(cap).cast(pa.string()), " ")


def _repeat_reasons(original: NDArray[np.int64]) -> pa.Array:
    return pc.binary_join_element_wise("repeats candidate index", pa.array(original).cast(pa.string()), " ")


def _numpy(judged: pa.Table, name: str, *, is_valid: bool = False) -> NDArray:
    column = judged.column(name)
    return (column.is_valid() if is_valid else column).to_numpy()

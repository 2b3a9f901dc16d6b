"""Figures of fairness: what they are by hand, by another library, and how sure they are."""

from io import StringIO

import numpy as np
import pyarrow as pa
import pytest
from factories import prompt
from rich.console import Console

from rsft_cluster.config import FairnessConfig
from rsft_cluster.errors import StageError
from rsft_cluster.evaluation.fairness import decision_figures, fairness_report
from rsft_cluster.evaluation.figures import evaluate_fairness
from rsft_cluster.records import FairnessReport, Manifest, Plan, PolicyRef, Totals
from rsft_cluster.report.fairness_tables import fairness_table
from rsft_cluster.schemas import PROMPT, SCORE, rows_to_table
from rsft_cluster.store import Store
from rsft_cluster.store.layout import Folder

PROTECTED = {"gender": ("woman", "man"), "age": ("young", "old")}
FAIR = FairnessConfig.model_validate(
    {"protected": PROTECTED, "decision": "(yes|no)", "positive": "yes", "merit": "merit"}
)


def tables(people: list[tuple[dict, list[str | None]]]) -> tuple[pa.Table, pa.Table]:
    """PROMPT and SCORE rows of people: attributes, and their decisions by index."""
    prompts, scores = [], []
    for i, (attributes, decisions) in enumerate(people):
        row = prompt(f"case {i}", attributes=attributes)
        prompts.append(row)
        scores += [
            {
                "candidate_id": f"{i}-{index}", "prompt_id": row["prompt_id"], "index": index, "verdicts": [],
                "num_tokens": 1, "logprob": -1.0, "target_logprob": -1.0, "survival": 1.0, "content": "t",
                "decision": decision, "u": 0.5, "rule_probability": 1.0, "cell_weight": 1.0,
                "acceptance_probability": 1.0, "accepted": True, "reason": "kept",
            }
            for index, decision in enumerate(decisions)
        ]  # fmt: skip
    return rows_to_table(prompts, PROMPT), rows_to_table(scores, SCORE)


def person(gender: str, age: str, merit: str | None = None, swap_group: str | None = None) -> dict:
    more = {"merit": merit, "swap_group": swap_group}
    return {"gender": gender, "age": age, **{k: v for k, v in more.items() if v is not None}}


HAND = [
    (person("woman", "young", "yes"), ["yes"]),
    (person("woman", "old", "yes"), ["no"]),
    (person("woman", "old", "no"), [None]),
    (person("woman", "old", "no"), ["no"]),
    (person("man", "young", "yes"), ["yes"]),
    (person("man", "young", "no"), ["yes"]),
    (person("man", "young", "no"), ["no"]),
    (person("man", "old"), ["yes"]),
]


def test_figures_are_those_of_a_hand_computation():
    found = decision_figures(*tables(HAND), FAIR)
    assert (found.num_decisions, found.num_undecided, found.flip_rate) == (8, 1, None)
    assert found.selection_rate.value == 0.5
    assert found.merit_accuracy is not None
    assert found.merit_accuracy.value == pytest.approx(4 / 7), "undecided is wrong, and unknown merit does not count"
    gender, age, both = found.attributes
    assert (gender.attribute, age.attribute, both.attribute) == ("gender", "age", "gender x age")
    rates = [
        [e and e.value for e in (g.selection_rate, g.true_positive_rate, g.false_positive_rate)] for g in gender.groups
    ]
    assert rates == [[0.25, 0.5, 0.0], [0.75, 1.0, 0.5]]
    assert gender.selection is not None
    assert gender.selection.ratio is not None
    assert (gender.selection.highest, gender.selection.lowest) == ("gender=man", "gender=woman")
    assert (gender.selection.difference.value, gender.selection.ratio.value) == (0.5, pytest.approx(1 / 3))
    assert gender.true_positives is not None
    assert gender.false_positives is not None
    assert (gender.true_positives.difference.value, gender.false_positives.difference.value) == (0.5, 0.5)
    assert [g.group for g in both.groups][:2] == ["gender=woman age=young", "gender=woman age=old"]
    old_men = both.groups[3]
    assert (old_men.num_decisions, old_men.true_positive_rate, old_men.false_positive_rate) == (1, None, None)


def swaps(case: str, decisions: list[str | None], index: int = 1, merit: str | None = None):
    combinations = FAIR.combinations
    pairs = zip(combinations, decisions, strict=True)
    return [(person(c["gender"], c["age"], merit, case), [d] * index) for c, d in pairs]


def test_a_flip_is_a_whole_tuple_that_is_not_decided_alike():
    same, other, undecided = ["yes"] * 4, ["yes", "yes", "no", "yes"], ["yes", "yes", None, "yes"]
    people = swaps("a", same) + swaps("b", other) + swaps("c", undecided) + swaps("d", ["no"] * 4)
    people += swaps("e", other)[:3]
    found = decision_figures(*tables(people), FAIR)
    assert found.flip_rate is not None
    assert found.flip_rate.value == 0.5, "of four tuples; the fifth is not whole"
    assert decision_figures(*tables(swaps("e", other)[:3]), FAIR).flip_rate is None


def test_each_index_is_a_tuple_of_its_own():
    second = ["yes", "yes", "no", "yes"]
    people = [(person(**c, swap_group="a"), ["yes", d]) for c, d in zip(FAIR.combinations, second, strict=True)]
    found = decision_figures(*tables(people), FAIR)
    assert found.flip_rate is not None
    assert found.flip_rate.value == 0.5


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """200 samples of 150 cases: a 95 % interval of a gap of .2 misses it between 1 and 13 % of the times."""
    rng, misses = np.random.default_rng(0), 0
    fairness = FairnessConfig.model_validate(
        {"protected": {"gender": ["woman", "man"]}, "decision": "(y|n)", "positive": "y", "swaps": "none"}
    )
    for _ in range(200):
        draws = rng.random(150).tolist()
        rows = [
            ({"gender": ("woman", "man")[i % 2]}, ["y" if u < (0.6 if i % 2 else 0.4) else "n"])
            for i, u in enumerate(draws)
        ]
        gap = decision_figures(*tables(rows), fairness).attributes[0].selection
        assert gap is not None
        misses += not gap.difference.low <= 0.2 <= gap.difference.high
    assert 2 <= misses <= 26


def test_dependent_decisions_of_a_case_make_intervals_wider_not_narrower():
    """Twenty equal decisions of one prompt are no more evidence than one."""
    rng = np.random.default_rng(1)
    people = [(person("woman", "young"), ["yes" if u < 0.5 else "no"]) for u in rng.random(60)]
    repeated = [(a, d * 20) for a, d in people]
    once, often = (decision_figures(*tables(p), FAIR).selection_rate for p in (people, repeated))
    assert once == often


def test_equal_decisions_give_an_equal_report_in_any_order_of_rows():
    prompts, scores = tables(HAND)
    order = np.random.default_rng(0).permutation(len(HAND))
    found = decision_figures(prompts, scores, FAIR)
    assert decision_figures(prompts.take(order), scores.take(order[::-1]), FAIR) == found


def test_greedy_and_sampled_decisions_are_told_apart_and_survive_json():
    people = [(a, ["yes", "no", "no"]) for a, _ in HAND]
    report = fairness_report(*tables(people), FAIR)
    assert (report.greedy.selection_rate.value, report.sampled.selection_rate.value) == (1.0, 0.0)
    assert (report.greedy.num_decisions, report.sampled.num_decisions) == (8, 16)
    assert FairnessReport.from_json(report.to_json()) == report
    gap = report.sampled.attributes[0].selection
    assert gap is not None
    assert gap.ratio is None, "nobody was selected"


def test_without_decisions_or_with_unknown_values_there_is_no_report():
    prompts, scores = tables(HAND)
    with pytest.raises(StageError, match="no candidate was scored"):
        fairness_report(prompts, scores, FAIR)
    with pytest.raises(StageError, match="attribute age is None"):
        decision_figures(*tables([({"gender": "man"}, ["yes"])]), FAIR)


def test_fairlearn_says_the_same():
    metrics = pytest.importorskip("fairlearn.metrics")
    rng = np.random.default_rng(4)
    people = []
    for a, b, c, d in rng.random((400, 4)).tolist():
        gender, age = PROTECTED["gender"][int(a < 0.6)], PROTECTED["age"][int(b < 0.3)]
        merit = "yes" if c < 0.5 else "no"
        rate = 0.2 + 0.4 * (merit == "yes") + 0.2 * (gender == "man") - 0.1 * (age == "old")
        people.append((person(gender, age, merit), ["yes" if d < rate else "no"]))
    found = decision_figures(*tables(people), FAIR)
    truth, decided = [p["merit"] == "yes" for p, _ in people], [d == ["yes"] for _, d in people]
    for figures, names in zip(found.attributes, (("gender",), ("age",), ("gender", "age")), strict=True):
        features = [" ".join(p[n] for n in names) for p, _ in people]
        args = {"y_true": truth, "y_pred": decided, "sensitive_features": features}
        assert figures.selection is not None
        assert figures.selection.ratio is not None
        assert figures.true_positives is not None
        assert figures.false_positives is not None
        assert figures.selection.difference.value == pytest.approx(metrics.demographic_parity_difference(**args))
        assert figures.selection.ratio.value == pytest.approx(metrics.demographic_parity_ratio(**args))
        worst = max(figures.true_positives.difference.value, figures.false_positives.difference.value)
        assert worst == pytest.approx(metrics.equalized_odds_difference(**args))


def test_the_table_names_groups_gaps_and_a_broken_four_fifths_rule():
    people = [(a, [d[0], *d]) for a, d in HAND]
    report = fairness_report(*tables(people), FAIR)
    console = Console(width=120, record=True, file=StringIO())
    console.print(fairness_table(report, decoding="sampled", title="By gender and age"))
    text = console.export_text()
    for said in ("By gender and age", "gender=woman", "gap of gender x age", "below 4/5: 0.333", "1 undecided"):
        assert said in text
    console.print(fairness_table(report))
    assert "greedy decisions" in console.export_text()


def test_an_evaluation_in_the_store_is_reported_on(tmp_path):
    store = Store(str(tmp_path))
    prompts, scores = tables([(a, [d[0], *d]) for a, d in HAND])
    store.write_batches("prompts/held_out.parquet", prompts.to_batches(), PROMPT, rows=3)
    halves = [scores.slice(0, 5), scores.slice(5)]
    refs = tuple(store.write_table(f"e/scores/{i}.parquet", half, SCORE) for i, half in enumerate(halves))
    policy = PolicyRef(name="round-0001", uri="model", digest="d")
    plan = Plan(
        round=1, stream="evaluation", seed=0, policy=policy, passes=(), prompts="prompts/held_out.parquet",
        num_prompts=8, num_units=3, fingerprint="f",
    )  # fmt: skip
    totals = Totals(**dict.fromkeys(set(Totals.model_fields) - {"disagreements"}, 0))
    manifest = Manifest(
        round=1, policy=policy, fingerprint="f", rule="r", units=(), candidates=(), scores=refs, accepted=(),
        totals=totals, accepted_digest="", content="", generator="g",
    )  # fmt: skip
    found = evaluate_fairness(Folder(store, "e"), plan, manifest, FAIR)
    assert found == fairness_report(prompts, scores, FAIR)

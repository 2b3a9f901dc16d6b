"""Fairness of acceptance: swaps agree, cells make decisions independent, and what cannot be weighed stops the round.

Adversarially checked: weights estimated on the wrong candidates leave a gap, dedupe after weighing brings one back, and
a tuple that is not whole never agrees.
"""

from itertools import product

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from rsft_cluster.acceptance.base import JUDGED
from rsft_cluster.acceptance.decide import bind_rule, decide
from rsft_cluster.acceptance.fairness import judge_fairness
from rsft_cluster.acceptance.selection import SelectionRules
from rsft_cluster.config import AcceptanceConfig, FairnessConfig, Plugin
from rsft_cluster.errors import StageError

GENDERS, AGES = ("woman", "man"), ("young", "old")
DEFAULTS = {
    "score": 1.0, "passed": True, "num_tokens": 3, "logprob": -1.0, "target_logprob": -1.0, "survival": 1.0, "u": 0.5,
    "decision": "approve",
}  # fmt: skip


def fair(**more) -> FairnessConfig:
    fields = {"protected": {"gender": GENDERS}, "decision": "(approve|deny)", "positive": "approve", "min_cell": 1}
    return FairnessConfig.model_validate({**fields, "swaps": "none", **more})


def judged(rows: list[dict]) -> pa.Table:
    """JUDGED rows, each of a prompt of its own unless it names one; other keys than JUDGED's are attributes."""
    full = []
    for i, row in enumerate(rows):
        known = {k: v for k, v in row.items() if k in JUDGED.names}
        attributes = [(k, v) for k, v in row.items() if k not in JUDGED.names]
        prompt = row.get("prompt_id", f"p{i}")
        own = {"candidate_id": f"c{i}", "prompt_id": prompt, "index": 0, "content": f"t{i}", "attributes": attributes}
        full.append({**DEFAULTS, **own, **known})
    return pa.Table.from_pylist(full, schema=JUDGED)


def decided(table: pa.Table, fairness: FairnessConfig, *, rule: Plugin | None = None, **more):
    acceptance = AcceptanceConfig(rule=rule or Plugin(use="all_passed"), dedupe=False, **more)
    return decide(table, SelectionRules(bind_rule(acceptance), acceptance, fairness=fairness))


def reasons(table: pa.Table, fairness: FairnessConfig) -> list[str]:
    return decided(table, fairness).table.column("reason").to_pylist()


def swaps(prompt: str, index: int = 0, **more) -> list[dict]:
    """A tuple: one candidate of each gender, `more` giving what the two differ in."""
    rows = []
    for i, gender in enumerate(GENDERS):
        own = {k: v[i] for k, v in more.items()}
        rows.append({"prompt_id": f"{prompt}-{gender}", "gender": gender, "swap_group": prompt, "index": index, **own})
    return rows


# Agreement


def test_a_tuple_is_kept_whole_where_all_agree():
    rows = swaps("p") + swaps("q", decision=("deny", "deny"))
    found = decided(judged(rows), fair(swaps="agree"))
    assert found.table.column("reason").to_pylist() == ["kept"] * 4
    assert found.table.column("swaps_agree").to_pylist() == [True] * 4
    assert found.chosen == {"swap_agreement_rate": 1.0}


@pytest.mark.parametrize(
    ("differ", "expected"),
    [
        ({"decision": ("approve", "deny")}, ["decided otherwise under another protected value"] * 2),
        ({"decision": ("approve", None)}, ["no decision was found in the completion, or in one under another"] * 2),
        ({"decision": (None, None)}, ["no decision was found in the completion, or in one under another"] * 2),
        ({"passed": (True, False)}, ["did not pass under another protected value", "not passed"]),
        ({"passed": (None, True), "score": (None, 1.0)}, ["error", "did not pass under another protected value"]),
    ],
)
def test_a_tuple_that_does_not_agree_is_rejected_whole_with_its_reason(differ, expected):
    found = decided(judged(swaps("p", **differ) + swaps("q")), fair(swaps="agree"))
    said = found.table.column("reason").to_pylist()
    assert [s.startswith(e) for s, e in zip(said, [*expected, "kept", "kept"], strict=True)] == [True] * 4
    assert found.table.column("swaps_agree").to_pylist() == [False, False, True, True]
    assert found.table.column("acceptance_probability").to_pylist()[:2] == [0.0, 0.0]
    assert found.chosen == {"swap_agreement_rate": 0.5}


def test_a_missing_member_is_not_replaced_by_another_index_or_another_of_the_same_gender():
    first, second = swaps("p"), swaps("p", index=1)
    expected = "there is no candidate of this index under every protected value"
    assert reasons(judged([first[0], second[1]]), fair(swaps="agree")) == [expected] * 2
    same_gender = [first[0], {**first[0], "prompt_id": "p-again"}]
    assert reasons(judged(same_gender), fair(swaps="agree")) == [expected] * 2
    alone = {"gender": "man"}
    assert reasons(judged([alone]), fair(swaps="agree")) == ["its prompt has no attribute swap_group"]


def test_agreement_does_not_depend_on_the_order_of_rows():
    rng = np.random.default_rng(0)
    rows = [r for i in range(40) for r in swaps(f"p{i}", decision=rng.choice(["approve", "deny"], 2).tolist())]
    table, order = judged(rows), rng.permutation(80)
    found = decided(table, fair(swaps="agree")).table.take(order)
    assert found == decided(table.take(order), fair(swaps="agree")).table.combine_chunks()


def test_what_agrees_decides_as_the_product_of_the_policys_chances():
    """Consensus: approvals .9 and .4 agree on approving with chance .36 / (.36 + .06)."""
    rng, num = np.random.default_rng(0), 4000
    woman, man = rng.random(num) < 0.4, rng.random(num) < 0.9
    rows = [
        r
        for i in range(num)
        for r in swaps(f"p{i % 50}", i // 50, decision=[("deny", "approve")[int(d[i])] for d in (woman, man)])
    ]
    found = decided(judged(rows), fair(swaps="agree")).table
    kept = judged(rows).filter(found.column("accepted"))
    assert kept.num_rows / len(rows) == pytest.approx(0.42, abs=3 * (0.42 * 0.58 / num) ** 0.5)
    share = {g: approvals(kept, g) for g in GENDERS}
    assert share["woman"] == share["man"] == pytest.approx(0.36 / 0.42, abs=0.03)


def approvals(table: pa.Table, gender: str | None = None, **others: str) -> float:
    wanted = {**({"gender": gender} if gender else {}), **others}
    attributes = [dict(a) for a in table.column("attributes").to_pylist()]
    chosen = [all(a[k] == v for k, v in wanted.items()) for a in attributes]
    return float(np.mean(np.array(table.column("decision").to_pylist())[chosen] == "approve"))


# Cells


def applicants(num: int, seed: int = 0, **more) -> pa.Table:
    """Men are qualified with .6 and women with .45; the qualified are approved with .9 or .6, others with .3 or .23."""
    rng = np.random.default_rng(seed)
    rows = []
    for u, merit_u, decision_u, gender_u in rng.random((num, 4)).tolist():
        gender = GENDERS[int(gender_u < 0.6)]
        man = gender == "man"
        merit = merit_u < (0.6 if man else 0.45)
        rate = (0.9 if man else 0.6) if merit else (0.3 if man else 0.23)
        decision = ("deny", "approve")[int(decision_u < rate)]
        rows.append({"gender": gender, "merit": ("deny", "approve")[int(merit)], "decision": decision, "u": u, **more})
    return judged(rows)


def gap(table: pa.Table, **given: str) -> float:
    return approvals(table, "man", **given) - approvals(table, "woman", **given)


def test_cells_of_demographic_parity_close_the_gap_at_the_price_of_theory():
    table = applicants(30_000)
    found = decided(table, fair(cells="demographic_parity"))
    kept = table.filter(found.table.column("accepted"))
    assert gap(table) > 0.2
    assert abs(gap(kept)) < 0.02
    joint = [approvals(table, g) for g in GENDERS]
    share_of_men = pc.mean(pc.equal([dict(a)["gender"] for a in table.column("attributes").to_pylist()], "man")).as_py()
    p_group = (1 - share_of_men, share_of_men)
    p_yes = sum(g * j for g, j in zip(p_group, joint, strict=True))
    weights = [p / q for j in joint for p, q in ((p_yes, j), (1 - p_yes, 1 - j))]
    assert found.chosen["max_cell_weight"] == pytest.approx(max(weights))
    assert found.chosen["cell_acceptance_rate"] == pytest.approx(1 / max(weights))
    assert kept.num_rows / table.num_rows == pytest.approx(1 / max(weights), abs=0.01)
    assert approvals(kept) == pytest.approx(p_yes, abs=0.01)


def test_in_expectation_independence_is_exact_whatever_the_rule_and_for_small_cells():
    """The expected kept counts factorise to rounding: nothing was added to the cells."""
    table = applicants(300)
    scores = np.random.default_rng(1).random(300)
    table = table.set_column(table.column_names.index("score"), "score", pa.array(scores))
    rule = Plugin(use="boltzmann", params={"beta": 0.4})
    found = decided(table, fair(cells="demographic_parity"), rule=rule).table
    cells, chance = found.column("cell").to_pylist(), found.column("acceptance_probability").to_numpy()
    mass = np.array(
        [[chance[[c == f"gender={g} decision={d}" for c in cells]].sum() for d in ("approve", "deny")] for g in GENDERS]
    )
    assert np.linalg.det(mass / mass.sum()) == pytest.approx(0.0, abs=1e-15)


def test_cells_are_those_of_what_would_be_kept_not_of_all_that_was_sampled():
    """A constraint that women's approvals fail more often makes a gap of its own; weights of all candidates miss it."""
    table = applicants(20_000)
    rng = np.random.default_rng(2)
    woman_approved = np.array(
        [
            dict(a)["gender"] == "woman" and d == "approve"
            for a, d in zip(table.column("attributes").to_pylist(), table.column("decision").to_pylist(), strict=True)
        ]
    )
    passed = ~(woman_approved & (rng.random(20_000) < 0.5))
    selective = table.set_column(table.column_names.index("passed"), "passed", pa.array(passed))
    kept = selective.filter(decided(selective, fair(cells="demographic_parity")).table.column("accepted"))
    assert abs(gap(kept)) < 0.025
    of_all = judge_fairness(table, np.ones(20_000), fair(cells="demographic_parity")).weights
    wrong = selective.filter(pa.array(passed & (table.column("u").to_numpy() < of_all)))
    assert gap(wrong) > 0.15


def test_equalised_odds_closes_the_gaps_given_merit_and_leaves_merit_as_it_was():
    table = applicants(40_000)
    found = decided(table, fair(cells="equalised_odds", merit="merit"))
    kept = table.filter(found.table.column("accepted"))
    for merit, before in (("approve", 0.25), ("deny", 0.04)):
        assert gap(table, merit=merit) > before
        assert abs(gap(kept, merit=merit)) < 0.02
    assert gap(kept) > 0.05, "the groups' merits differ, so parity is not what it asks for"
    attributes = [dict(a) for a in kept.column("attributes").to_pylist()]
    for gender, rate in (("man", 0.6), ("woman", 0.45)):
        of_gender = [a["merit"] == "approve" for a in attributes if a["gender"] == gender]
        assert np.mean(of_gender) == pytest.approx(rate, abs=0.015)
    assert kept.num_rows / table.num_rows == pytest.approx(found.chosen["cell_acceptance_rate"], abs=0.01)


def test_cells_are_all_intersections_of_protected_values():
    """Parity of gender and of age alone hides a gap of their intersections."""
    rate = {("woman", "young"): 0.2, ("woman", "old"): 0.8, ("man", "young"): 0.8, ("man", "old"): 0.2}
    rng, rows = np.random.default_rng(3), []
    for (gender, age), p in rate.items():
        for u, d in rng.random((3000, 2)).tolist():
            rows.append({"gender": gender, "age": age, "decision": ("deny", "approve")[int(d < p)], "u": u})
    table = judged(rows)
    both = fair(protected={"gender": GENDERS, "age": AGES}, cells="demographic_parity")
    kept = table.filter(decided(table, both).table.column("accepted"))
    shares = [approvals(kept, g, age=a) for g, a in product(GENDERS, AGES)]
    assert max(shares) - min(shares) < 0.07
    alone = table.filter(decided(table, fair(cells="demographic_parity")).table.column("accepted"))
    shares = [approvals(alone, g, age=a) for g, a in product(GENDERS, AGES)]
    assert max(shares) - min(shares) > 0.4


def test_dedupe_after_weighing_would_bring_a_gap_back():
    """Why a config with cells refuses it: approvals of women are all alike, those of men are not."""
    table = applicants(20_000)
    women = [dict(a)["gender"] == "woman" for a in table.column("attributes").to_pylist()]
    content = [f"t{i % 200}" if w else f"t{i}" for i, w in enumerate(women)]
    content = [c + d for c, d in zip(content, table.column("decision").to_pylist(), strict=True)]
    table = table.set_column(table.column_names.index("content"), "content", pa.array(content))
    prompts = pa.array([f"{dict(a)['gender']}" for a in table.column("attributes").to_pylist()])
    table = table.set_column(table.column_names.index("prompt_id"), "prompt_id", prompts)
    table = table.set_column(table.column_names.index("index"), "index", pa.array(range(20_000), pa.int32()))
    acceptance = AcceptanceConfig(dedupe=True)
    selection = SelectionRules(bind_rule(acceptance), acceptance, fairness=fair(cells="demographic_parity"))
    assert abs(gap(table.filter(decide(table, selection).table.column("accepted")))) > 0.05


def test_a_small_cell_stops_the_round_with_its_name_its_size_and_remedies():
    rows = [{"gender": g, "decision": d} for g, d in product(GENDERS, ("approve", "deny")) for _ in range(40)]
    rows = rows[:-38]
    with pytest.raises(StageError, match=r"cell gender=man decision=deny holds 2 candidates .*min_cell = 30\. Sample"):
        decided(judged(rows), fair(cells="demographic_parity", min_cell=30))
    assert decided(judged(rows), fair(cells="demographic_parity", min_cell=2)).chosen["smallest_cell"] == 2.0


def test_a_decision_that_nobody_got_is_no_cell_but_one_that_a_group_lacks_is():
    same = [{"gender": g} for g in GENDERS for _ in range(5)]
    found = decided(judged(same), fair(cells="demographic_parity", min_cell=5))
    assert found.chosen["max_cell_weight"] == 1.0
    assert found.table.column("accepted").to_pylist() == [True] * 10
    with pytest.raises(StageError, match=r"cell gender=woman decision=deny holds 0 candidates"):
        decided(judged([*same, {"gender": "man", "decision": "deny"}]), fair(cells="demographic_parity"))


def test_what_failed_counts_in_no_cell():
    rows = [{"gender": g, "decision": d} for g, d in product(GENDERS, ("approve", "deny")) for _ in range(5)]
    rows += [{"gender": "man", "decision": "deny", "passed": False, "score": 0.0}] * 50
    found = decided(judged(rows), fair(cells="demographic_parity", min_cell=5))
    assert found.chosen["max_cell_weight"] == pytest.approx(1.0)
    nothing = decided(judged([{**r, "passed": False} for r in rows]), fair(cells="demographic_parity", min_cell=5))
    assert not any(nothing.table.column("accepted").to_pylist())


def test_without_a_decision_nothing_is_kept_where_decisions_are_weighed():
    rows = [{"gender": g} for g in GENDERS] + [{"gender": "man", "decision": None}]
    said = reasons(judged(rows), fair(cells="demographic_parity"))
    assert said == ["kept", "kept", "no decision was found in the completion"]
    assert reasons(judged(rows), fair()) == ["kept"] * 3, "only reported on"


def test_both_at_once_weigh_what_agrees():
    """A tuple that agrees gives every group the same decision: weights have nothing left to do."""
    rng = np.random.default_rng(5)
    rows = [r for i in range(300) for r in swaps(f"p{i}", decision=rng.choice(["approve", "deny"], 2).tolist())]
    found = decided(judged(rows), fair(swaps="agree", cells="demographic_parity", min_cell=30))
    assert found.chosen["max_cell_weight"] == pytest.approx(1.0)
    assert found.table.column("accepted").to_pylist() == found.table.column("swaps_agree").to_pylist()


@pytest.mark.parametrize("attributes", [{}, {"gender": "person"}])
def test_a_prompt_without_a_protected_value_stops_the_round(attributes):
    with pytest.raises(StageError, match=r"prompt p0: its attribute gender is .*lists \['woman', 'man'\]"):
        decided(judged([attributes]), fair())


def test_equalised_odds_without_merit_stops_the_round():
    with pytest.raises(StageError, match=r"prompt p0: it has no attribute right"):
        decided(judged([{"gender": "man"}]), fair(cells="equalised_odds", merit="right"))


def test_scope_is_the_round_only_where_acceptance_depends_on_it():
    acceptance = AcceptanceConfig()
    scopes = [
        SelectionRules(bind_rule(acceptance), acceptance, fairness=f).scope
        for f in (None, fair(), fair(swaps="agree"), fair(cells="demographic_parity"))
    ]
    assert scopes == ["candidate", "candidate", "round", "round"]
    assert fair(swaps="agree", cells="demographic_parity").observing() == fair()


def test_german_credit_gives_the_weights_that_are_known(shared_data):
    """Of 690 men .723 are good and of 310 women .648 (Statlog German credit)."""
    path = shared_data / "german_credit" / "german.csv"
    if not path.exists():
        pytest.skip(f"no {path}")
    lines = [line.split(",") for line in path.read_text().splitlines()]
    status, credit = lines[0].index("personal_status"), lines[0].index("credit")
    rows = [
        {
            "gender": "woman" if line[status] in ("A92", "A95") else "man",
            "decision": "approve" if line[credit] == "1" else "deny",
        }
        for line in lines[1:]
    ]
    table = judged(rows)
    assert (round(approvals(table, "man"), 3), round(approvals(table, "woman"), 3)) == (0.723, 0.648)
    chosen = decided(table, fair(cells="demographic_parity")).chosen
    assert chosen["max_cell_weight"] == pytest.approx(1.0838, abs=5e-5)
    assert chosen["cell_acceptance_rate"] == pytest.approx(0.9227, abs=5e-5)

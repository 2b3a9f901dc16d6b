"""answer_matches: how final answers are found and compared, in English and Chinese, and on all of GSM8K."""

import json
import re
from pathlib import Path
from time import perf_counter

import pytest
from factories import candidate

from rsft_cluster.constraints.answers.answer_matches import AnswerMatches
from rsft_cluster.constraints.base import Verdict
from rsft_cluster.errors import ConfigError


def verdict(completion: str, reference: str | None, **params) -> Verdict:
    return AnswerMatches(**params).judge([candidate(completion, reference=reference, prompt_id="p1")])[0]


EQUAL = [
    ("She sold 48+24 = 72 clips.\n#### 72", "72"),
    ("#### 72", "Natalia sold 48/2 = 24.\nAltogether 72.\n#### 72"),
    ("so 72.\n#### $72.00 dollars.", "72"),
    ("#### 5 #### 72", "72"),
    ("The sum is \\boxed{72}. Checked 1 time.", "72"),
    ("First \\boxed{3}, finally $\\boxed{\\frac{3}{4}}$", "0.75"),
    ("\\boxed{1\\frac{1}{2}}", "1.5"),
    ("\\boxed{\\text{72 apples}}", "72"),
    ("\\boxed{x^{2} = 4}", "4"),
    ("The answer is 72.", "72"),
    ("The answer is 5. No, wait: the answer is 72. Check: 70 + 2.", "72"),
    ("**Answer:** 72", "72"),
    ("**Answer**: 72", "72"),
    ("the final answer is:\n72", "72"),
    ("Answer: 48 + 24 = 72", "72"),
    ("答案是72。因为70加2。", "72"),
    ("答案：７２", "72"),
    ("最终答案为 １，０００ 元。", "1000"),
    ("答案应为-3", "-3"),
    ("共有72个苹果", "72"),
    ("一共3万元", "30000"),
    ("一共3万元", "3万"),
    ("重5千克", "5"),
    ("It costs $5.00", "5"),
    ("The total is 1,000", "1000"),
    ("The total is 12,34,567", "1234567"),
    ("1000 in all", "1,000.00"),
    ("x = -3", "-3"),
    ("x = − 3", "−3"),
    ("#### - 3", "-3"),
    ("a loss of -$5", "-5"),
    ("a loss of $-5", "-5"),
    ("3/4", "0.75"),
    ("0.75", "3/4"),
    ("about ½ of it", "0.5"),
    ("The answer is 1½ cups", "1.5"),
    ("It is 50%", "50%"),
    ("It is 50%", "50"),
    ("It is 50%", "0.5"),
    ("It is 0.5", "50 percent"),
    ("It is 50\\%", "50%"),
    ("1e3", "1000"),
    ("2 million people", "2000000"),
    ("He ran 5 m²", "5"),
    ("it goes 10-3", "3"),
    ("See...72", "72"),
    (".5", "0.5"),
    ("The answer is Paris.", "paris"),
    ("The answer is **Paris**. It is large.", "Paris"),
    ("答案是「对」。", "「对」"),
    ("答案是：巴黎。", "巴黎"),
    ("Ｐａｒｉｓ", "Paris"),
    (" new\n york ", "New York"),
    ("Answer: (B).", "B"),
    ("\\boxed{\\text{B}}", "(B)"),
    ("The answer is 3:30.", "3:30"),
    ("#### Apollo 11", "Apollo 11"),
]


@pytest.mark.parametrize(("completion", "reference"), EQUAL)
def test_equal_answers_pass_however_they_are_written(completion, reference) -> None:
    found = verdict(completion, reference)
    assert found.passed, found.reason
    assert "equals the reference" in found.reason


DIFFERENT = [
    ("#### 71", "72", "71 after ####, differs from the reference 72"),
    ("It is 72\n#### 71", "72", "71 after ####, differs from"),
    ("\\boxed{71} but 72", "72", "71 in \\boxed, differs from"),
    ("\\boxed{72", "7", "72, the last number, differs from"),
    ("72 = 72, the answer is 71", "72", "71 after the answer phrase, differs from"),
    ("Answer: 72, or else 71", "72", "not a single number after the answer phrase: '72, or else 71'"),
    ("####", "72", "not a single number after ####: ''"),
    ("#### seventy-two", "72", "not a single number after ####: 'seventy-two'"),
    ("I do not know", "72", "no number in the completion that can be read"),
    ("", "72", "no number in the completion that can be read"),
    ("答案是72。", "71", "72 after the answer phrase, differs from"),
    ("答案是-72", "72", "-72 after the answer phrase, differs from"),
    ("#### -72", "72", "-72 after ####, differs from"),
    ("#### 7 2", "72", "not a single number after ####"),
    ("#### 1,5", "5", "not a single number after ####"),
    ("#### 10^2", "10", "not a single number after ####"),
    ("#### 10²", "102", "not a single number after ####"),
    ("#### 10²", "10", "not a single number after ####"),
    ("#### 72.5", "72", "72.5 after ####, differs from"),
    ("#### 3/0", "3", "not a single number after ####"),
    ("#### 5 million", "5", "5 million after ####, differs from"),
    ("一共3万元", "3", "3万, the last number, differs from"),
    ("#### 0.5%", "50%", "0.5% after ####, differs from"),
    ("version 1.2.3", "3", "no number in the completion"),
    ("on 12/25/2020", "25", "no number in the completion"),
    ("x2 and H2O and covid-19", "19", "no number in the completion"),
    ("0.3333", "1/3", "0.3333, the last number, differs from the reference 1/3"),
    ("9007199254740993", "9007199254740992", "differs from"),
    ("7" * 5000, "7", "no number in the completion that can be read"),
    ("1e999999999", "1", "no number in the completion that can be read"),
    ("The answer is London.", "Paris", "'London' after the answer phrase, differs from the reference 'Paris'"),
    ("Paris or London", "Paris", "'Paris or London' as the whole text, differs from"),
    ("It is Apollo 11", "Apollo 11", "'It is Apollo 11' as the whole text, differs from"),
    ("答案是错", "对", "'错' after the answer phrase, differs from the reference '对'"),
    ("Answer: [0, 1)", "(0, 1]", "differs from"),
]


@pytest.mark.parametrize(("completion", "reference", "reason"), DIFFERENT)
def test_different_or_unclear_answers_fail_with_the_reason(completion, reference, reason) -> None:
    found = verdict(completion, reference)
    assert not found.passed, found.reason
    assert reason in found.reason


@pytest.mark.parametrize(
    ("extract", "passed", "reason"),
    [
        ("auto", False, "3 after the answer phrase"),
        ("hash", True, "1 after ####"),
        ("boxed", False, "2 in \\boxed"),
        ("phrase", False, "3 after the answer phrase"),
        ("number", False, "4, the last number"),
        ("whole", False, "not a single number as the whole text"),
    ],
)
def test_each_place_of_an_answer_can_be_asked_for_alone(extract, passed, reason) -> None:
    found = verdict("#### 1\n\\boxed{2}\nThe answer is 3.\nOr 4", "1", extract=extract)
    assert found.passed == passed
    assert found.reason.startswith(reason)


@pytest.mark.parametrize(
    ("extract", "reason"), [("hash", "no ####"), ("boxed", "no closed \\boxed{...}"), ("phrase", 'no "answer is"')]
)
@pytest.mark.parametrize("reference", ["72", "Paris"])
def test_a_place_that_is_asked_for_must_be_there(extract, reason, reference) -> None:
    found = verdict(reference, reference, extract=extract)
    assert not found.passed
    assert reason in found.reason


@pytest.mark.parametrize(
    ("completion", "params", "passed"),
    [
        ("0.33", {"tolerance": 0.01}, True),
        ("0.32", {"tolerance": 0.01}, False),
        ("0.33", {"relative_tolerance": 0.01}, True),
        ("0.32", {"relative_tolerance": 0.01}, False),
    ],
)
def test_a_tolerance_allows_for_rounding(completion, params, passed) -> None:
    assert verdict(completion, "1/3", **params).passed == passed


def test_a_tolerance_is_exact_at_its_edge() -> None:
    assert verdict("0.4", "0.1", tolerance=0.3).passed


def test_kind_decides_where_a_reference_can_be_read_both_ways() -> None:
    assert verdict("Apollo 11", "11 Apollo", kind="auto").passed
    assert not verdict("Apollo 11", "11 Apollo", kind="text").passed
    assert verdict("72.0", "72", kind="number").passed
    assert not verdict("72.0", "72", kind="text").passed
    assert verdict("so 72", "about 72", kind="number").passed


@pytest.mark.parametrize(
    ("reference", "params", "message"),
    [
        (None, {}, "prompt 'p1' has no reference"),
        ("  ", {}, "prompt 'p1' has no reference"),
        ("Paris", {"kind": "number"}, "the reference 'Paris' is not a number"),
        ("Paris", {"extract": "number"}, "the reference 'Paris' is not a number"),
        ('"."', {}, "has nothing to compare with"),
    ],
)
def test_an_unusable_reference_raises_and_gives_no_verdict(reference, params, message) -> None:
    with pytest.raises(ValueError, match=message):
        verdict("#### 72", reference, **params)


def test_settings_without_effect_are_refused() -> None:
    with pytest.raises(ConfigError, match="tolerance has no effect"):
        AnswerMatches(kind="text", tolerance=0.1)
    with pytest.raises(ConfigError, match="extract: number"):
        AnswerMatches(kind="text", extract="number")


@pytest.mark.parametrize(
    "piece", ["\\boxed{", "{", "####", "answer:", "1,", "1/", "1 ", "-", "答案是", "1.", "\\frac{1}{"]
)
def test_hostile_completions_take_no_more_than_linear_time(piece) -> None:
    start = perf_counter()
    verdict(piece * 20_000, "72")
    assert perf_counter() - start < 2.0  # measured below 0.3 s; quadratic would be minutes


CHANGES = {
    "one more": lambda number: number + 1,
    "digit appended": lambda number: number * 10 + 1 if number >= 0 else number * 10 - 1,
    "sign flipped": lambda number: -number if number else None,
    "half added": lambda number: f"{number}.5",
}


@pytest.fixture(scope="module")
def solutions(shared_data: Path) -> list[str]:
    lines = (shared_data / "gsm8k" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["answer"] for line in lines]


def test_every_gsm8k_solution_matches_itself_and_its_bare_number(solutions) -> None:
    assert len(solutions) == 7473
    bare = [solution.split("####")[1].strip() for solution in solutions]
    for references in (solutions, bare):
        judged = AnswerMatches().judge([candidate(s, reference=r) for s, r in zip(solutions, references, strict=True)])
        assert [v.reason for v in judged if not v.passed] == []


@pytest.mark.parametrize("change", CHANGES)
def test_no_gsm8k_solution_matches_when_its_number_is_changed(change, solutions) -> None:
    changed = []
    for solution in solutions:
        number = int(re.sub("[^0-9-]", "", solution.split("####")[1]))
        if (other := CHANGES[change](number)) is not None:
            changed.append(candidate(f"{solution.split('####')[0]}#### {other}", reference=solution))
    assert len(changed) > 7400
    judged = AnswerMatches().judge(changed)
    assert [v.reason for v in judged if v.passed] == []
    assert all("after ####, differs from the reference" in v.reason for v in judged)

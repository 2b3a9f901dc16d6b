"""Verdicts that were wrong once, kind by kind: cases kept with the real data, and what else belongs to each kind."""

import json
from pathlib import Path

import pytest
from factories import candidate

from rsft_cluster.config import Plugin
from rsft_cluster.constraints.answers.locating import locate
from rsft_cluster.constraints.building import build
from rsft_cluster.constraints.outcomes import outcomes_of
from rsft_cluster.constraints.parts import split
from rsft_cluster.schemas import Message


@pytest.fixture(scope="module")
def cases(shared_data: Path) -> list[dict]:
    path = shared_data / "verdicts" / "cases.jsonl"
    if not path.is_file():
        pytest.skip(f"no cases at {path}")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def passed(constraint: str, completion: str, **given) -> bool | None:
    """Return whether a completion passes, None where the constraint cannot tell."""
    params = given.pop("params", None) or {}
    built = build(Plugin(use=constraint, params=params), name=constraint)
    [outcome] = outcomes_of(built, [candidate(completion, **given)])
    return outcome.verdict.passed if outcome.verdict else None


def test_every_case_is_judged_as_it_should_be(cases) -> None:
    wrong = []
    for case in cases:
        messages = (Message("user", case["prompt"]),) if case["prompt"] else ()
        got = passed(
            case["constraint"],
            case["completion"],
            params=case["params"],
            reference=case["reference"],
            attributes=case["attributes"] or {},
            messages=messages,
        )
        if got != case["expected_passed"]:
            wrong.append((case["kind"], case["constraint"], case["completion"], got))
    assert len(cases) >= 155
    assert wrong == []


SAME = [
    ("The final answer is: the perimeter equals 18 cm.", "18"),
    ("<reasoning>\\boxed{4}</reasoning>Therefore, \\boxed{18}.", "18"),
    ("\\boxed{4} was my first try. #### 18", "18"),
    ("The answer is 18. Everything checks out.", "18"),
    ("\\boxed{18}. The answer is reasonable.", "18"),
    ("\\boxed{2} \\text{ and } \\boxed{3}", "3, 2"),
    ("\\boxed{\\textcolor{red}{18}}", "18"),
    ("\\boxed{18 \\approx 17.9}", "18"),
    ("\\boxed{2'500}", "2500"),
    ("\\boxed{0.1\\overline{6}}", "1/6"),
    ("\\boxed{(a, b) = (1, 2)}", "(1,2)"),
    ("\\boxed{\\{x \\in \\mathbb{R} : x \\le 3\\}}", "(-\\infty, 3]"),
    ("\\boxed{x \\ne 2}", "(-\\infty,2)\\cup(2,\\infty)"),
    ("\\boxed{\\sqrt[5]{-32}}", "-2"),
    ("\\boxed{\\binom{n}{2}}", "\\frac{n^2-n}{2}"),
    ("The answer is minus three quarters", "-3/4"),
    ("The answer is one hundred and five", "105"),
    ("\\boxed{4:30 \\text{ p.m.}}", "4:30 PM"),
    ("\\boxed{4 : 6}", "2:3"),
    ("\\boxed{11 \\pmod{13}}", "11 mod 13"),
    ("\\boxed{12 = 3 \\cdot 4}", "12"),
    ("\\boxed{10/3 = 3.33}", "3.33"),
    ("\\boxed{3^{2024}}", "3^{2024}"),
    ("\\boxed{1101_2}", "1101_{2}"),
    ("\\boxed{15 J}", "15 joules"),
    ("Bob paid $20 and got $4 back, so it was $16.", "16"),
]
OTHER = [
    ("\\boxed{0}", "3x - y = 0"),
    ("\\boxed{x = 3 = 4}", "4"),
    ("\\boxed{3 \\cdot 3 = 10}", "10"),
    ("\\boxed{11_3}", "11_5"),
    ("\\boxed{b_{2} = 1}", "b_3 = 1"),
    ("\\boxed{4:30}", "5:30"),
    ("\\boxed{3/0}", "4/0"),
    ("\\boxed{5 W}", "5 V"),
    ("\\boxed{11 \\pmod{13}}", "11 \\pmod{14}"),
    ("<think>\\boxed{18}", "18"),
    ("<think>It is 3.</think>The answer is 4. <think>or \\boxed{18}", "18"),
    ("#### 18\nWait, that is wrong. It is 20.", "18"),
    ("\\boxed{18}\nSorry, I made a mistake. So 20.", "18"),
    ("\\boxed{17}, \\boxed{18}", "18"),
    ("The answer is no more than 18", "18"),
    ("The answer can't be 18", "18"),
    ("The answer is 18 or less", "18"),
    ("The answer is three times 18", "18"),
    ("The answer is 18 cubed", "18"),
    ("The answer is anything but 18", "18"),
    ("答案至少是18", "18"),
    ("答案是18以下", "18"),
    ("答案不是18", "18"),
    ("答案是18的平方", "18"),
    ("答案是8折", "8"),
    ("\\boxed{(q, p) = (3, 2)}", "(p, q) = (3, 2)"),
    ("\\boxed{x < 2 \\text{ or } x > 4}", "(-\\infty,2)\\cup(3,\\infty)"),
]


@pytest.mark.parametrize(("completion", "reference"), SAME)
def test_the_same_answer_passes(completion, reference) -> None:
    assert passed("math_equal", completion, reference=reference)


@pytest.mark.parametrize(("completion", "reference"), OTHER)
def test_another_answer_fails(completion, reference) -> None:
    assert passed("math_equal", completion, reference=reference) is False


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("7", "7"),
        ("<think>5</think>7", "7"),
        ("5</think>7", "7"),
        ("<think>5</think>6</think>7", "7"),
        ("<think>5", None),
        ("<THINKING>5</Thinking >7", "7"),
        ("[THINK]5[/THINK]7", "7"),
    ],
)
def test_the_answer_stands_after_the_thinking(completion, answer) -> None:
    assert split(completion).answer == answer
    assert split(completion, "</none>").answer is None


def test_the_last_claim_that_is_not_withdrawn_is_the_answer() -> None:
    located = locate("#### 1\nThe answer is 2.\n\\boxed{3} is wrong.")
    assert located.claim is not None
    assert located.claim.text == "2"
    assert locate("The answer is not 5. It is 7.").claim is None


@pytest.mark.parametrize("part", ["answer", "thinking", "all"])
def test_a_part_is_judged_alone_and_its_places_are_the_completion_s(part) -> None:
    built = build(Plugin(use="words", params={"forbidden": ["bad"], "part": part}), name="words")
    completion = "<think>so bad a</think> bad a"
    [outcome] = outcomes_of(built, [candidate(completion)])
    assert outcome.verdict is not None
    place = outcome.verdict.fatal_at
    assert place == completion.index("bad", 0 if part != "answer" else 15) + 3

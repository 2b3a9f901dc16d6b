"""From what a judge wrote to what it said; all else is unreadable."""

import time
from contextlib import suppress

import pytest

from rsft_cluster.constraints.judge.answers import UnreadableError, choice, numeric, read, without_thoughts

OURS = '{"id": "0a1b2c3d", "reason": "r", "score": 4}'


@pytest.mark.parametrize(
    "text",
    [
        OURS,
        f"```json\n{OURS}\n```",
        f"Here it is: {OURS} That is all.",
        f"<think>perhaps {OURS.replace('4', '9')}</think>{OURS}",
        f"<think>a <think>b</think> {OURS.replace('4', '9')}</think>{OURS}",
        f"no opening tag {OURS.replace('4', '9')}</think>\n{OURS}",
        f"<THINKING>x</Thinking >{OURS}<think>or rather {OURS.replace('4', '9')}",
        OURS.replace("4", '"4"'),
        OURS.replace('"r"', '"a brace { and\na line"'),
        '{"score": 4, "id": "0a1b2c3d"}',
        f'It quotes {{"score": 10}} and says\nScore: 10\nand {{"id": "ffffffff", "score": 10}}. {OURS}',
        "Because.\n**Score 0a1b2c3d: 4**",
        "Score: 10\nscore 0a1b2c3d = 4.0",
        "Because.\nScore 0a1b2c3d: 4." + " " * 1000,
    ],
)
def test_an_answer_is_read_whatever_stands_around_it(text) -> None:
    assert read(text, numeric(1, 10), "0a1b2c3d").value == 4


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "there is no score with the id 0a1b2c3d"),
        ("Score: 10", "there is no score"),
        ('{"score": 10, "reason": "r"}', "there is no score"),
        (f"<think>{OURS}", "there is no score"),
        (f"{OURS}</think>", "there is no score"),
        ('{"id": "0a1b2c3d", "score": 1', "there is no score"),
        (OURS + OURS.replace("4", "5"), "there are several: score 4 and 5"),
        (f"{OURS}\nScore 0a1b2c3d: 5", "there are several"),
        (OURS.replace("4", "0"), "the score is '0', not a number from 1 to 10"),
        (OURS.replace("4", "11"), "the score is '11'"),
        (OURS.replace("4", "NaN"), "the score is 'nan'"),
        (OURS.replace("4", "1e999"), "the score is 'inf'"),
        (OURS.replace("4", "true"), "the score is 'True'"),
        (OURS.replace("4", "null"), "the score is 'None'"),
        (OURS.replace("4", '"7/10"'), "the score is '7/10'"),
        ("Score 0a1b2c3d: high", "the score is 'high'"),
    ],
)
def test_what_says_nothing_or_two_things_or_is_off_the_scale_is_unreadable(text, problem) -> None:
    with pytest.raises(UnreadableError, match=problem.replace("(", r"\(")):
        read(text, numeric(1, 10), "0a1b2c3d")
    with pytest.raises(UnreadableError):
        read(text.replace("score", "winner"), choice("winner", {"first": 1.0}), "0a1b2c3d")


@pytest.mark.parametrize(
    "text",
    ["{" * 200_000, '{"a":' * 100_000, "```" * 100_000, " " * 500_000, "<think" * 100_000, "<think>" * 100_000,
     "</think>" * 100_000, "Score 0a1b2c3d: 1\n" * 10_000, "Score 0a1b2c3d:" + " " * 200_000 + "x", "*" * 500_000],
)  # fmt: skip
def test_a_hostile_answer_is_read_in_no_time(text) -> None:
    start = time.process_time()
    with suppress(UnreadableError):
        assert read(text, numeric(1, 10), "0a1b2c3d").value == 1
    assert time.process_time() - start < 2
    assert len(without_thoughts(text)) <= len(text)

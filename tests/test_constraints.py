"""The built-in constraints but answer_matches: tables of cases, with the reasons."""

import json
from pathlib import Path

import pytest
from factories import candidate

from rsft_cluster.config import Constraint
from rsft_cluster.constraints.base import BatchConstraint, Verdict
from rsft_cluster.constraints.form.finished import finished
from rsft_cluster.constraints.form.json_schema import JsonSchema
from rsft_cluster.constraints.form.length import Length
from rsft_cluster.constraints.text.pattern import Pattern
from rsft_cluster.constraints.text.words import Words
from rsft_cluster.errors import ConfigError
from rsft_cluster.plugins import bind

PERSON = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z]"},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "additionalProperties": False,
}


def judged(constraint: BatchConstraint, completion: str) -> Verdict:
    return constraint.judge([candidate(completion)])[0]


@pytest.mark.parametrize(
    ("finish_reason", "passed", "reason"),
    [
        ("stop", True, "ended by the policy"),
        ("length", False, "cut off after 7 tokens (finish reason 'length')"),
        ("", False, "cut off after 7 tokens (finish reason '')"),
    ],
)
def test_only_a_completion_that_ended_by_itself_is_finished(finish_reason, passed, reason) -> None:
    verdict = finished(candidate("#### 5", finish_reason=finish_reason, num_tokens=7))
    assert (verdict.passed, verdict.reason) == (passed, reason)


@pytest.mark.parametrize(
    ("text", "params", "passed", "reason"),
    [
        ("abc", {"max": 3, "unit": "tokens"}, False, "4 tokens, more than 3"),
        ("abc", {"max": 4}, True, "4 tokens"),
        ("abc", {"min": 4}, True, "4 tokens"),
        ("abc", {"min": 5}, False, "4 tokens, fewer than 5"),
        ("abc", {"min": 3, "max": 3, "unit": "characters"}, True, "3 characters"),
        ("有偏见", {"max": 2, "unit": "characters"}, False, "3 characters, more than 2"),
        ("It isn't 3.5, is it?", {"max": 5, "unit": "words"}, True, "5 words"),
        ("我有3只cats。", {"max": 5, "unit": "words"}, True, "5 words"),
        ("", {"min": 1, "unit": "words"}, False, "0 words, fewer than 1"),
    ],
)
def test_length_counts_in_the_unit_asked_for(text, params, passed, reason) -> None:
    (verdict,) = Length(**params).judge([candidate(text, num_tokens=4)])
    assert (verdict.passed, verdict.reason) == (passed, reason)


def test_length_refuses_bounds_that_nothing_fits() -> None:
    with pytest.raises(ConfigError, match="min 5 is above max 2"):
        Length(min=5, max=2)
    with pytest.raises(ConfigError, match="parameter min is -1"):
        bind(Constraint(use="length", params={"min": -1}), "constraints", num_leading=1)
    with pytest.raises(ConfigError, match="parameter unit is 'letters'"):
        bind(Constraint(use="length", params={"unit": "letters"}), "constraints", num_leading=1)


@pytest.mark.parametrize(
    ("text", "params", "passed", "reason"),
    [
        ("call 555-1234", {"must": r"\d{3}-\d{4}"}, True, "all of 1 patterns found, none of 0 forbidden ones"),
        ("call me", {"must": [r"call", r"\d"]}, False, r"nothing matches '\\d'"),
        (
            "mail a@b.c",
            {"must_not": r"\S+@\S+"},
            False,
            r"'a@b.c' at character 5 matches '\\S+@\\S+', which it must not",
        ),
        ("HELLO", {"must": "hello"}, False, "nothing matches 'hello'"),
        ("HELLO", {"must": "hello", "ignore_case": True}, True, "all of 1"),
        ("hello there", {"must": "hello", "full_match": True}, False, "nothing matches 'hello'"),
        ("hello", {"must": "hello", "full_match": True}, True, "all of 1"),
        ("他们都很懒", {"must_not": "他们都.*懒"}, False, "'他们都很懒' at character 0"),
        ("价格：五元", {"must": r"\p{Han}+：\p{Han}+"}, True, "all of 1"),
        ("", {"must_not": "x"}, True, "all of 0"),
    ],
)
def test_patterns_are_found_or_must_not_be(text, params, passed, reason) -> None:
    verdict = judged(Pattern(**params), text)
    assert verdict.passed == passed
    assert verdict.reason.startswith(reason)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"must": "(unclosed"}, r"must '\(unclosed' is no regular expression: missing \)"),
        ({"must_not": ["fine", "[z-a]"]}, r"must_not '\[z-a\]' is no regular expression"),
        ({}, "give at least one pattern"),
        ({"must": []}, "give at least one pattern"),
    ],
)
def test_a_wrong_pattern_fails_when_the_constraint_is_built(params, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Pattern(**params)


def test_a_catastrophic_pattern_raises_and_gives_no_verdict() -> None:
    slow = Pattern(must=r"^(?:a|a|b)*(?:a|a|c)*(?:a|a)*$", timeout_s=0.05)
    with pytest.raises(TimeoutError, match=r"took over 0.05 s on 41 characters"):
        judged(slow, "a" * 40 + "!")
    assert judged(slow, "aaa").passed


@pytest.mark.parametrize(
    ("text", "word", "place"),
    [
        ("这种做法不道德。", "不道德", 4),
        ("该回答有偏见", "有偏见", 3),
        ("有\u200b偏\u200b见", "有偏见", 0),
        ("a bad idea", "bad", 2),
        ("A BAD idea", "bad", 2),
        ("ａ ｂａｄ idea", "bad", 2),
        ("b\u00adad", "bad", 0),
        ("这个bad主意", "bad", 2),
        ("ﬁne, (bad)", "bad", 6),
        ("in  a\nword, no", "in a word", 0),
        ("use C++ here", "C++", 4),
        ("나쁜말은", "나쁜말", 0),
        ("Straße", "STRASSE", 0),
    ],
)
def test_forbidden_words_are_found_however_they_are_written(text, word, place) -> None:
    verdict = judged(Words(forbidden=["harmless", word]), text)
    assert not verdict.passed
    assert verdict.reason == f"forbidden word {word!r} at character {place}"


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("a classic", "class"),
        ("badly, unbad, bad_idea, bad2", "bad"),
        ("不 道 德", "不道德"),
        ("偏见有", "有偏见"),
        ("C is fine", "C++"),
        ("", "bad"),
    ],
)
def test_words_within_other_words_are_not_found(text, word) -> None:
    verdict = judged(Words(forbidden=[word]), text)
    assert (verdict.passed, verdict.reason) == (True, "no forbidden word, no required word missing")


@pytest.mark.parametrize(
    ("text", "passed", "reason"),
    [
        ("Thanks! 谢谢您的耐心", True, "no forbidden word, no required word missing"),
        ("thanksgiving 谢谢", False, "required word 'thanks' is missing"),
        ("THANKS", False, "required word '谢谢' is missing"),
    ],
)
def test_required_words_must_all_be_there(text, passed, reason) -> None:
    verdict = judged(Words(required=["thanks", "谢谢"]), text)
    assert (verdict.passed, verdict.reason) == (passed, reason)


def test_case_counts_where_it_is_asked_for() -> None:
    strict = Words(forbidden=["May"], ignore_case=False)
    assert judged(strict, "you may").passed
    assert judged(strict, "in May").reason == "forbidden word 'May' at character 3"


def test_words_are_read_from_files_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("\ufeff# unkind\nidiot\n\n  笨蛋 \n", encoding="utf-8")
    words = Words(forbidden_file=str(path), forbidden=["fool"])
    assert [judged(words, text).passed for text in ("idiot", "你这个笨蛋", "fool", "# unkind")] == [False] * 3 + [True]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "give at least one word"),
        ({"forbidden": ["fine", " \u200b"]}, "holds ' .*', which is no word"),
        ({"required_file": "/nowhere/words.txt"}, "required_file '/nowhere/words.txt' cannot be read"),
    ],
)
def test_words_that_cannot_be_used_fail_when_the_constraint_is_built(params, message) -> None:
    with pytest.raises(ConfigError, match=message):
        Words(**params)


@pytest.mark.parametrize(
    ("text", "extract", "passed", "reason"),
    [
        ('{"name": "Ada"}', "whole", True, "fits the schema"),
        (' {"name": "Ada", "tags": []}\n', "whole", True, "fits the schema"),
        ("{}", "whole", False, "(root): 'name' is a required property"),
        ('{"name": "Ada", "tags": ["x", 3]}', "whole", False, "/tags/1: 3 is not of type 'string'"),
        ('{"name": "ada"}', "whole", False, "/name: 'ada' does not match '^[A-Z]'"),
        ('{"name": "Ada", "a/b": 1}', "whole", False, "(root): Additional properties are not allowed"),
        ('{"name": "Ada"', "whole", False, "not JSON: Expecting ',' delimiter"),
        ('{"name": "Ada"} and more', "whole", False, "not JSON: 'and more' follows the value at character 15"),
        ('{"name": "Ada", "name": "Eve"}', "whole", False, "not JSON: key 'name' stands twice"),
        ('{"name": NaN}', "whole", False, "not JSON: NaN is no JSON number"),
        ('{"name": -Infinity}', "whole", False, "not JSON: -Infinity is no JSON number"),
        ('{"name": 1e999}', "whole", False, "not JSON: 1e999 is not a finite number"),
        ("1" * 5000, "whole", False, "not JSON: Exceeds the limit"),
        ("[" * 100_000, "whole", False, "not JSON that can be checked: nested too deeply"),
        ("", "whole", False, "not JSON: Expecting value"),
        ('结果：\n```json\n{"name": "Ada"}\n```\n完', "fenced", True, "fits the schema"),
        ('{"name": "Ada"}', "fenced", False, "no fenced block in the completion"),
        ("```\nnot json\n```", "fenced", False, "not JSON: Expecting value"),
        ('Use {x} [as told]: {"name": "Ada"}. Done {', "first", True, "fits the schema"),
        ('结果是{"name": "Ada"}。', "first", True, "fits the schema"),
        ("no brackets", "first", False, "no JSON object or array in the completion"),
        ('{"bad": 1, "inner": {"name": "Ada"}', "first", False, "not JSON: Expecting ',' delimiter"),
        ('{"x": NaN, "inner": {"name": "Ada"}}', "first", False, "not JSON: NaN is no JSON number"),
        ("[1] {", "first", False, "(root): [1] is not of type 'object'"),
    ],
)
def test_json_must_be_strict_and_fit_the_schema(text, extract, passed, reason) -> None:
    verdict = judged(JsonSchema(schema=PERSON, extract=extract), text)
    assert verdict.passed == passed
    assert verdict.reason.startswith(reason)


def test_a_json_schema_is_read_from_a_file_and_may_refer_to_its_parts(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(json.dumps({"$defs": {"n": {"type": "integer"}}, "items": {"$ref": "#/$defs/n"}}))
    constraint = JsonSchema(file=str(path))
    assert judged(constraint, "[1, 2]").passed
    assert judged(constraint, '[1, "2"]').reason == "/1: '2' is not of type 'integer'"


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({}, "give the schema or a file"),
        ({"schema": {}, "file": "x.json"}, "give the schema or a file"),
        ({"schema": {"type": "objekt"}}, "not a valid schema at /type: 'objekt'"),
        ({"schema": {"properties": {"a": {"$ref": "#/nowhere"}}}}, r"\$ref '#/nowhere' leads nowhere"),
        ({"schema": {"$ref": "https://example.org/schema.json"}}, "'https://example.org/schema.json' leads nowhere"),
        ({"file": "/nowhere/schema.json"}, "file '/nowhere/schema.json' cannot be read"),
    ],
)
def test_a_wrong_schema_fails_when_the_constraint_is_built(params, message) -> None:
    with pytest.raises(ConfigError, match=message):
        JsonSchema(**params)


def test_a_catastrophic_pattern_in_a_schema_raises_and_gives_no_verdict(monkeypatch) -> None:
    monkeypatch.setattr("rsft_cluster.constraints.form.json_schema.PATTERN_TIMEOUT_S", 0.05)
    slow = JsonSchema(schema={"pattern": r"^(?:a|a|b)*(?:a|a|c)*(?:a|a)*$"})
    with pytest.raises(TimeoutError):
        judged(slow, json.dumps("a" * 60 + "!"))

import base64
import hashlib
import json
import random
import tracemalloc

import pytest
from factories import write_jsonl
from reading import read, texts

MIB = 1 << 20


# Bad lines


def message(**fields: object) -> str:
    return json.dumps({"messages": [fields]})


HAS = "expected one of system, user, assistant, tool"
NEITHER = "neither 'messages' nor 'prompt' is there; the line has"
LAST = "the last of 'messages' is the assistant's: there is nothing left to answer"
ONLY = "only role and content are supported"
BAD_LINES: list[tuple[str | bytes, str]] = [
    ("[1]", "expected a JSON object, found a list"),
    ("1", "expected a JSON object, found a number"),
    ("true", "expected a JSON object, found a boolean"),
    ("null", "expected a JSON object, found null"),
    ('"text"', "expected a JSON object, found text"),
    ("not json", "not JSON: Expecting value (column 1)"),
    ('{"prompt": "cut', "not JSON: Unterminated string starting (column 12)"),
    ('{"prompt": "x",}', "not JSON: Expecting property name enclosed in double quotes (column 16)"),
    ("{'prompt': 'x'}", "not JSON: Expecting property name enclosed in double quotes (column 2)"),
    (b'{"prompt": "a\tb"}', "not JSON: Invalid control character (column 14)"),
    (b'{"prompt": "a\0b"}', "not JSON: Invalid control character (column 14)"),
    (r'{"prompt": "\x41"}', "not JSON: Invalid \\escape (column 13)"),
    ("\0\0\0\0", "not JSON: Expecting value (column 1)"),
    ('\ufeff{"prompt": "x"}', "not JSON: Expecting value (column 1)"),
    ('{"prompt": "a"} {"prompt": "b"}', "more than one JSON value: another begins at column 17"),
    ('{"prompt": "a"}, ', "more than one JSON value: another begins at column 16"),
    ('{"prompt": "a", "w": NaN}', "NaN is not JSON"),
    ('{"prompt": "a", "w": Infinity}', "Infinity is not JSON"),
    ('{"prompt": "a", "w": [-Infinity]}', "-Infinity is not JSON"),
    ('{"prompt": "a", "w": 1e999}', "number out of range: 1e999"),
    ('{"prompt": "a", "prompt": "b"}', "key 'prompt' stands twice"),
    ('{"prompt": "a", "m": {"k\\u001b": 1, "k\\u001b": 1}}', "key 'k\\x1b' stands twice"),
    (r'{"prompt": "\ud83d"}', "lone surrogate \\ud83d: half a character is no text"),
    (r'{"prompt": "a", "\uDE00": 1}', "lone surrogate \\ude00: half a character is no text"),
    (b'{"prompt": "\xff"}', "not UTF-8: byte 0xff at offset 12 of the line"),
    (b'{"prompt": "\xed\xa0\xbd"}', "not UTF-8: byte 0xed at offset 12 of the line"),
    ('{"prompt": "中"}'.encode("gbk"), "not UTF-8: byte 0xd6 at offset 12 of the line"),
    ('{"prompt": ' + "[" * 100_000, "nested too deeply"),
    ("{}", f"{NEITHER} no keys"),
    ('{"Prompt": 1, "\\u001b[2J": 2}', f"{NEITHER} 'Prompt', '\\x1b[2J'"),
    ('{"prompt": ""}', "'prompt' is empty"),
    ('{"prompt": null}', "'prompt' is null, not text"),
    ('{"prompt": 5}', "'prompt' is a number, not text"),
    ('{"prompt": ["a"]}', "'prompt' is a list, not text"),
    ('{"messages": "hello"}', "'messages' is text, not a list of messages"),
    ('{"messages": []}', "'messages' is an empty list"),
    ('{"messages": ["hello"]}', "messages[0] is text, not an object with role and content"),
    (message(content="x"), "messages[0] has no role"),
    (message(role="user"), "messages[0] has no content"),
    (message(role="user", content=None), "messages[0].content is null, not text"),
    (message(role="user", content=[{"type": "text"}]), "messages[0].content is a list, not text"),
    (message(role="user", content=""), "the last of 'messages' is empty"),
    (message(role="human", content="x"), f"messages[0] has the role 'human'; {HAS}"),
    (message(role="raw", content="x"), f"messages[0] has the role 'raw'; {HAS}"),
    (message(role=None, content="x"), f"messages[0] has the role 'None'; {HAS}"),
    (message(role="assistant", content="x"), LAST),
    (message(role="user", content="x", tool_calls=[1]), f"messages[0] has 'tool_calls'; {ONLY}"),
]  # fmt: skip


def test_each_bad_line_is_kept_with_its_reason_and_all_good_lines_stay(tmp_path):
    lines: list[str | bytes | dict] = []
    for i, (line, _) in enumerate(BAD_LINES):
        lines += [line, {"prompt": f"good {i}"}]
    rows, bad, intake = read(write_jsonl(tmp_path / "p.jsonl", lines))
    assert [(b.line, b.reason) for b in bad] == [(2 * i + 1, r) for i, (_, r) in enumerate(BAD_LINES)]
    assert texts(rows) == [f"good {i}" for i in range(len(BAD_LINES))]
    assert (intake.num_lines, intake.num_bad) == (2 * len(BAD_LINES), len(BAD_LINES))


def test_an_integer_of_too_many_digits_is_refused(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", ['{"prompt": "x", "n": ' + "9" * 5000 + "}", {"prompt": "y"}])
    rows, bad, _ = read(path)
    assert texts(rows) == ["y"]
    assert bad[0].reason.startswith("number out of range: Exceeds the limit (4300 digits)")


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"prompt": "x", "id": 1, "t": 1}', "'a' is not there; the line has 'prompt', 'id', 't'"),
        ('{"prompt": "x", "id": 1, "t": 1, "a": true}', "'a' is a boolean, not text or a number"),
        ('{"prompt": "x", "id": 1, "t": 1, "a": [1]}', "'a' is a list, not text or a number"),
        ('{"prompt": "x", "id": 1, "t": {}, "a": 1}', "'t' is an object, not text, a number or a boolean"),
        ('{"prompt": "x", "id": 1, "a": 1}', "'t' is not there; the line has 'prompt', 'id', 'a'"),
        ('{"prompt": "x", "id": null, "t": 1, "a": 1}', "'id' is null; an id is text or a number"),
        ('{"prompt": "x", "t": 1, "a": 1}', "'id' is not there; the line has 'prompt', 't', 'a'"),
    ],
)
def test_a_named_column_must_be_there_and_be_scalar(tmp_path, line, reason):
    good = {"prompt": "good", "a": "1", "t": "1", "id": "g"}
    columns = {"reference": "a", "id": "id", "attributes": ("t",)}
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", [line, good]), columns=columns)
    assert texts(rows) == ["good"]
    assert [b.reason for b in bad] == [reason]


def test_a_long_list_of_keys_is_cut_in_the_reason(tmp_path):
    path = write_jsonl(tmp_path / "p.jsonl", [{"k" * 50: 0} | {f"k{i}": i for i in range(24)}, {"prompt": "x"}])
    _, bad, _ = read(path)
    assert "'" + "k" * 36 + "..., 'k0'" in bad[0].reason
    assert bad[0].reason.endswith("'k18' and 5 more")


def test_a_bad_line_says_where_its_bytes_are(tmp_path):
    wrong = b'{"prompt": \xff' + b"x" * 5000
    path = write_jsonl(tmp_path / "p.jsonl", ['{"prompt": "好"}', wrong])
    _, [bad], _ = read(path)
    record = json.loads(bad.to_json())
    assert path.read_bytes()[record["byte_offset"] :].startswith(wrong)
    assert base64.b64decode(record["content"]) == wrong[:4096]
    assert record["sha256"] == hashlib.sha256(wrong).hexdigest()
    assert (record["file"], record["line"]) == (str(path), 2)
    assert "\n" not in bad.to_json()
    assert bad.to_json().isascii()


def test_a_byte_order_mark_may_begin_a_file_and_lines_may_end_in_crlf(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n \t\r\n[1]\r\n{"prompt": "b"}')
    rows, bad, _ = read(path)
    assert texts(rows) == ["a", "b"]
    assert [(b.line, b.byte_offset) for b in bad] == [(3, path.read_bytes().index(b"[1]"))]


def test_random_bytes_never_crash_the_reader(tmp_path):
    noise = random.Random(7).randbytes(MIB)
    path = write_jsonl(tmp_path / "p.jsonl", [noise, {"prompt": "good"}])
    rows, bad, _ = read(path)
    assert texts(rows) == ["good"]
    assert len(bad) > 1000


def test_a_100_mb_line_is_quarantined_in_bounded_memory(tmp_path):
    path = tmp_path / "p.jsonl"
    digest = hashlib.sha256()
    with path.open("wb") as stream:
        stream.write(b'{"prompt": "before"}\n')
        for _ in range(100):
            stream.write(b"x" * MIB)
            digest.update(b"x" * MIB)
        stream.write(b'\n{"prompt": "after"}\n[1]\n')
    tracemalloc.start()
    rows, bad, _ = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert texts(rows) == ["before", "after"]
    assert (bad[0].reason, bad[0].sha256) == ("longer than 16777216 bytes", digest.hexdigest())
    assert (bad[1].line, bad[1].byte_offset) == (4, path.stat().st_size - 4)
    assert peak < 80 * MIB  # measured: 33 MiB, twice the longest line that is taken


def test_a_line_of_exactly_16_mib_is_taken(tmp_path):
    frame = len('{"prompt": ""}')
    lines = [{"prompt": "x" * (16 * MIB - frame)}, {"prompt": "x" * (16 * MIB - frame + 1)}]
    rows, bad, _ = read(write_jsonl(tmp_path / "p.jsonl", lines))
    assert [len(t) for t in texts(rows)] == [16 * MIB - frame]
    assert [(b.line, b.reason) for b in bad] == [(2, "longer than 16777216 bytes")]

import base64
import gzip
import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from factories import write_jsonl
from reading import read, refusal, texts

# Files, folders, globs


@pytest.fixture
def tree(tmp_path) -> Path:
    for name in (
        "b.jsonl",
        "a.ndjson",
        "sub/c.jsonl",
        "sub/deep/d.JSONL",
        "_temporary/e.jsonl",
        ".f.jsonl",
        "n.txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(path, [{"prompt": name}])
    (tmp_path / "sub" / "g.jsonl.gz").write_bytes(gzip.compress(b'{"prompt": "sub/g.jsonl.gz"}\n'))
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("", ["a.ndjson", "b.jsonl", "sub/c.jsonl", "sub/deep/d.JSONL", "sub/g.jsonl.gz"]),
        ("sub/", ["sub/c.jsonl", "sub/deep/d.JSONL", "sub/g.jsonl.gz"]),
        ("*", ["a.ndjson", "b.jsonl"]),
        ("*/*", ["_temporary/e.jsonl", "sub/c.jsonl", "sub/g.jsonl.gz"]),
        ("**/*.jsonl", ["_temporary/e.jsonl", "b.jsonl", "sub/c.jsonl"]),
        ("s?b/[cd]*", ["sub/c.jsonl"]),
        (".f.jsonl", [".f.jsonl"]),
        ("_temporary/e.jsonl", ["_temporary/e.jsonl"]),
    ],
)
def test_folders_and_globs_give_sorted_files(tree, pattern, names):
    rows, _, _ = read(f"{tree}/{pattern}")
    assert texts(rows) == names


def test_a_uri_names_the_same_files_as_a_path(tree):
    by_path, _, _ = read(f"{tree}/sub/*.jsonl")
    by_uri, _, intake = read(f"file://{tree}/sub/*.jsonl", f"{tree}/sub/c.jsonl")
    assert by_uri == by_path
    assert intake.num_duplicates == 0


def test_a_file_whose_name_looks_like_a_glob_is_taken_literally(tmp_path):
    write_jsonl(tmp_path / "p[1].jsonl", [{"prompt": "literal"}])
    assert texts(read(tmp_path / "p[1].jsonl")[0]) == ["literal"]


def test_object_stores_are_read_by_uri(tmp_path, monkeypatch):
    moto = pytest.importorskip("moto.server")
    server = moto.ThreadedMotoServer(port=0)
    server.start()
    try:
        host, port = server.get_host_and_port()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        options = f"?region=us-east-1&scheme=http&endpoint_override={host}:{port}&allow_bucket_creation=true"
        filesystem, _ = pa.fs.FileSystem.from_uri("s3://prompts" + options)
        filesystem.create_dir("prompts")
        for name in ("b.jsonl", "a.jsonl"):
            with filesystem.open_output_stream(f"prompts/in/{name}") as stream:
                stream.write(b'{"prompt": "%s"}\n' % name.encode())
        rows, _, _ = read("s3://prompts/in/*.jsonl" + options)
        whole, _, _ = read("s3://prompts/in" + options)
    finally:
        server.stop()
    assert [row["source"]["file"] for row in rows] == ["s3://prompts/in/a.jsonl", "s3://prompts/in/b.jsonl"]
    assert whole == rows


KINDS = r"\.jsonl, \.ndjson, \.jsonl\.gz, \.ndjson\.gz, \.parquet"


@pytest.mark.parametrize(
    ("pattern", "said"),
    [
        (
            "none.jsonl",
            rf"none\.jsonl matches nothing; expected a file, folder or glob with files ending in {KINDS}",
        ),
        ("none/*.jsonl", r"none/\*\.jsonl matches nothing; expected a file"),
        ("n.txt", rf"n\.txt gives no file that can be read \(1 others, like .*/n\.txt\); expected {KINDS}"),
        ("*.txt", r"\*\.txt gives no file that can be read \(1 others, like .*/n\.txt\)"),
    ],
)
def test_a_path_that_gives_nothing_is_named(tree, pattern, said):
    assert re.fullmatch(
        rf"prompts\.paths: {re.escape(str(tree))}/{said}.*", refusal(f"{tree}/b.jsonl", f"{tree}/{pattern}")
    )


def test_paths_must_be_given_and_of_a_known_scheme():
    assert refusal() == "prompts.paths is empty; name at least one JSONL or Parquet file, folder or glob"
    assert refusal("http://host/p.jsonl") == (
        "prompts.paths: http://host/p.jsonl: unknown scheme; known: file, s3, gs, gcs, abfs, abfss"
    )


def test_a_damaged_gzip_file_is_named_with_the_line_reached(tmp_path):
    whole = b"".join(b'{"prompt": "%d"}\n' % i for i in range(40_000))
    path = tmp_path / "p.jsonl.gz"
    path.write_bytes(gzip.compress(whole)[:-9])
    said = refusal(path)
    assert re.fullmatch(rf"{re.escape(str(path))}: cannot be read after line \d+: Truncated compressed stream", said)


# Parquet


def test_parquet_gives_the_prompts_that_jsonl_gives(tmp_path):
    chat = [{"role": "user", "content": "嗨 \0😀"}]
    lines = [
        {"id": "1", "meta": {"answer": 1.5, "level": "easy"}, "messages": chat, "prompt": None},
        {"id": "2", "meta": {"answer": None, "level": None}, "messages": None, "prompt": "raw"},
        {"id": "3", "meta": None, "messages": None, "prompt": "other"},
    ]
    columns = {"reference": "meta.answer", "id": "id", "attributes": ("meta.level",)}
    pq.write_table(pa.Table.from_pylist(lines), tmp_path / "p.parquet")
    rows, bad, _ = read(tmp_path / "p.parquet", columns=columns)
    expected, _, _ = read(write_jsonl(tmp_path / "p.jsonl", lines), columns=columns)
    assert not bad
    assert [(r["prompt_id"], r["messages"]) for r in rows] == [(r["prompt_id"], r["messages"]) for r in expected]
    assert [r["source"]["line"] for r in rows] == [1, 2, 3]


def test_parquet_folders_and_globs_are_read_in_order_by_row_number(tmp_path):
    for name in ("2", "1"):
        table = pa.table({"prompt": pa.array([f"{name}.{i}" for i in range(3000)]).dictionary_encode()})
        pq.write_table(table, tmp_path / f"{name}.parquet", row_group_size=700)
    rows, _, _ = read(tmp_path)
    assert texts(rows) == [f"{name}.{i}" for name in "12" for i in range(3000)]
    assert rows[-1]["source"] == {"file": f"{tmp_path}/2.parquet", "line": 3000}
    assert read(tmp_path / "*.parquet")[0] == rows


def test_a_parquet_file_without_the_column_says_which_it_has(tmp_path):
    pq.write_table(pa.table({"question": ["a"], "answer": ["b"]}), tmp_path / "p.parquet")
    said = refusal(tmp_path / "p.parquet", max_bad_rate=0)
    assert said.endswith("p.parquet:1: neither 'messages' nor 'prompt' is there; the line has 'question', 'answer'")


def test_parquet_rows_are_refused_one_by_one_and_kept_as_json(tmp_path):
    chats = [[{"role": "user", "content": t, "name": n}] for t, n in [("a", None), ("b", "Bo"), ("", None)]]
    pq.write_table(pa.table({"messages": chats, "w": [1.0, 2.0, 3.0]}), tmp_path / "p.parquet")
    rows, bad, _ = read(tmp_path / "p.parquet", columns={"reference": "w"})
    assert texts(rows) == ["a"]
    assert [(b.line, b.byte_offset, b.reason) for b in bad] == [
        (2, None, "messages[0] has 'name'; only role and content are supported"),
        (3, None, "the last of 'messages' is empty"),
    ]
    assert json.loads(base64.b64decode(bad[0].content)) == {"messages": chats[1], "w": 2.0}


def test_an_overlong_prompt_in_parquet_is_refused(tmp_path):
    pq.write_table(pa.table({"prompt": ["x" * ((16 << 20) + 1), "y"]}), tmp_path / "p.parquet")
    rows, bad, _ = read(tmp_path / "p.parquet")
    assert texts(rows) == ["y"]
    assert [(b.line, b.reason) for b in bad] == [(1, "longer than 16777216 characters")]


def test_not_a_number_in_parquet_is_no_reference(tmp_path):
    pq.write_table(pa.table({"prompt": ["a", "b"], "w": [float("nan"), 1.0]}), tmp_path / "p.parquet")
    rows, bad, _ = read(tmp_path / "p.parquet", columns={"reference": "w"})
    assert texts(rows) == ["b"]
    assert [b.reason for b in bad] == ["'w' is nan, not a finite number"]


def test_bytes_in_parquet_that_are_no_text_cost_one_row(tmp_path):
    binary = pa.array([b"good", b"a\xff\xfe", "好".encode()])
    broken = pa.StringArray.from_buffers(3, *binary.buffers()[1:])
    pq.write_table(pa.table({"prompt": broken}), tmp_path / "p.parquet")
    rows, bad, _ = read(tmp_path / "p.parquet")
    assert texts(rows) == ["good", "好"]
    assert [(b.line, b.reason) for b in bad] == [(2, "not UTF-8: byte 0xff at offset 1 of a text")]
    assert base64.b64decode(bad[0].content) == b"a\xff\xfe"


class Coded(pa.ExtensionType):
    def __init__(self) -> None:
        super().__init__(pa.string(), "tests.coded")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        raise AssertionError("code of the type ran")


@pytest.mark.parametrize("nested", [False, True])
def test_an_extension_type_is_refused_wherever_it_stands(tmp_path, nested):
    column = pa.ExtensionArray.from_storage(Coded(), pa.array(["x"]))
    column = pa.StructArray.from_arrays([column], names=["inner"]) if nested else column
    pq.write_table(pa.table({"prompt": ["a"], "other": column}), tmp_path / "p.parquet")
    name = "other"
    assert refusal(tmp_path / "p.parquet") == (
        f"{tmp_path}/p.parquet: column {name!r} has the extension type tests.coded, which is never read; "
        "write the file with plain text, number, list and struct columns"
    )


def test_an_extension_type_that_pyarrow_knows_is_refused_too(tmp_path):
    pq.write_table(pa.table({"prompt": ["a"], "u": pa.array([b"0" * 16], pa.uuid())}), tmp_path / "p.parquet")
    assert "column 'u' has the extension type arrow.uuid, which is never read" in refusal(tmp_path / "p.parquet")


@pytest.mark.parametrize("kind", [pa.binary(), pa.timestamp("us"), pa.list_(pa.date32()), pa.map_("string", "string")])
def test_a_column_of_another_type_is_refused_only_where_it_is_used(tmp_path, kind):
    table = pa.table({"prompt": ["a"], "when": pa.array([None], kind)})
    pq.write_table(table, tmp_path / "p.parquet")
    assert texts(read(tmp_path / "p.parquet")[0]) == ["a"]
    kind = pq.read_schema(tmp_path / "p.parquet").field("when").type
    assert refusal(tmp_path / "p.parquet", columns={"reference": "when"}) == (
        f"{tmp_path}/p.parquet: column 'when' has the type {kind}; expected text, a number, a boolean, "
        "or lists and structs of these. Cast it where the file is written."
    )


def test_a_flipped_byte_in_parquet_fails_its_checksum(tmp_path):
    path = tmp_path / "p.parquet"
    table = pa.table({"prompt": [f"prompt number {i}" for i in range(1000)]})
    pq.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    damaged = path.read_bytes().replace(b"prompt number 500", b"prompt number 5O0")
    path.write_bytes(damaged)
    said = refusal(path)
    assert said.startswith(f"{path}: cannot be read after line 0: ")
    assert "CRC checksum verification failed" in said


def test_a_file_that_only_claims_to_be_parquet_is_named(tmp_path):
    path = tmp_path / "p.parquet"
    path.write_bytes(b"no parquet at all")
    assert refusal(path).startswith(f"{path}: cannot be read after line 0: Parquet magic bytes not found")

"""The same store on an S3 server over HTTP: put-if-absent, tables, listings."""

import gzip
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from s3 import bucket_of_server
from test_store import prompts

from rsft_cluster.errors import ConfigError
from rsft_cluster.prompts.paths import find_files
from rsft_cluster.prompts.source import read_rows
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store, localise, upload_folder


@pytest.fixture(scope="module")
def bucket():
    with bucket_of_server() as found, pytest.MonkeyPatch.context() as patch:
        for name, value in found.environment().items():
            patch.setenv(name, value)
        yield found


def test_put_if_absent_holds_on_s3(bucket):
    store = Store(bucket.place())
    store.probe()
    assert store.create("lease/1.json", b"mine")
    assert not store.create("lease/1.json", b"yours")
    assert store.files("lease") == ["lease/1.json"]


def test_tables_and_row_groups_round_trip_on_s3(bucket):
    store = Store(bucket.place())
    ref = store.write_table("a/t.parquet", prompts(9), PROMPT)
    assert store.read_table(ref).num_rows == 9
    assert store.size("a/t.parquet") == ref.num_bytes
    store.write_batches("p.parquet", prompts(9).to_batches(), PROMPT, rows=4)
    assert store.read_row_group("p.parquet", 2).num_rows == 1


def test_a_model_folder_on_s3_is_fetched_once(bucket, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    place = bucket.place()
    upload_folder(tmp_path, f"{place}/model")
    first = localise(f"{place}/model")
    assert (first / "config.json").read_text() == "{}"
    assert localise(f"{place}/model") == first


def test_names_of_all_kinds_and_marked_folders_are_listed(bucket):
    store = Store(bucket.place())
    names = ["a b.json", "a%20b.json", "\u4f60+&=#.json", "deep/er/c.json"]
    for name in names:
        store.write(f"x/{name}", name.encode())
    key = store.uri.split("/", 3)[3]
    for folder in ("x/", "x/deep/"):  # as consoles make them
        bucket.client().put_object(Bucket=bucket.name, Key=f"{key}/{folder}", Body=b"")
    assert store.files("x", recursive=True) == sorted(f"x/{name}" for name in names)
    assert store.files("x") == sorted(f"x/{name}" for name in names[:3])
    assert store.folders("x") == ["x/deep"]
    assert [store.read(f"x/{name}") for name in names] == [name.encode() for name in names]


def test_a_long_listing_is_whole(bucket):
    store = Store(bucket.place())
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: store.write(f"x/{i:04d}", b""), range(1005)))
    assert store.files("x") == [f"x/{i:04d}" for i in range(1005)]
    store.delete_folder("x")
    assert store.files("x") == []


def test_a_large_object_is_put_and_read_in_parts(bucket):
    store, payload = Store(bucket.place()), bytes(range(256)) * (80 << 10)
    store.write("large", payload)
    assert store.size("large") == len(payload) == 20 << 20
    assert store.read("large") == payload


def test_prompts_are_read_by_their_uris(bucket):
    store = Store(bucket.place())
    lines = [json.dumps({"prompt": f"{i} + 1 ="}).encode() + b"\n" for i in range(3000)]
    store.write("in/a b.jsonl", b"".join(lines[:1000]))
    store.write("in/c.jsonl.gz", gzip.compress(b"".join(lines[1000:])))
    store.write("in/_unfinished.jsonl", b"{")
    for pattern in ("in", "in/*.jsonl*"):
        files = find_files([f"{store.uri}/{pattern}"])
        names = [file.name for file in files if "_unfinished" not in file.name]
        assert names == [f"{store.uri}/in/a b.jsonl", f"{store.uri}/in/c.jsonl.gz"]
    rows = [row for file in find_files([f"{store.uri}/in"]) for row in read_rows(file, ["prompt"])]
    assert len(rows) == 3000
    with pytest.raises(ConfigError, match="matches nothing"):
        find_files([f"{store.uri}/elsewhere/*.jsonl"])

"""The store: whole files or none, put-if-absent, damage noticed."""

import errno
import multiprocessing
import os
import random

import pyarrow as pa
import pytest
from factories import prompt

from rsft_cluster.errors import ConfigError, StoreError
from rsft_cluster.records import Manifest
from rsft_cluster.schemas import PROMPT, rows_to_table
from rsft_cluster.store import Store, localise, open_uri, upload_folder
from rsft_cluster.store.disk import once_more


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path / "run"))


def prompts(count, start=0):
    rows = [
        {"prompt_id": f"{i:032x}", "messages": [{"role": "raw", "content": f"{i} 你好\0🙂"}], "attributes": {},
         "source": {"file": "f", "line": i}}
        for i in range(start, start + count)
    ]  # fmt: skip
    return rows_to_table(rows, PROMPT)


def test_create_puts_a_file_once(store):
    assert store.create("a/b.json", b"first")
    assert not store.create("a/b.json", b"second")
    assert store.read("a/b.json") == b"first"


def _contend(uri, barrier, queue, name):
    barrier.wait()
    queue.put(Store(uri).create("lease/1.json", name.encode()))


def test_of_many_processes_that_create_one_wins(tmp_path):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(8), context.Queue()
    workers = [context.Process(target=_contend, args=(str(tmp_path), barrier, queue, str(i))) for i in range(8)]
    for worker in workers:
        worker.start()
    outcomes = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == [False] * 7 + [True]


def test_a_link_whose_reply_nfs_lost_is_known_for_ours(store, monkeypatch):
    """NFS asks again when a reply is lost, and is told that the name is taken: by the link that it made itself."""
    link = os.link

    def lossy(source, target):
        link(source, target)
        raise FileExistsError(errno.EEXIST, "File exists", str(target))

    monkeypatch.setattr(os, "link", lossy)
    assert store.create("lease/1.json", b"mine")
    monkeypatch.undo()
    assert not store.create("lease/1.json", b"mine")


@pytest.mark.parametrize(("number", "is_passing"), [(errno.ESTALE, True), (errno.EIO, True), (errno.EACCES, False)])
def test_a_passing_error_of_nfs_is_met_once_more(number, is_passing):
    met = [OSError(number, os.strerror(number))]

    def attempt():
        if met:
            raise met.pop()
        return "read"

    if is_passing:
        assert once_more(attempt) == "read"
    else:
        with pytest.raises(OSError, match="Permission denied"):
            once_more(attempt)


def test_files_lists_nothing_half_written(store):
    store.write("x/1.json", b"1")
    (store.filesystem.open_output_stream(f"{store.root}/x/.aside-dead")).close()
    assert store.files("x") == ["x/1.json"]
    assert store.files("nowhere") == []


def test_a_failed_write_leaves_no_trace(store):
    def batches():
        yield prompts(3).to_batches()[0]
        raise OSError(28, "No space left on device")

    with pytest.raises(StoreError, match=r"prompts\.parquet: No space left on device"):
        store.write_batches("prompts.parquet", batches(), PROMPT, rows=2)
    assert store.files("", recursive=True) == []


def test_row_groups_hold_several_lots_but_not_too_many_bytes(store, monkeypatch):
    monkeypatch.setattr("rsft_cluster.store.store.MAX_GROUP_BYTES", 4000)
    texts = ["short"] * 90 + ["long" * 300] * 10 + ["short"] * 17
    rows = [prompt(f"{text} {i}") for i, text in enumerate(texts)]
    batches = rows_to_table(rows, PROMPT).to_batches(max_chunksize=13)
    assert store.write_batches("p.parquet", batches, PROMPT, rows=5, most_rows=22) == 117
    sizes, together = store.row_groups("p.parquet")
    assert together == 5
    assert (sum(sizes), max(sizes), sizes[-1] % 5) == (117, 20, 2)
    assert all(size % 5 == 0 for size in sizes[:-1])
    tables = [store.read_row_group("p.parquet", i) for i in range(len(sizes))]
    assert all(table.nbytes < 4000 or table.num_rows == 5 for table in tables)
    assert pa.concat_tables(tables).to_pylist() == rows_to_table(rows, PROMPT).to_pylist()


def test_batches_become_row_groups_of_the_asked_size(store):
    batches = (prompts(7, start).to_batches()[0] for start in (0, 7, 14))
    assert store.write_batches("p.parquet", batches, PROMPT, rows=5) == 21
    sizes = [store.read_row_group("p.parquet", i).num_rows for i in range(5)]
    assert sizes == [5, 5, 5, 5, 1]
    assert store.read_row_group("p.parquet", 4).column("messages")[0].as_py()[0]["content"] == "20 你好\0🙂"


def test_every_flipped_bit_of_a_table_is_noticed(store):
    ref = store.write_table("t.parquet", prompts(200), PROMPT)
    good = store.read("t.parquet")
    generator = random.Random(0)
    for _ in range(200):
        bad = bytearray(good)
        bad[generator.randrange(len(bad))] ^= 1 << generator.randrange(8)
        store.write("t.parquet", bytes(bad))
        with pytest.raises(StoreError, match="damaged"):
            store.read_table(ref)
    store.write("t.parquet", good)
    assert store.read_table(ref).num_rows == 200


def test_a_truncated_table_is_noticed(store):
    ref = store.write_table("t.parquet", prompts(20), PROMPT)
    store.write("t.parquet", store.read("t.parquet")[:-100])
    with pytest.raises(StoreError, match="damaged"):
        store.read_table(ref)


@pytest.mark.parametrize("path", ["../x", "/etc/passwd", "a/../../b"])
def test_paths_do_not_lead_out_of_the_store(store, path):
    with pytest.raises(StoreError, match="leads out of the store"):
        store.read(path)


def test_an_unknown_scheme_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"unknown storage scheme 'https'; one of file, s3, gs, abfs"):
        open_uri("https://example.org/runs")


def test_a_store_that_cannot_be_written_says_so():
    with pytest.raises(StoreError, match="/proc/rsft"):
        Store("/proc/rsft").probe()


def test_a_folder_uploaded_is_the_folder_localised(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    upload_folder(tmp_path / "model", str(tmp_path / "out"))
    assert (localise(str(tmp_path / "out")) / "config.json").read_text() == "{}"


def test_tables_are_checked_against_their_schema_on_the_way_out(store):
    with pytest.raises(TypeError, match="missing columns"):
        store.write_table("t.parquet", pa.table({"prompt_id": ["a"]}), PROMPT)


def test_a_damaged_record_is_named(store):
    store.write("rounds/0001/manifest.json", b'{"round": ')
    with pytest.raises(StoreError, match=r"rounds/0001/manifest\.json: damaged: holds no Manifest"):
        store.read_record("rounds/0001/manifest.json", Manifest)

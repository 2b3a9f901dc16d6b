"""The store on an object store that fails in every way it can: nothing is lost, nothing done twice, all is said."""

import os
import random
import subprocess
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from faults import FAULTS, Changed, Refusal, at_rate, each_once, faulty
from s3 import SECRET_KEY, Bucket, bucket_of_server
from test_store import prompts

from rsft_cluster.errors import AlreadyRunningError, ConfigError, StoreError
from rsft_cluster.records import PolicyRef
from rsft_cluster.runs.fingerprint import claim_run
from rsft_cluster.runs.lease import hold
from rsft_cluster.runs.promotions import PromotionLog
from rsft_cluster.schemas import PROMPT
from rsft_cluster.store import Store, clients, localise, objects, open_uri, retrying, upload_folder

CREATING = "if-none-match"


@pytest.fixture(scope="module")
def bucket():
    with bucket_of_server() as found:
        yield found


@pytest.fixture
def proxy(bucket, monkeypatch):
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    with faulty(bucket.endpoint) as found:
        for name, value in bucket.environment(found.endpoint).items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(retrying, "FIRST_WAIT_S", 0.02)
        monkeypatch.setattr(retrying, "LONGEST_WAIT_S", 0.2)
        yield found


def is_creating(request):
    return CREATING in request.headers


def is_put(request):
    return request.method == "PUT"


@pytest.mark.parametrize("fault", FAULTS)
def test_every_operation_comes_through_when_its_every_request_fails_once(bucket, proxy, fault, tmp_path, monkeypatch):
    monkeypatch.setattr(objects, "CHUNK_BYTES", 4096)
    monkeypatch.setattr(objects, "INNER_RETRIES", 0)
    proxy.slow_s = 0.05
    proxy.rule = each_once(fault)
    place = bucket.place()
    store = Store(place)
    payload = random.Random(0).randbytes(10_000)

    assert store.create("a/created.json", b"mine")
    assert not store.create("a/created.json", b"yours")
    store.write("a/written.bin", payload)
    assert (store.read("a/created.json"), store.read("a/written.bin")) == (b"mine", payload)
    assert store.files("a") == ["a/created.json", "a/written.bin"]
    assert store.files("", recursive=True) == ["a/created.json", "a/written.bin"]
    assert store.folders("") == ["a"]
    assert (store.exists("a"), store.exists("a/written.bin"), store.exists("b")) == (True, True, False)
    assert (store.size("a/written.bin"), store.size("b")) == (10_000, None)
    ref = store.write_table("t/t.parquet", prompts(30), PROMPT)
    assert store.read_table(ref).num_rows == 30
    assert store.write_batches("t/b.parquet", prompts(9).to_batches(), PROMPT, rows=4) == 9
    assert store.row_groups("t/b.parquet")[0] == [4, 4, 1]
    assert store.read_row_group("t/b.parquet", 2).column("prompt_id")[0].as_py() == f"{8:032x}"
    assert sum(batch.num_rows for batch in store.first_rows("t/b.parquet", 6)) == 6
    store.delete("a/created.json")
    store.delete_folder("t")
    assert store.files("", recursive=True) == ["a/written.bin"]

    (tmp_path / "model" / "deep").mkdir(parents=True)
    (tmp_path / "model" / "weights").write_bytes(payload)
    (tmp_path / "model" / "deep" / "config.json").write_text("{}")
    upload_folder(tmp_path / "model", f"{place}/model")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    fetched = localise(f"{place}/model")
    assert (fetched / "weights").read_bytes() == payload
    assert (fetched / "deep" / "config.json").read_text() == "{}"
    assert len(proxy.faults()) > 25


def test_pyarrow_reads_and_writes_through_all_faults_at_once(bucket, proxy):
    proxy.rule = at_rate(0.3, seed=3)
    proxy.slow_s = 0.05
    filesystem, root = open_uri(bucket.place())
    payload = random.Random(1).randbytes(300_000)
    with filesystem.open_output_stream(f"{root}/checkpoints/1/state") as stream:
        stream.write(payload[:1000])
        stream.write(payload[1000:])
    filesystem.copy_file(f"{root}/checkpoints/1/state", f"{root}/checkpoints/2/state")
    filesystem.move(f"{root}/checkpoints/2/state", f"{root}/checkpoints/3/state")
    with filesystem.open_input_file(f"{root}/checkpoints/3/state") as file:
        assert file.size() == 300_000
        file.seek(250_000)
        assert file.read(100) == payload[250_000:250_100]
        file.seek(0)
        assert file.read() == payload
    infos = filesystem.get_file_info([f"{root}/checkpoints/3", f"{root}/checkpoints/2", f"{root}/checkpoints/1/state"])
    assert [info.type.name for info in infos] == ["Directory", "NotFound", "File"]
    filesystem.delete_dir(f"{root}/checkpoints")
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        filesystem.open_input_file(f"{root}/checkpoints/3/state")


@pytest.mark.parametrize("fault", ["lost", "failed after"])
def test_a_put_whose_reply_was_lost_is_known_for_ours(bucket, proxy, fault):
    store = Store(bucket.place())
    proxy.rule = each_once(fault, fault, when=is_creating)
    assert store.create("lease/1.json", b"the same bytes")
    assert not store.create("lease/1.json", b"the same bytes")
    assert proxy.faults().count(fault) == 2


def test_a_put_that_another_won_in_the_meantime_is_known_for_theirs(bucket, proxy):
    ours, theirs = Store(bucket.place()), []

    def rule(request):
        if is_creating(request) and not theirs:
            theirs.append(True)
            bucket.client().put_object(
                Bucket=bucket.name,
                Key=request.path.split("/", 2)[2],
                Body=b"the same bytes",
                Metadata={"rsft-put": "x"},
            )
            return "cut"
        return None

    proxy.rule = rule
    assert not ours.create("lease/1.json", b"the same bytes")
    assert theirs


def test_a_conflict_with_a_put_that_came_to_nothing_is_tried_again(bucket, proxy):
    answers = [Refusal(409, "ConditionalRequestConflict")]
    proxy.rule = lambda request: answers.pop() if is_creating(request) and answers else None
    assert Store(bucket.place()).create("a", b"1")
    assert not answers


@pytest.mark.parametrize("payload", [b"of all alike", None], ids=["equal bytes", "bytes of its own"])
def test_of_many_that_create_one_wins_and_knows_it_whatever_is_lost(bucket, proxy, payload):
    proxy.rule = at_rate(0.5, seed=11, faults=("lost", "lost", "cut", "failed after", "503"))
    place, num = bucket.place(), 5
    stores = [Store(place) for _ in range(num)]
    with ThreadPoolExecutor(num) as pool:
        for key in map(str, range(6)):
            barrier = threading.Barrier(num)

            def contend(i, key=key, barrier=barrier):
                barrier.wait()
                return stores[i].create(key, payload or str(i).encode())

            outcomes = list(pool.map(contend, range(num)))
            assert sorted(outcomes) == [False] * (num - 1) + [True]
            assert stores[0].read(key) == (payload or str(outcomes.index(True)).encode())
    assert proxy.faults().count("lost") > 10


@pytest.mark.parametrize("fault", ["lost", "cut", "failed after", "503"])
def test_a_lease_is_held_by_one_through_lost_replies(bucket, proxy, fault):
    proxy.rule = each_once(fault, when=is_put)
    store = Store(bucket.place())
    with hold(store) as lease:
        lease.check()
        with pytest.raises(AlreadyRunningError, match="already running"), hold(Store(store.uri)):
            pass
    with hold(store) as second:
        assert second.epoch == 2


def test_a_lease_that_cannot_be_released_ends_no_run(bucket, proxy, monkeypatch, caplog):
    monkeypatch.setattr("rsft_cluster.runs.lease.RELEASE_S", 0.2)
    with hold(Store(bucket.place())):
        proxy.rule = lambda request: "503" if is_put(request) else None
    assert "the lease ends when this process does" in caplog.text


@pytest.mark.parametrize("fault", ["lost", "cut", "failed after"])
def test_a_promotion_is_logged_once_through_lost_replies(bucket, proxy, fault):
    store, policy = Store(bucket.place()), PolicyRef(name="round-0000", uri="/m", digest="d")
    log = PromotionLog(store)
    with hold(store) as lease:
        proxy.rule = each_once(fault, when=is_creating)
        for number in range(3):
            log.append(lease, action="keep", policy=policy, reason="r", round_number=number)
    assert [(e.number, e.round) for e in log.entries()] == [(0, 0), (1, 1), (2, 2)]
    assert len(proxy.faults()) == 3


def test_a_fingerprint_is_claimed_through_lost_replies(bucket, proxy):
    proxy.rule = each_once("lost")
    store = Store(bucket.place())
    assert claim_run(store, {"a": 1}) == claim_run(store, {"a": 1})
    store.create("rounds/0001/plan.json", b"{}")
    with pytest.raises(ConfigError, match="a: was 1, is 2"):
        claim_run(store, {"a": 2})


# What does not get better


def refused(bucket, proxy, call, *answers, status=403, code="AccessDenied", when=lambda _: True):
    """The message of a store's refusal, and how many requests it took."""
    proxy.rule = lambda request: Refusal(status, code) if when(request) else None
    before, began = len(proxy.seen), time.monotonic()
    with pytest.raises(StoreError) as caught:
        call()
    assert caught.value.exit_code == 74
    assert time.monotonic() - began < 5
    assert SECRET_KEY not in str(caught.value)
    return str(caught.value), len(proxy.seen) - before


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (403, "AccessDenied", "access is refused (403 AccessDenied); expected credentials that may list, read, write"),
        (401, "Unauthorized", "access is refused (401 Unauthorized)"),
        (400, "InvalidBucketName", "the store refused the request (400 InvalidBucketName)"),
        (404, "NoSuchBucket", "there is no such bucket"),
        (501, "NotImplemented", "the store cannot do this (501 NotImplemented)"),
    ],
)
def test_what_cannot_get_better_fails_at_once_with_the_uri(bucket, proxy, status, code, said):
    store = Store(bucket.place())
    for call in (lambda: store.write("x", b"1"), lambda: store.create("x", b"1"), lambda: store.read("x")):
        message, num_requests = refused(bucket, proxy, call, status=status, code=code)
        assert message.startswith(f"{store.uri}/x: {said}")
        # The client itself asks again at any 5xx, where that harms nothing.
        assert num_requests == 1 or (status >= 500 and num_requests == 1 + objects.INNER_RETRIES)


def test_a_file_that_is_not_there_is_said_at_once(bucket, proxy):
    store = Store(bucket.place())
    with pytest.raises(StoreError, match=r"/x: there is no such file$"):
        store.read("x")
    assert len(proxy.seen) == 1


def test_a_store_that_stays_away_fails_when_its_time_is_over(bucket, proxy, monkeypatch):
    monkeypatch.setenv(retrying.TIMEOUT_VARIABLE, "0.5")
    proxy.rule = lambda _: "503"
    began = time.monotonic()
    with pytest.raises(
        StoreError, match=r"the store answered \(503 SlowDown\); tried again for [01] s \(RSFT_STORE_TIME"
    ):
        Store(bucket.place()).read("x")
    assert time.monotonic() - began < 3
    assert len(proxy.seen) > 3


def test_an_outage_is_waited_for(bucket, proxy):
    until = time.monotonic() + 1.5
    proxy.rule = lambda _: "cut" if time.monotonic() < until else None
    assert Store(bucket.place()).create("x", b"1")
    assert time.monotonic() >= until


def test_an_answer_that_never_comes_is_asked_for_again(bucket, proxy, monkeypatch):
    monkeypatch.setattr(clients, "REQUEST_S", 1)
    proxy.slow_s = 2.5
    proxy.rule = each_once("slow", when=is_creating)
    assert Store(bucket.place()).create("x", b"1")
    assert proxy.faults() == ["slow"]


@pytest.mark.parametrize("said", ["soon", "-1", "nan", "inf"])
def test_a_time_that_is_none_is_refused(bucket, monkeypatch, said):
    monkeypatch.setenv(retrying.TIMEOUT_VARIABLE, said)
    with pytest.raises(ConfigError, match=f"RSFT_STORE_TIMEOUT_S: '{said}' is no number of seconds; expected one like"):
        Store(bucket.place())


# The probe


def test_a_probe_names_a_bucket_that_is_missing(bucket, proxy):
    message, _ = refused(
        bucket, proxy, Store(f"{bucket.uri}/x").probe, status=404, code="NoSuchBucket", when=lambda _: True
    )
    assert f"there is no bucket {bucket.uri}; create it, or name another" in message


def test_a_bucket_that_is_missing_on_the_server_itself(bucket, proxy):
    place = f"{bucket.uri}-that-nobody-made/x"
    with pytest.raises(StoreError, match=r"there is no bucket|access is refused \(403 AccessDenied\)"):
        Store(place).probe()


def test_a_probe_tells_reading_rights_from_none(bucket, proxy):
    probe = Store(bucket.place()).probe
    message, _ = refused(bucket, proxy, probe, when=lambda r: r.method != "GET")
    assert "it can be listed and not written to: access is refused (403 AccessDenied)" in message
    message, _ = refused(bucket, proxy, probe, code="InvalidAccessKeyId")
    assert "x: access is refused (403 InvalidAccessKeyId)" in message.replace(message.split(":")[1], "//x")
    message, _ = refused(bucket, proxy, probe, when=lambda r: r.method in ("DELETE", "POST"))
    assert "a file can be created and not deleted: access is refused" in message


@pytest.mark.parametrize("answer", [Changed(CREATING), Refusal(501, "NotImplemented"), Refusal(400, "InvalidArgument")])
def test_a_probe_refuses_a_store_without_put_if_absent(bucket, proxy, answer):
    proxy.rule = lambda request: answer if is_creating(request) else None
    with pytest.raises(StoreError, match=r"does not honour put-if-absent \(If-None-Match: \*\), so two runs could"):
        Store(bucket.place()).probe()


def test_a_probe_names_a_store_that_is_full(bucket, proxy, monkeypatch):
    monkeypatch.setenv(retrying.TIMEOUT_VARIABLE, "0.2")
    message, _ = refused(bucket, proxy, Store(bucket.place()).probe, status=507, code="InsufficientStorage")
    assert "the store is full (507 InsufficientStorage); make room, or raise the quota" in message


def test_a_probe_without_credentials_says_where_they_belong(bucket, proxy, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.endpoint)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    message, _ = refused(bucket, proxy, Store(bucket.place()).probe, status=404)
    assert "no credentials were found" in message
    assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY for s3" in message


def test_credentials_of_a_profile_are_used(bucket, proxy, monkeypatch, tmp_path):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    lines = f"[night]\naws_access_key_id = {bucket.access_key}\naws_secret_access_key = {bucket.secret_key}\n"
    (tmp_path / "credentials").write_text(lines)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "night")
    Store(bucket.place()).probe()
    assert f"Credential={bucket.access_key}/" in proxy.seen[0][0].headers["authorization"]


def test_a_probe_of_nothing_names_the_endpoint(monkeypatch):
    monkeypatch.setenv(retrying.TIMEOUT_VARIABLE, "0.1")
    for name, value in Bucket("http://127.0.0.1:9", "rsft").environment().items():
        monkeypatch.setenv(name, value)
    with pytest.raises(
        StoreError, match=r"no answer from the store \(connection refused\).*asked http://127.0.0.1:9, by"
    ):
        Store("s3://rsft/x").probe()


def test_a_full_disk_is_named(tmp_path):
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(tmp_path)], capture_output=True)
    if mounted.returncode:
        pytest.skip("no right to mount a small disk")
    try:
        with pytest.raises(OSError, match="No space"):
            (tmp_path / "filler").write_bytes(bytes(1 << 20))
        with pytest.raises(StoreError, match=r"the disk is full \(No space left on device\); make room"):
            Store(str(tmp_path)).probe()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_rights_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(
        StoreError, match=r"cannot be written to \(Permission denied\); expected a folder that this user"
    ):
        Store(str(tmp_path / "runs")).probe()


# Secrets


@pytest.mark.parametrize(
    "uri", [f"s3://key:{SECRET_KEY}@rsft/runs", f"gs://{SECRET_KEY}@rsft/runs", f"abfs://c:{SECRET_KEY}@a.dfs.core.x/r"]
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri):
    for call in (Store, open_uri, localise):
        with pytest.raises(ConfigError, match=r"credentials stood in this URI .* expected them in the env") as e:
            call(uri)
        assert SECRET_KEY not in str(e.value)


def test_an_endpoint_in_a_uri_is_refused_with_its_place():
    with pytest.raises(ConfigError, match=r"^s3://rsft/runs: a storage URI has no options; .*AWS_ENDPOINT_URL"):
        Store("s3://rsft/runs?endpoint_override=x")

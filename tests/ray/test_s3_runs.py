"""Whole runs on an S3 server that fails one request in fourteen, their drivers killed: nothing lost, nothing doubled.

And nothing secret in what such a run leaves behind or says.
"""

import os
import random
import shutil
import signal
import tempfile
from collections import Counter
from pathlib import Path

import pytest
from faults import at_rate, faulty
from running import NUM_PROMPTS, begin, finish, wait_for, write_config
from s3 import bucket_of_server

from rsft_cluster.review.audit.verify import verify_run
from rsft_cluster.runs.summary import summary
from rsft_cluster.store import Store

pytestmark = pytest.mark.ray

RATE, SEED = 0.07, 20
GENERATOR = {"use": "scripted", "params": {"accuracy": 0.6, "delay_s": 0.1}}
CONSTRAINTS = ["finished", "answer_matches"]


@pytest.fixture(scope="module")
def bucket():
    with bucket_of_server() as found:
        yield found


@pytest.fixture
def scratch():
    """A folder for Ray's files and ours; its name is short, as sockets lie in it."""
    folder = Path(tempfile.mkdtemp(prefix="s3r"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def configured(folder, name, **changes):
    return write_config(
        folder, name, sampling__generator=GENERATOR, sampling__unit_size=2, scoring__constraints=CONSTRAINTS, **changes
    )


def outcome(store):
    """What must not depend on where a run lies and what befell it."""
    found = summary(store, 1)
    manifest, training, evaluation, decision = found.manifest, found.training, found.evaluation, found.decision
    assert manifest
    assert training
    assert evaluation
    assert decision
    rows = {
        part: sorted(
            row["candidate_id"] for ref in getattr(manifest, part) for row in store.read_table(ref).to_pylist()
        )
        for part in ("candidates", "accepted")
    }
    return {
        **rows, "digest": manifest.accepted_digest, "content": manifest.content, "totals": manifest.totals,
        "model": training.policy.digest, "evaluation": evaluation.pass_at_1, "promoted": decision.promoted,
        "log": [Path(p).name for p in store.files("promotions")],
    }  # fmt: skip


def keys(bucket, prefix):
    pages = bucket.client().get_paginator("list_objects_v2").paginate(Bucket=bucket.name, Prefix=prefix)
    return [found["Key"] for page in pages for found in page.get("Contents", ())]


def leaks(folder, secret):
    """Files that hold the secret."""
    return [
        path for path in folder.rglob("*") if path.is_file() and not path.is_symlink() and secret in path.read_bytes()
    ]


@pytest.mark.timeout(1200)
def test_a_run_on_a_failing_store_with_its_driver_killed_is_the_undisturbed_one(bucket, tmp_path, scratch, monkeypatch):
    undisturbed = configured(tmp_path, "here")
    finish(begin(undisturbed))
    place = bucket.place()
    config = configured(tmp_path, "there", store=place)
    run = f"{place.removeprefix(bucket.uri).strip('/')}/there"
    generator, said = random.Random(SEED), []

    def committed(below, number):
        return lambda: len(keys(bucket, f"{run}/{below}/commits/")) >= number

    moments = {
        "sampling": committed("rounds/0001", generator.randrange(2, 20)),
        "later": lambda: (
            any("checkpoint" in key for key in keys(bucket, f"{run}/rounds/0001/training/"))
            or keys(bucket, f"{run}/rounds/0001/evaluation/")
        ),
    }
    with faulty(bucket.endpoint, at_rate(RATE, SEED)) as proxy:
        environment = {
            **bucket.environment(proxy.endpoint), "TMPDIR": str(scratch), "RAY_TMPDIR": str(scratch),
        }  # fmt: skip
        for condition in moments.values():
            process = begin(config, environment)
            wait_for(process, condition, every_s=0.1)
            os.kill(process.pid, signal.SIGKILL)
            said.extend(process.communicate())
        last = begin(config, environment)
        rounds = finish(last)
        faults = proxy.faults()
        requests = len(proxy.seen)
    for name, value in bucket.environment().items():
        monkeypatch.setenv(name, value)
    store = Store(f"{place}/there")
    there, here = outcome(store), outcome(Store(str(tmp_path / "runs" / "here")))
    assert there == here
    assert len(there["candidates"]) == len(set(there["candidates"])) == 4 * NUM_PROMPTS
    assert rounds[1]["num_prompts"] == NUM_PROMPTS
    assert verify_run(store).holds
    print(f"{len(faults)} faults in {requests} requests: {Counter(map(str, faults))}")
    assert len(faults) > 0.04 * requests
    assert set(faults) >= {"503", "cut", "lost", "failed after", "half"}

    secret = bucket.secret_key
    for key in keys(bucket, run):
        payload = bucket.client().get_object(Bucket=bucket.name, Key=key)["Body"].read()
        assert secret.encode() not in payload, key
    assert len(list(scratch.rglob("*.log"))) > 3
    assert not leaks(scratch, secret.encode())
    assert secret not in "".join(said) + str(rounds)

"""The lease: one writer at a time, whatever dies."""

import json
import multiprocessing
import os
import signal

import pytest

from rsft_cluster.errors import AlreadyRunningError
from rsft_cluster.review.records import Settings
from rsft_cluster.runs.lease import TTL_S, hold, holder
from rsft_cluster.store import Store


@pytest.fixture
def store(tmp_path):
    return Store(str(tmp_path))


def test_a_second_holder_is_refused_and_told_who_holds(store):
    with hold(store):
        with pytest.raises(AlreadyRunningError, match=f"already running as process {os.getpid()}"), hold(store):
            pass
        assert f"process {os.getpid()}" in (holder(store) or "")
    assert holder(store) is None


def test_a_released_lease_is_taken_with_the_next_epoch(store):
    with hold(store) as first:
        pass
    with hold(store) as second:
        assert second.epoch == first.epoch + 1
        assert second.session != first.session


def _hold_and_hang(uri, ready):
    with hold(Store(uri)):
        ready.set()
        signal.pause()


def test_the_lease_of_a_killed_process_is_free_at_once(store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_hold_and_hang, args=(store.uri, ready))
    process.start()
    assert ready.wait(60)
    with pytest.raises(AlreadyRunningError), hold(store):
        pass
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with hold(store) as lease:
        assert lease.epoch == 2


@pytest.mark.parametrize(("age", "is_refused"), [(TTL_S - 10, True), (TTL_S + 10, False)])
def test_a_holder_on_another_host_lives_by_its_renewals(store, age, is_refused):
    import time

    found = {"nonce": "x", "host": "elsewhere", "boot": "b", "pid": 1, "started": "1", "released": False}
    store.create("lease/000001.json", json.dumps(found | {"renewed": time.time() - age}).encode())
    if is_refused:
        with pytest.raises(AlreadyRunningError, match=r"on elsewhere.*its lease ends in"), hold(store):
            pass
    else:
        with hold(store) as lease:
            assert lease.epoch == 2


def test_a_holder_that_was_taken_over_may_publish_nothing_more(store):
    with hold(store) as lease:
        store.create("lease/000002.json", store.read("lease/000001.json"))
        with pytest.raises(AlreadyRunningError, match="epoch 2 holds it"):
            lease.publish("record.json", Settings(settings={}))
        assert not store.exists("record.json")


def test_a_record_is_published_once(store):
    with hold(store) as lease:
        assert lease.publish("record.json", Settings(settings={"a": 1}))
        assert not lease.publish("record.json", Settings(settings={"a": 2}))
    assert store.find_record("record.json", Settings) == Settings(settings={"a": 1})


def _race(uri, barrier, queue):
    barrier.wait()
    try:
        with hold(Store(uri)):
            queue.put("held")
            barrier.wait()
    except AlreadyRunningError:
        queue.put("refused")
        barrier.wait()


def test_of_many_starters_one_holds(store):
    context = multiprocessing.get_context("spawn")
    barrier, queue = context.Barrier(8), context.Queue()
    workers = [context.Process(target=_race, args=(store.uri, barrier, queue)) for _ in range(8)]
    for worker in workers:
        worker.start()
    outcomes = [queue.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert sorted(outcomes) == ["held"] + ["refused"] * 7

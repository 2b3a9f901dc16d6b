"""What Prometheus finds on a node's metrics port while a run goes on and when it is over."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import psutil
import pytest
from running import DEADLINE_S, NUM_PROMPTS, begin, write_config

from rsft_cluster.metrics.meter import METRICS

pytestmark = pytest.mark.ray

FLAKY = '''
import os
from rsft_cluster.generators.scripted import ScriptedGenerator

class Flaky(ScriptedGenerator):
    """Fails once, at the last prompt."""

    def __init__(self, policy, *, mark, **params):
        super().__init__(policy, **params)
        self._mark = mark

    def generate(self, prompts, decoding, keys):
        if any(p.messages[-1].content == "47 + 1 =" for p in prompts) and os.path.exists(self._mark):
            os.unlink(self._mark)
            raise RuntimeError("once")
        return super().generate(prompts, decoding, keys)

def broken(candidate):
    return 1 / 0
'''
LINE = re.compile(r"^ray_(rsft_\w+)\{(.*)\} (\S+)$")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    """Address and metrics port of a cluster of one node, which reports every second."""
    port, metrics_port = free_port(), free_port()
    folder = Path(f"/tmp/rsft-{os.getpid()}")  # sockets below it need a short name
    environment = os.environ | {
        "RAY_metrics_report_interval_ms": "1000", "RAY_AUTH_MODE": "disabled",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }  # fmt: skip
    process = subprocess.Popen(
        [Path(sys.executable).with_name("ray"), "start", "--head", "--block", f"--port={port}", "--num-cpus=4",
         f"--metrics-export-port={metrics_port}", "--include-dashboard=false", "--disable-usage-stats",
         "--node-ip-address=127.0.0.1", f"--dashboard-agent-listen-port={free_port()}", f"--temp-dir={folder}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 180
    while not scraped(metrics_port):
        assert time.monotonic() < deadline, "the metrics port never opened"
        assert process.poll() is None, "the head died"
        time.sleep(0.5)
    yield f"127.0.0.1:{port}", metrics_port
    for child in psutil.Process(process.pid).children(recursive=True):
        child.kill()
    process.kill()
    process.wait()


def scraped(port: int) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            return answer.read().decode()
    except OSError:
        return ""


def series(text: str) -> dict[tuple[str, ...], float]:
    """Return what stands of ours, by name and by our own labels, the processes added up."""
    found: dict[tuple[str, ...], float] = {}
    for line in text.splitlines():
        if match := LINE.match(line):
            labels = dict(re.findall(r'(\w+)="([^"]*)"', match[2]))
            (metric,) = (m for m in METRICS if m.name == match[1])
            key = (metric.name, *(labels[name] for name in metric.labels))
            found[key] = found.get(key, 0) + float(match[3])
    return found


def test_every_metric_is_found_on_the_port_of_the_node(head, tmp_path, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    address, port = head
    (tmp_path / "mine.py").write_text(FLAKY)
    (tmp_path / "mark").touch()
    generator = {"use": "mine:Flaky", "params": {"mark": str(tmp_path / "mark"), "delay_s": 0.05}}
    constraints = ["finished", "answer_matches", {"use": "mine:broken", "required": False, "weight": 0}]
    config = write_config(
        tmp_path, "measured", cluster={"address": address}, sampling__workers=1, sampling__generator=generator,
        scoring__constraints=constraints, scoring__max_error_rate=1.0, training__workers=1,
        promotion={"rule": "always"},
    )  # fmt: skip
    seen: dict[tuple[str, ...], float] = {}
    process = begin(config)
    deadline = time.monotonic() + DEADLINE_S
    while process.poll() is None and time.monotonic() < deadline:
        seen |= series(scraped(port))
        time.sleep(0.5)
    assert process.wait(timeout=1) == 0, process.communicate()[1]
    for _ in range(6):
        seen |= series(scraped(port))
        time.sleep(0.5)
    assert {key[0] for key in seen} == {metric.name for metric in METRICS}
    num_candidates = 4 * NUM_PROMPTS
    assert seen["rsft_candidates_total", "measured", "sample", "committed"] == num_candidates
    assert seen["rsft_candidates_total", "measured", "sample", "generated"] == num_candidates
    assert seen["rsft_tokens_total", "measured", "sample", "committed"] > num_candidates
    assert seen["rsft_verdict_errors_total", "measured", "sample", "broken"] == num_candidates
    assert seen["rsft_failed_units_total", "measured", "sample"] == 1
    assert 0 < seen["rsft_pass_ratio", "measured", "sample"] <= seen["rsft_solve_ratio", "measured", "sample"]
    assert seen["rsft_promoted", "measured"] == 1
    assert abs(seen["rsft_last_promotion_timestamp_seconds", "measured"] - time.time()) < DEADLINE_S
    assert seen["rsft_training_step", "measured"] == 12


SETS_ONCE = """
import sys, time, ray
from rsft_cluster.metrics.meter import PASS_RATIO
from rsft_cluster.metrics.exported import RayMeter
ray.init(sys.argv[1], log_to_driver=False)
RayMeter("kept", "sample").put(PASS_RATIO, 0.5)
time.sleep(60)
"""


def test_a_gauge_that_is_set_once_stays(head, monkeypatch):
    """Ray forgets a gauge after two of its reports, which are a second apart here."""
    address, port = head
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_metrics_report_interval_ms", "1000")
    process = subprocess.Popen([sys.executable, "-c", SETS_ONCE, address])
    times: list[float] = []
    while process.poll() is None:
        if series(scraped(port)).get(("rsft_pass_ratio", "kept", "sample")) == 0.5:
            times.append(time.monotonic())
            if times[-1] - times[0] > 20:
                break
        time.sleep(0.5)
    process.kill()
    process.wait()
    assert times
    assert times[-1] - times[0] > 20

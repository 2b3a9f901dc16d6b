"""Metrics: what the dashboard asks for is what there is, Prometheus takes both files, and labels stay few."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml
from collecting import collection

from rsft_cluster.metrics.meter import METRICS, Meter

DEPLOY = Path(__file__).resolve().parent.parent / "deploy"
DASHBOARD, PROMETHEUS = DEPLOY / "grafana" / "rsft.json", DEPLOY / "prometheus" / "prometheus.yml"
PANELS = json.loads(DASHBOARD.read_text())["panels"] if DASHBOARD.exists() else []
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
INTERVALS = {"$__rate_interval": "1m", "$run": ".*", "$stage": ".*"}

pytestmark = pytest.mark.skipif(not PANELS, reason="deploy/ is not beside the tests")


class Noting(Meter):
    """Writes down what it is told."""

    def __init__(self):
        self.counts, self.gauges = {}, {}

    def add(self, metric, value, **labels):
        key = (metric.name, *labels.values())
        self.counts[key] = self.counts.get(key, 0) + value
        assert {"run", "stage", *labels} == set(metric.labels)

    def put(self, metric, value, **labels):
        self.gauges[(metric.name, *labels.values())] = value
        assert {"run", "stage", *labels} == set(metric.labels)


def test_the_dashboard_asks_for_every_metric_there_is_and_for_no_other():
    asked = {name for text in EXPRESSIONS for name in re.findall(r"ray_(rsft_\w+)", text)}
    assert asked == {metric.name for metric in METRICS}


def test_names_and_labels_are_those_of_good_manners():
    for metric in METRICS:
        assert re.fullmatch(r"rsft_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter")
        assert set(metric.labels) <= {"run", "stage", "state", "step", "constraint"}
    assert len({metric.name for metric in METRICS}) == len(METRICS)


def test_expressions_use_labels_that_the_metrics_have():
    labels = {metric.name: set(metric.labels) for metric in METRICS}
    for text in EXPRESSIONS:
        for name, selector in re.findall(r"ray_(rsft_\w+)\{([^}]*)\}", text):
            assert set(re.findall(r"(\w+)=", selector)) <= labels[name], text
        for grouped in re.findall(r"by \(([^)]*)\)", text):
            for name in re.findall(r"ray_(rsft_\w+)", text):
                assert set(re.split(r",\s*", grouped)) <= labels[name], text


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_prometheus_takes_its_config_and_every_expression(tmp_path):
    subprocess.run(["promtool", "check", "config", "--syntax-only", str(PROMETHEUS)], check=True)
    rules = []
    for i, text in enumerate(EXPRESSIONS):
        filled = re.sub(r"\$\w+", lambda found: INTERVALS[found[0]], text)
        rules.append({"record": f"rsft:{i}", "expr": filled})
    file = tmp_path / "rules.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_config_of_prometheus_reads_the_file_that_ray_writes():
    (job,) = yaml.safe_load(PROMETHEUS.read_text())["scrape_configs"]
    (found,) = job["file_sd_configs"]
    assert found["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]


def test_what_actors_say_is_what_they_did(tmp_path):
    made = collection(tmp_path, num_prompts=8, constraints=("finished", "collecting_constraints:broken"))
    meter = Noting()
    object.__setattr__(made.work, "meter", meter)
    rows = [made.do(unit) for unit in made.units()]
    tokens = sum(row["num_tokens"] for row in rows)
    assert meter.counts[("rsft_candidates_total", "generated")] == 32
    assert meter.counts[("rsft_candidates_total", "committed")] == 32
    assert meter.counts[("rsft_tokens_total", "generated")] == tokens > 0
    assert meter.counts[("rsft_tokens_total", "committed")] == tokens
    assert meter.counts[("rsft_verdicts_total",)] == 64
    assert meter.counts[("rsft_verdict_errors_total", "broken")] == 32
    assert 0 < meter.gauges[("rsft_sampling_busy_ratio",)] <= 1
    assert meter.gauges[("rsft_units_in_flight", "sample")] == 0
    assert meter.gauges[("rsft_units_in_flight", "score")] == 0

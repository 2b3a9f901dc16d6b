"""The meter that Ray exports: what a stage says stands on the metrics port of its process's node."""

import threading
import time
from dataclasses import dataclass

from ray.util.metrics import Counter, Gauge

from rsft_cluster.metrics.meter import METRICS, Meter, Metric

KEEP_INTERVAL_S = 5.0
"""Half of the interval of Ray's reports, as Ray has it unless told otherwise."""


@dataclass(frozen=True)
class RayMeter(Meter):
    """Speaks for one run and stage. Picklable: each process that uses it registers what it says."""

    run: str
    stage: str = ""

    def add(self, metric: Metric, value: float, **labels: str) -> None:
        """Count so much more."""
        found = _registered(metric)
        assert isinstance(found, Counter)
        if value > 0:
            found.inc(value, tags=self._tags(metric, labels))

    def put(self, metric: Metric, value: float, **labels: str) -> None:
        """Set a gauge, which keeps its value as long as the process lives."""
        found, tags = _registered(metric), self._tags(metric, labels)
        assert isinstance(found, Gauge)
        found.set(value, tags=tags)
        _keeper.keep(found, value, tags)

    def _tags(self, metric: Metric, labels: dict[str, str]) -> dict[str, str]:
        known = {"run": self.run, "stage": self.stage, **labels}
        return {name: known[name] for name in metric.labels}


class _Keeper:
    """Sets gauges again and again: Ray forgets one that has not been set for two of its reports."""

    def __init__(self) -> None:
        self._values: dict[tuple[str, ...], tuple[Gauge, float, dict[str, str]]] = {}
        self._thread: threading.Thread | None = None

    def keep(self, gauge: Gauge, value: float, tags: dict[str, str]) -> None:
        self._values[(gauge.info["name"], *tags.values())] = (gauge, value, tags)
        if self._thread is None:
            self._thread = threading.Thread(target=self._again, daemon=True, name="metrics")
            self._thread.start()

    def _again(self) -> None:
        while True:
            time.sleep(KEEP_INTERVAL_S)
            for gauge, value, tags in list(self._values.values()):
                gauge.set(value, tags=tags)


_keeper = _Keeper()
_KINDS = {"counter": Counter, "gauge": Gauge}
_of_this_process: dict[str, Counter | Gauge] = {}


def _registered(metric: Metric) -> Counter | Gauge:
    """Return Ray's metric, made once a process: a second one of its name would replace it."""
    assert metric in METRICS
    if metric.name not in _of_this_process:
        kind = _KINDS[metric.kind]
        _of_this_process[metric.name] = kind(metric.name, description=metric.says, tag_keys=metric.labels)
    return _of_this_process[metric.name]

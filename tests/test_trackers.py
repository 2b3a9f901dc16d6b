"""A tracker is one class, named in the config; what fails in it costs the run nothing."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from rsft_cluster.config import RunConfig
from rsft_cluster.errors import PluginError
from rsft_cluster.progress import Listener, Progress
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.rounds.trackers import with_trackers


def tracked(*uses: str, **params: str) -> RunConfig:
    return RunConfig.model_validate(
        {
            "run": "tracked",
            "policy": {"model": "model"},
            "prompts": {"paths": ("prompts.jsonl",)},
            "scoring": {"constraints": ("finished",)},
            "evaluation": {"prompts": {"paths": ("held_out.jsonl",)}},
            "trackers": tuple({"use": use, "params": params} for use in uses),
        }
    )


def tell(listener: Listener) -> None:
    with listener.stage("round 1: train"):
        listener.training(1, 2, 0.5)
    listener.collecting(Progress(num_prompts=4, num_prompts_done=3))
    listener.decided(1, {"promoted": True})
    listener.note("done")


def heard(path: Path) -> list[list]:
    return [json.loads(line)[1:] for line in path.read_text().splitlines()]


ALL = [
    ["begin", "round 1: train"],
    ["training", [1, 2, 0.5]],
    ["end", "round 1: train"],
    ["collecting", 3],
    ["decided", [1, True]],
    ["note", "done"],
]


def test_a_tracker_hears_all_that_the_listener_hears(tmp_path):
    path = tmp_path / "heard.jsonl"
    tell(with_trackers(tracked("trackers:Written", path=str(path)), Reporter(quiet=True)))
    assert heard(path) == ALL


def test_a_tracker_that_raises_is_named_once_and_disturbs_nobody(tmp_path, capsys):
    path = tmp_path / "heard.jsonl"
    config = tracked("trackers:Unreachable", "trackers:Written", path=str(path))
    tell(with_trackers(config, Reporter(Console(width=200))))
    assert [event for event in heard(path) if event[0] != "note"] == ALL[:-1]
    shown = capsys.readouterr().out
    assert (
        shown.count("tracker trackers:Unreachable is left out from here on: ConnectionError: the server is away") == 1
    )


def test_what_the_run_raises_passes_through_a_tracked_stage(tmp_path):
    listener = with_trackers(tracked("trackers:Written", path=str(tmp_path / "heard")), Reporter(quiet=True))
    with pytest.raises(ZeroDivisionError), listener.stage("round 1: train"):
        _ = 1 / 0


def test_without_trackers_the_listener_stays_itself():
    reporter = Reporter(quiet=True)
    assert with_trackers(tracked(), reporter) is reporter


def test_a_misspelt_parameter_of_a_tracker_is_refused():
    config = tracked("trackers:Written", file="x")
    with pytest.raises(PluginError, match="missing a required argument: 'path'"):
        with_trackers(config, Reporter(quiet=True))

"""The configs that come with the project: each loads, and all it names is there."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from rsft_cluster.checks.check import check_plugins
from rsft_cluster.config import json_schema
from rsft_cluster.config.file import load_config

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "jobs" / "configs").glob("*.yaml"))


def test_there_are_configs():
    assert CONFIGS


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_loads_and_its_plug_ins_bind(path):
    config = load_config(path)
    assert config.run == path.stem
    check_plugins(config)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_an_editor_finds_no_mistake_in_it(path):
    jsonschema.validate(yaml.safe_load(path.read_text()), json.loads(json_schema()))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_it_begins_by_saying_what_it_is_for(path):
    assert path.read_text().startswith("# ")


STAGE = Path(__file__).resolve().parent.parent / "jobs" / "stage.py"


def stage(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(STAGE), *arguments], capture_output=True, text=True, check=False)


def test_the_script_of_a_stage_does_what_the_command_of_that_name_does() -> None:
    done = stage("sample", "no-such.yaml")
    assert (done.returncode, done.stderr) == (2, "error: no-such.yaml: cannot be read: No such file or directory\n")


def test_the_script_of_a_stage_does_stages_alone() -> None:
    done = stage("rollback", "runs/sums")
    assert (done.returncode, done.stderr) == (
        1, "jobs/stage.py: rollback: expected one of run, sample, train, evaluate\n",
    )  # fmt: skip

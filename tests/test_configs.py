"""The configs that come with the project: each loads, and all it names is there."""

import json
import subprocess
import sys
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


STAGE = CONFIGS[0].parent.parent / "stage.py"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "message"),
    [
        (["sample", "no-such.yaml"], 2, "error: no-such.yaml: there is no such config file\n"),
        (["rollback", "runs/sums"], 1, "expected python jobs/stage.py run|sample|train|evaluate CONFIG [OPTIONS]\n"),
        ([], 1, "expected python jobs/stage.py run|sample|train|evaluate CONFIG [OPTIONS]\n"),
    ],
)
def test_the_script_of_stages_is_the_command_and_does_nothing_else(arguments, exit_code, message):
    done = subprocess.run([sys.executable, STAGE, *arguments], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (exit_code, message)

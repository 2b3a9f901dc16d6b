"""The entrance of the package: its public names exist, are described, and cost nothing before they are used."""

import ast
import inspect
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import rsft_cluster

PUBLIC = [
    "Candidate",
    "Case",
    "Chosen",
    "Completion",
    "ConfigError",
    "Decision",
    "Decoding",
    "Generator",
    "Listener",
    "Message",
    "PluginError",
    "Prompt",
    "Refusal",
    "Reporter",
    "RsftError",
    "RunConfig",
    "StageError",
    "StoreError",
    "Verdict",
    "__version__",
    "check",
    "load_config",
    "rule",
    "run",
]


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_public_names_are_these_and_no_others():
    assert sorted(rsft_cluster.__all__) == sorted(PUBLIC) == sorted([*rsft_cluster._HOMES, "__version__"])
    assert set(PUBLIC) <= set(dir(rsft_cluster))


@pytest.mark.parametrize("name", sorted(set(PUBLIC) - {"__version__"}))
def test_a_public_name_is_there_and_says_what_it_is(name):
    assert inspect.getdoc(getattr(rsft_cluster, name))


def test_type_checkers_see_the_names_that_are_there():
    tree = ast.parse(Path(rsft_cluster.__file__).read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {f"{n.module}:{a.name}": a.asname for n in block.body if isinstance(n, ast.ImportFrom) for a in n.names}
    homes = {
        f"rsft_cluster.{home}" if ":" in home else f"rsft_cluster.{home}:{name}": name
        for name, home in rsft_cluster._HOMES.items()
    }
    assert seen == homes


def test_a_name_that_is_none_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'sample_everything'"):
        _ = rsft_cluster.sample_everything


def test_importing_the_package_imports_nothing_else_of_it():
    code = "import sys, rsft_cluster; print([m for m in sys.modules if m.startswith('rsft_cluster.')])"
    assert python(code).strip() == "[]"


def test_constraints_and_rules_are_named_without_an_engine():
    names = "Candidate, Verdict, Case, rule, load_config, RunConfig, check, Generator, Completion, Reporter"
    engines = "('ray', 'torch', 'transformers', 'deepspeed')"
    code = f"import sys; from rsft_cluster import {names}; print([m for m in {engines} if m in sys.modules])"
    assert python(code).strip() == "[]"


def test_the_version_is_that_of_the_distribution():
    assert rsft_cluster.__version__ == version("rsft-cluster")


def test_every_room_stands_on_the_map():
    package = Path(rsft_cluster.__file__).parent
    rooms = {p.stem for p in package.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    text = rsft_cluster.__doc__ or ""
    listed = {word.strip(",()") for line in text.splitlines() if line.startswith("    ") for word in line.split()}
    assert rooms - {"__init__", "__main__"} <= listed
    assert len(rooms - {"__init__", "__main__"}) <= 30

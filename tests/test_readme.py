"""The README's examples work as written, and its figures are those that the code prints."""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from rsft_cluster.acceptance.decide import bind_rule
from rsft_cluster.config import AcceptanceConfig, Plugin
from rsft_cluster.config.file import load_config
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.plugins import known
from rsft_cluster.scoring.judge import Judge
from rsft_cluster.testing import check_constraint

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
WALK = (ROOT / "rsft_cluster" / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def test_the_constraint_shown_is_one():
    (code,) = blocks("python")
    names: dict = {}
    exec(code, names)  # the README's own code is what is tested

    def no_promises(candidate):
        return names["no_promises"](candidate, words=["guarantee"])

    check_constraint(no_promises, passing=[Candidate("We will look into it.")], failing=[Candidate("We guarantee it.")])
    assert no_promises(Candidate("We guarantee it.")).reason == "promises: guarantee"


def test_the_config_shown_loads_and_binds(tmp_path):
    (text,) = blocks("yaml")
    path = tmp_path / "support.yaml"
    path.write_text(text, encoding="utf-8")
    config = load_config(path)
    Judge(config.scoring.constraints)
    assert bind_rule(config.acceptance).params == {"beta": 0.2}
    assert yaml.safe_load(text)["training"]["learning_rate"] == "1e-5"  # what PyYAML alone would make of it
    assert config.training.learning_rate == 1e-5


PARAMS = {
    "threshold": {"min_score": 0.5}, "best_of_n": {"n": 2}, "boltzmann": {"beta": 0.2}, "top_share": {"share": 0.5},
    "boltzmann_tuned": {"max_kl": 0.1}, "boltzmann_supremum": {"beta": 0.2}, "off_policy": {"log_bound": 1.0},
    "rso_compat": {"beta": 0.5},
}  # fmt: skip
UNNAMED = {"distinct"}
"""Parameters that the table leaves to the docstring."""


@pytest.mark.parametrize("name", sorted(known("acceptance_rules")))
def test_every_acceptance_rule_is_in_the_table(name):
    assert f"| `{name}`" in README
    function = bind_rule(AcceptanceConfig(rule=Plugin(use=name, params=PARAMS.get(name, {})))).load()
    (line,) = [line for line in README.splitlines() if line.startswith(f"| `{name}`")]
    shown = re.search(r"\((.*?)\)", line.split("|")[1])
    named = set(re.findall(r"[a-z_]+", shown[1])) if shown else set()
    assert named - {"or"} == set(inspect.signature(function).parameters) - {"judged"} - UNNAMED


def test_every_make_target_named_exists():
    makefile = (Path(__file__).resolve().parent.parent / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"make ([a-z-]+)", README)) - {"and"}:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


def test_a_runnable_line_stands_on_the_first_screen():
    first = README.splitlines()[:20]
    assert any(line.strip().startswith("make demo") for line in first)
    assert any(line.strip().startswith("make test") for line in first)


def files_named(text):
    return set(re.findall(r"`([\w/]+\.py)`?", text))


def test_the_files_that_the_walk_names_are_there():
    named = files_named(WALK)
    assert named
    assert not [name for name in sorted(named) if not (ROOT / "rsft_cluster" / name).exists()]


def test_a_prompt_goes_from_its_file_to_an_accepted_row_through_few_files():
    walk = WALK[WALK.index("**Start.**") : WALK.index("That is the accepted row")]
    assert 10 < len(files_named(walk)) <= 25

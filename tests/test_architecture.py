"""The shape of the code: dependencies one way, deciding pure, the command line quick, files and functions short."""

import ast
import os
import subprocess
import sys
import tokenize
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "rsft_cluster"
ENGINES = ("ray", "torch", "transformers", "deepspeed")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
MODULES = sorted(PACKAGE.rglob("*.py"))
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 80
UNWANTED = ("util", "helper", "manager", "handler", "data", "info", "misc", "common")

pytestmark = pytest.mark.skipif(not MODULES, reason="the package's source is not beside the tests")


def python(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout


def pure_modules() -> list[str]:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    return next(c for c in contracts if c["name"] == "Deciding is pure")["source_modules"]


def test_the_import_contracts_hold():
    code = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(config_filename='pyproject.toml'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("module", pure_modules())
def test_deciding_imports_no_engine(module):
    loaded = python(f"import sys, {module}; print([m for m in {ENGINES} if m in sys.modules])")
    assert loaded.strip() == "[]"


def test_every_plug_in_that_is_built_in_binds_without_an_engine():
    code = (
        "import sys; from rsft_cluster.plugins import known, _import\n"
        "for family in ('prompt_sources', 'generators', 'constraints', 'acceptance_rules', 'promotion_rules'):\n"
        "    assert [_import(target, name) for name, target in known(family).items()], family\n"
        f"print([m for m in {ENGINES} if m in sys.modules])"
    )
    assert python(code).strip() == "[]"


def test_help_takes_less_than_a_second_and_imports_no_engine():
    times = []
    for _ in range(3):
        began = os.times()
        subprocess.run([sys.executable, "-m", "rsft_cluster", "--help"], capture_output=True, check=True, cwd=ROOT)
        ended = os.times()  # of the processor: whatever else the machine does, it counts the command alone
        times.append(ended.children_user + ended.children_system - began.children_user - began.children_system)
    assert min(times) < 1.0
    code = f"import sys, rsft_cluster.cli.app; print([m for m in {ENGINES} if m in sys.modules])"
    assert python(code).strip() == "[]"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_and_is_short(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree) or not text.strip(), "no docstring"
    assert len(text.splitlines()) <= MAX_FILE_LINES
    long = [
        f"{node.name} ({node.end_lineno - node.lineno + 1} lines)"
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (node.end_lineno or 0) - node.lineno >= MAX_FUNCTION_LINES
    ]
    assert not long
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    assert not [part for part in parts for word in part.split("_") if word.rstrip("s") in UNWANTED or word in UNWANTED]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_comments_are_ascii(path):
    with path.open("rb") as file:
        comments = [token.string for token in tokenize.tokenize(file.readline) if token.type == tokenize.COMMENT]
    assert not [comment for comment in comments if not comment.isascii()]


def test_no_module_is_dead():
    """What nothing imports is dead, unless users or machines reach it by its name."""
    entrances = str(PROJECT["project"]["entry-points"]) + str(PROJECT["project"]["scripts"])
    entrances += "rsft_cluster.testing rsft_cluster.__main__ rsft_cluster.demos.__main__"
    entrances += " rsft_cluster.scoring.isolation.fork_server rsft_cluster.scheduling.starter"
    imported = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module:
                imported |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
            elif isinstance(node, ast.Import):
                imported |= {name.name for name in node.names}
    names = {".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in MODULES}
    packages = {name.rpartition(".")[0] for name in names}
    assert not [name for name in sorted(names - imported - packages) if name not in entrances]

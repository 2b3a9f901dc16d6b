"""The shape of the code: dependencies one way, deciding pure, the command line quick, files and functions short."""

import ast
import os
import re
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
FOLDERS = (
    "accepted", "attempts", "candidates", "commits", "controls", "decisions", "evaluation", "judged", "lease", "model",
    "nights", "pilot", "plan", "promotions", "prompts", "rounds", "scores", "scorings", "seen", "splits", "starts",
    "training", "waves",
)  # fmt: skip
IN_FOLDER = re.compile(rf"^[^\s<>]*\b({'|'.join(FOLDERS)})/|/({'|'.join(FOLDERS)})$")
FILE = re.compile(r"^[^\s<>]*[^\s<>.]\.(json|jsonl|parquet)$")
STORE_METHODS = (
    "exists", "files", "folders", "size", "read_record", "find_record", "create", "delete", "delete_folder", "uri_of",
    "write_table", "write_batches", "read_batches", "first_rows", "row_groups", "read_row_group", "publish", "keep",
)  # fmt: skip
FILES_ELSEWHERE = {
    "checks/model": "models",
    "cluster/jobs": "the working folder of a job",
    "constraints/": "models, caches and sandboxes",
    "demos/": "the folder of a demo",
    "generators/": "models",
    "policies/": "models",
    "scheduling/": "what is mounted into a pod",
    "training/": "checkpoints, and the folder that a training job is given for itself",
}
"""Modules that name files which do not lie in a run's store, or where in it they cannot know."""
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


def spelled_paths(code: str, *, files: bool = True) -> list[str]:
    """Return the literals of a module that are paths in a run's store, or are given to a store as one."""
    nodes = list(ast.walk(ast.parse(code)))
    literals = [text for node in nodes for text in _texts(node)]
    given = [text for node in nodes for argument in _given(node) for text in _texts(argument)]
    named = [text for text in literals if IN_FOLDER.search(text) or (files and FILE.match(text))]
    return named + [text for text in given if re.fullmatch(r"[\w{}./-]+", text)]


def _texts(node: ast.AST) -> list[str]:
    """Return the text of a string literal; of an f-string, with {} for what is filled in."""
    if isinstance(node, ast.JoinedStr):
        return ["".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)]
    return [node.value] if isinstance(node, ast.Constant) and isinstance(node.value, str) else []


def _given(node: ast.AST) -> list[ast.expr]:
    """Return the first argument of a call of a method that takes a path; all those of `at`."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return []
    return node.args if node.func.attr == "at" else node.args[: node.func.attr in STORE_METHODS]


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_paths_of_a_run_are_spelled_in_its_layout_alone(path):
    name = str(path.relative_to(PACKAGE))
    if not name.startswith("store/"):
        files = not name.startswith(tuple(FILES_ELSEWHERE))
        assert not spelled_paths(path.read_text(encoding="utf-8"), files=files)


@pytest.mark.parametrize(
    "code",
    [
        'Folder(store, f"rounds/{number:04d}")',
        'folder.at("waves", name)',
        'store.folders("nights")',
        'store.create(f"{night}/starts", payload)',
        'PATH = "fingerprint.json"',
        'path = f"{unit.unit}.quarantine.json"',
        'wave, _, file = ref.path.rpartition("/candidates/")',
        'store.uri_of("model")',
    ],
)
def test_a_path_that_is_spelled_elsewhere_is_found(code):
    assert spelled_paths(code)


@pytest.mark.parametrize(
    "code",
    [
        'table.column("accepted")',
        'raise ConfigError(f"{uri}: no run here (no config.json); expected a folder like runs/my-run")',
        'path.suffix == ".jsonl"',
        "store.create(folder.manifest, payload)",
    ],
)
def test_what_is_no_path_may_be_spelled_anywhere(code):
    assert not spelled_paths(code)


def test_the_folders_that_are_looked_for_are_those_of_the_layout():
    tree = ast.parse((PACKAGE / "store" / "layout.py").read_text(encoding="utf-8"))
    below = [
        n.args for n in ast.walk(tree) if isinstance(n, ast.Call) and ast.unparse(n.func).endswith((".at", "_Below"))
    ]
    first = {text.split("/")[0] for arguments in below for text in _texts(arguments[0])}
    assert {text for text in first if re.fullmatch(r"[a-z]+", text)} <= set(FOLDERS)


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

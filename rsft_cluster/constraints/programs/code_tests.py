"""The tests of a program, read from their JSON: what `constraints.code` documents. Reads and never runs them."""

import ast
import builtins
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rsft_cluster.constraints.programs.sandbox.inside.tests_side import REACHED, RUN_METHOD

_KEYS = {"tests", "setup", "entry_point", "prelude"}


@dataclass(frozen=True, slots=True)
class Pair:
    """An input or a call, and its expected result."""

    given: str
    expected: object
    as_json: bool = False
    """True if a tuple counts as a list."""


@dataclass(frozen=True, slots=True)
class Step:
    """A piece of the tests: a test of its own, or what the later ones build on."""

    source: str
    label: str = ""
    """The test in its own words; empty where the step is none."""
    asserts: bool = False
    """True if it passes only by reaching an assertion."""


@dataclass(frozen=True, slots=True)
class Suite:
    """All tests of a prompt, of one kind."""

    inputs: tuple[Pair, ...] = ()
    calls: tuple[Pair, ...] = ()
    steps: tuple[Step, ...] = ()
    entry_point: str = ""
    modules: tuple[str, ...] = ()
    """Standard modules that the steps use without importing them."""
    prelude: str = ""
    names: frozenset[str] = frozenset()
    """What the tests use and do not define: one of them is the program's."""

    @property
    def num_tests(self) -> int:
        """Number of tests."""
        return len(self.inputs) + len(self.calls) + sum(bool(step.label) for step in self.steps)


@lru_cache(maxsize=1024)
def read(text: str) -> Suite:
    """Return the tests that a text holds; raises ValueError, with the reason, for anything else."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    whole: Mapping[str, Any] = value if isinstance(value, dict) else {"tests": value}
    if unknown := whole.keys() - _KEYS:
        raise ValueError(f"the tests have keys {sorted(unknown)}; known are {sorted(_KEYS)}")
    texts = {name: whole.get(name, "") for name in ("setup", "entry_point", "prelude")}
    if wrong := {name: value for name, value in texts.items() if not isinstance(value, str)}:
        raise ValueError(f"of the tests these are texts, and nothing else: {wrong}")
    tests: Any = whole.get("tests")
    tests = [tests] if isinstance(tests, str) else tests
    if not isinstance(tests, list) or not tests:
        raise ValueError(f"tests are a text or a list with at least one, not {tests!r}")
    if all(isinstance(test, str) for test in tests):
        steps, modules = _steps(texts["setup"], tests, texts["entry_point"])
        names = _names([*tests, texts["setup"]]) | {texts["entry_point"]}
        return Suite(
            steps=steps, entry_point=texts["entry_point"], modules=modules, prelude=texts["prelude"], names=names
        )
    if texts["setup"]:
        raise ValueError("setup has an effect with statements only; inputs and calls have a prelude")
    kind, keys = ("inputs", {"input", "output"}) if "input" in tests[0] else ("calls", {"call", "expect"})
    for number, test in enumerate(tests, 1):
        if not isinstance(test, dict) or test.keys() != keys:
            raise ValueError(f"test {number} has to have the keys {sorted(keys)}, and all tests the same: {test!r}")
    if kind == "inputs":
        return Suite(inputs=tuple(map(_input, tests)), prelude=texts["prelude"])
    calls = tuple(map(_call, tests))
    return Suite(calls=calls, prelude=texts["prelude"], names=_names([call.given for call in calls]))


def _names(texts: Sequence[str]) -> frozenset[str]:
    """Return the names that pieces of Python use, and neither define nor import, but builtin ones."""
    nodes = [node for text in texts for node in ast.walk(ast.parse(text))]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}
    defined = {node.id for node in nodes if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    defined |= {node.arg for node in nodes if isinstance(node, ast.arg)}
    defined |= {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    defined |= {
        (alias.asname or alias.name)
        for node in nodes
        for alias in getattr(node, "names", ())
        if hasattr(alias, "asname")
    }
    return frozenset(used - defined - set(dir(builtins)))


def _input(test: Mapping[str, Any]) -> Pair:
    if {type(text) for text in test.values()} != {str}:
        raise ValueError(f"input and output of a test are texts: {test!r}")
    return Pair(test["input"], test["output"])


def _call(test: Mapping[str, Any]) -> Pair:
    try:
        ast.parse(test["call"], mode="eval")
    except (SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"the call of a test is no Python expression: {test['call']!r}") from error
    if not isinstance(test["expect"], str):
        return Pair(test["call"], test["expect"], as_json=True)
    try:
        return Pair(test["call"], ast.literal_eval(test["expect"].strip()))
    except (SyntaxError, ValueError) as error:
        raise ValueError(
            f"expect of a test is the text of a Python literal, a string with its own quotes: {test['expect']!r}"
        ) from error


def _steps(setup: str, texts: Sequence[str], entry_point: str) -> tuple[tuple[Step, ...], tuple[str, ...]]:
    """Return setup and tests as steps in order, and the standard modules that they rely on."""
    before = _parsed(setup, "the setup")
    nodes = [node for number, text in enumerate(texts, 1) for node in _parsed(text, f"test {number}")]
    functions = {node.name: node for node in nodes if isinstance(node, ast.FunctionDef) and _asserts(node)}
    nodes = [node for node in nodes if ast.unparse(node) != "unittest.main()"]
    called = {_called(node) for node in nodes}
    steps = [Step(ast.unparse(node)) for node in before] + [_step(node, functions) for node in nodes]
    for node in nodes:
        steps += _methods(node)
    for name, node in functions.items():
        if name not in called and (name == "check" or name.startswith("test_")):
            call = "check(candidate)" if name == "check" else f"{name}()"
            steps.append(Step(call, call, asserts=_must_reach(node)))
    if not any(step.label for step in steps):
        raise ValueError("the tests hold no assertion, no test_... function and no check(candidate)")
    if not entry_point and any(step.label == "check(candidate)" for step in steps):
        raise ValueError("check(candidate) needs an entry_point, the name of the function that it checks")
    return tuple(steps), tuple(sorted(_modules([*before, *nodes]) - {entry_point}))


def _parsed(text: str, where: str) -> list[ast.stmt]:
    try:
        return ast.parse(text).body
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{where} is no Python: {error}: {text[:100]!r}") from error


def _step(node: ast.stmt, functions: Mapping[str, ast.FunctionDef]) -> Step:
    label = ast.unparse(node)
    function = functions.get(_called(node))
    is_definition = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
    is_test = function is not None or (_asserts(node) and not is_definition)
    must_reach = is_test and _must_reach(function or node)
    marked = ast.fix_missing_locations(_Marking().visit(ast.Module([node], [])))
    return Step(ast.unparse(marked), label if is_test else "", asserts=must_reach)


def _methods(node: ast.stmt) -> list[Step]:
    """Return a test for each test method of a class in the style of unittest or pytest."""
    if not isinstance(node, ast.ClassDef):
        return []
    is_case = node.name.startswith("Test") or any("TestCase" in ast.unparse(base) for base in node.bases)
    names = [inner.name for inner in node.body if isinstance(inner, ast.FunctionDef) and inner.name.startswith("test")]
    return [
        Step(f"{RUN_METHOD}({node.name}, {name!r})", f"{node.name}.{name}", asserts=True) for name in names if is_case
    ]


def _called(node: ast.stmt) -> str:
    """Return the name of the function that a statement is a call of, or nothing."""
    match node:
        case ast.Expr(value=ast.Call(func=ast.Name(id=name))):
            return name
    return ""


def _asserts(node: ast.AST) -> bool:
    return any(isinstance(inner, ast.Assert) or _expects_raise(inner) for inner in ast.walk(node))


def _expects_raise(node: ast.AST) -> bool:
    return isinstance(node, ast.With) and any(
        ast.unparse(item.context_expr).startswith(("pytest.raises(", "raises(")) for item in node.items
    )


def _must_reach(node: ast.AST) -> bool:
    """Return whether passing takes reaching an assertion; a test that expects an error may pass without."""
    return not any(isinstance(inner, ast.Try | ast.With) for inner in ast.walk(node))


class _Marking(ast.NodeTransformer):
    """Adds to each assertion a call that tells that it was reached."""

    def visit_Assert(self, node: ast.Assert) -> list[ast.stmt]:
        return [node, ast.Expr(ast.Call(ast.Name(REACHED, ast.Load()), [], []))]


def _modules(nodes: Sequence[ast.AST]) -> set[str]:
    """Return the standard modules that statements look into by their names (`math.isclose`)."""
    looked_into = {
        inner.value.id
        for node in nodes
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name)
    }
    return looked_into & sys.stdlib_module_names

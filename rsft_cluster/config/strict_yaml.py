"""A strict reader of YAML: text in, plain JSON-like values out, and the line of every key.

YAML 1.2's scalars: `1e-5` is a number, `2024-01-01`, `yes`, `010` and `12:30` are what they look like. Duplicate keys,
tags, keys that are no text, numbers that JSON cannot hold and documents that grow by aliases are refused, each with
line and column. Knows nothing of configs.
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import yaml

from rsft_cluster.errors import ConfigError

MAX_VALUES = 20_000
"""Values in a document, aliases counted each time; a few lines of nested aliases stand for billions."""
MAX_DEPTH = 40

Location = tuple[str | int, ...]
"""Keys and list positions from the document's root to a value."""

_CORE = "tag:yaml.org,2002:"
_COLLECTIONS = {_CORE + "seq", _CORE + "map"}


class _Loader(yaml.SafeLoader):
    """A SafeLoader with YAML 1.2's core schema instead of YAML 1.1's."""

    yaml_implicit_resolvers: dict[str, Any] = {}


for _kind, _pattern, _first in (
    ("null", r"^(~|null|Null|NULL|)$", [*"~nN", ""]),
    ("bool", r"^(true|True|TRUE|false|False|FALSE)$", [*"tTfF"]),
    ("int", r"^[-+]?([0-9][0-9_]*|0x[0-9a-fA-F]+)$", [*"-+0123456789"]),
    ("float", r"^[-+]?([0-9][0-9_]*\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?$", [*"-+.0123456789"]),
    ("merge", r"^<<$", ["<"]),
):
    _Loader.add_implicit_resolver(_CORE + _kind, re.compile(_pattern), _first)


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    try:
        return int(text, 16) if "x" in text else int(text)
    except ValueError as error:  # Python reads no integer of more than 4,300 digits
        raise _refusal(node, "this number is too long") from error


def _float(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    value = float(loader.construct_scalar(node).replace("_", ""))
    if not math.isfinite(value):
        raise _refusal(node, "this number is too large")
    return value


_Loader.add_constructor(_CORE + "int", _integer)
_Loader.add_constructor(_CORE + "float", _float)
_RESOLVER = _Loader("")


def read(text: str) -> tuple[Any, dict[Location, int]]:
    """Return the one document of a text, and the line on which each key or list entry stands.

    Raises ConfigError that begins with line and column; the caller knows the file's name.
    """
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None, {}
        lines = dict(_walk(root, (), [MAX_VALUES]))
        return loader.construct_document(root), lines
    except yaml.MarkedYAMLError as error:
        raise ConfigError(_explain(error)) from error
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        raise ConfigError(f"{line}: holds a control character ({error.character:#04x}); a config is text") from error
    except RecursionError as error:
        raise ConfigError(f"1: nested more than {MAX_DEPTH} deep; that is no config") from error


def _explain(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    where = f"{mark.line + 1}:{mark.column + 1}: " if mark else ""
    message = f"not valid YAML: {error.problem or error.context}"
    if error.problem and error.context:
        begun = f" that begins on line {error.context_mark.line + 1}" if error.context_mark else ""
        message += f" ({error.context}{begun})"
    return where + message


def _walk(node: yaml.Node, location: Location, left: list[int]) -> Iterator[tuple[Location, int]]:
    """Yield where each value stands; refuses what is no plain document. `left` counts down the values to come."""
    left[0] -= 1
    if left[0] < 0:
        raise _refusal(node, f"more than {MAX_VALUES} values, aliases counted; that is no config")
    if len(location) > MAX_DEPTH:
        raise _refusal(node, f"nested more than {MAX_DEPTH} deep, or within itself")
    if isinstance(node, yaml.ScalarNode):
        _check_scalar(node)
    elif node.tag not in _COLLECTIONS:
        raise _tagged(node)
    elif isinstance(node, yaml.MappingNode):
        yield from _walk_mapping(node, location, left)
    else:
        for index, child in enumerate(node.value):
            yield (*location, index), child.start_mark.line + 1
            yield from _walk(child, (*location, index), left)


def _walk_mapping(node: yaml.MappingNode, location: Location, left: list[int]) -> Iterator[tuple[Location, int]]:
    seen: dict[str, int] = {}
    for key, child in node.value:
        if key.tag == _CORE + "merge":
            yield from _walk(child, location, left)
            continue
        if key.tag != _CORE + "str":
            raise _refusal(key, "keys are text here; put quotes around this one if it is meant")
        line = key.start_mark.line + 1
        if key.value in seen:
            raise _refusal(key, f"key {key.value!r} stands twice, first on line {seen[key.value]}")
        seen[key.value] = line
        _check_scalar(key)
        yield (*location, key.value), line
        yield from _walk(child, (*location, key.value), left)


def _check_scalar(node: yaml.ScalarNode) -> None:
    meant = _RESOLVER.resolve(yaml.ScalarNode, node.value, (True, False)) if node.style is None else _CORE + "str"
    if node.tag != meant:
        raise _tagged(node)
    if "\x00" in node.value or any("\ud800" <= c <= "\udfff" for c in node.value):
        raise _refusal(node, "holds a character that is no text: NUL, or half of a surrogate pair")


def _tagged(node: yaml.Node) -> ConfigError:
    return _refusal(node, f"tags like {node.tag.replace(_CORE, '!!')} are not read here; quotes make a value text")


def _refusal(node: yaml.Node, problem: str) -> ConfigError:
    return ConfigError(f"{node.start_mark.line + 1}:{node.start_mark.column + 1}: {problem}")

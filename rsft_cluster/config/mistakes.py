"""What is wrong with a config, in plain words: pydantic's errors in, one line a mistake out.

A line names the origin, the key, the value and what would be right. Knows the shape of `RunConfig` from its JSON
Schema; where values came from, the caller knows.
"""

import json
from collections.abc import Callable, Iterator
from difflib import get_close_matches
from functools import cache
from typing import Any

from pydantic import ValidationError

from rsft_cluster.config import RunConfig
from rsft_cluster.config.strict_yaml import Location

MAX_LINES = 20
MAX_SHOWN = 60
"""Characters shown of a value that was found."""

EXPECTED = {
    "bool_type": "true or false",
    "dict_type": "a mapping",
    "finite_number": "a finite number",
    "float_parsing": "a number",
    "float_type": "a number",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "int_from_float": "a whole number",
    "int_parsing": "a whole number",
    "int_type": "a whole number",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "literal_error": "{expected}",
    "string_type": "text",
    "too_long": "a list of {max_length}",
    "too_short": "a list of at least {min_length}",
    "tuple_type": "a list",
}
"""Pydantic's kinds of error -> what would be right; names in braces are of the error's context."""


def explain(error: ValidationError, origin_of: Callable[[Location], str]) -> str:
    """Return a line for every mistake; `origin_of` gives where a key stands, or where it ought to."""
    errors = error.errors(include_url=False)
    lines = [f"{origin_of(item['loc'])}: {_key(item['loc'])}: {_message(item)}" for item in errors[:MAX_LINES]]
    if len(errors) > MAX_LINES:
        lines.append(f"and {len(errors) - MAX_LINES} more mistakes")
    return "\n".join(lines)


def shown(value: object) -> str:
    """Return a value as YAML would have it on one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def _key(location: Location) -> str:
    return ".".join(map(str, location)) or "the config"


def _message(item: Any) -> str:
    kind, location, value, context = item["type"], item["loc"], item["input"], item.get("ctx", {})
    if kind == "missing":
        meaning = _schema(location).get("description", "")
        return f"is missing. {meaning}" if meaning else f"is missing{_keys_of(location)}"
    if kind == "extra_forbidden":
        return f"unknown key{_suggestion(location)}"
    if kind == "value_error":
        return str(context["error"])
    if kind == "string_pattern_mismatch":
        return f"found {shown(value)}. {_schema(location).get('description', item['msg'])}"
    if kind in ("model_type", "model_attributes_type"):
        return f"expected {_section(context['class_name'])}{_keys_of(location)}, found {shown(value)}"
    # A kind that is not in the table is reported in pydantic's words.
    limits = {k: f"{v:g}" if isinstance(v, float) else v for k, v in context.items()}
    expected = EXPECTED[kind].format(**limits) if kind in EXPECTED else item["msg"]
    return f"expected {expected}, found {shown(value)}{_remedy(kind, value)}"


def _section(class_name: str) -> str:
    return "a plug-in's name, or a mapping" if class_name in ("Plugin", "Constraint") else "a mapping"


def _remedy(kind: str, value: object) -> str:
    if kind == "string_type" and isinstance(value, bool | int | float):
        return f'; with quotes, "{shown(value)}", it is text'
    if kind == "tuple_type" and isinstance(value, str):
        return f"; one entry is written [{shown(value)}]"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        return "; without the quotes it is one" if value.replace(".", "").isdigit() else ""
    return ""


def _keys_of(location: Location) -> str:
    known = sorted(_schema(location).get("properties", {}))
    return f" with the keys {', '.join(known)}" if known else ""


def _suggestion(location: Location) -> str:
    name = str(location[-1])
    known = sorted(_schema(location[:-1]).get("properties", {}))
    if near := get_close_matches(name, known, n=1):
        return f"; did you mean {near[0]}?"
    if elsewhere := [key for key in _all_keys() if key.rsplit(".", 1)[-1] == name]:
        return f" here; did you mean {' or '.join(elsewhere[:3])}?"
    return f"; known here: {', '.join(known)}"


@cache
def _root() -> dict[str, Any]:
    return RunConfig.model_json_schema()


@cache
def _all_keys() -> tuple[str, ...]:
    def walk(node: dict[str, Any], prefix: str) -> Iterator[str]:
        for name, child in _resolved(node).get("properties", {}).items():
            yield prefix + name
            yield from walk(child, f"{prefix}{name}.")

    return tuple(walk(_root(), ""))


def _schema(location: Location) -> dict[str, Any]:
    """Return the JSON Schema of what stands at a location, empty where nothing is known."""
    node = _root()
    for part in location:
        inner = _resolved(node)
        node = inner.get("items", {}) if isinstance(part, int) else inner.get("properties", {}).get(part, {})
    return {**_resolved(node), **{k: v for k, v in node.items() if k == "description"}}


def _resolved(node: dict[str, Any]) -> dict[str, Any]:
    # A plug-in may be a name or a mapping: the mapping is what has keys.
    node = next((choice for choice in node.get("anyOf", ()) if "$ref" in choice), node)
    while "$ref" in node:
        node = _root()["$defs"][node["$ref"].rsplit("/", 1)[-1]]
    return node

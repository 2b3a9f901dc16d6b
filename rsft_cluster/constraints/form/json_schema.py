"""`JsonSchema`: the completion is, or holds, JSON that fits a JSON Schema.

Strict JSON: no NaN, no infinities, no key twice. The schema is checked when the constraint is built; it may
refer to its own parts only, nothing is fetched. `format` is an annotation, as the standard has it, and is
not checked.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import jsonschema
import regex
from jsonschema.exceptions import best_match
from jsonschema.protocols import Validator
from jsonschema.validators import extend, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.errors import ConfigError

Extract = Literal["whole", "fenced", "first"]
PATTERN_TIMEOUT_S = 1.0
_FENCE = regex.compile(r"^[ \t]*```[^\n`]*\n(.*?)^[ \t]*```[ \t]*$", regex.MULTILINE | regex.DOTALL)
_OPENING = regex.compile(r"[{\[]")


class JsonSchema:
    """Pass completions whose JSON fits the schema, given as `schema` or in a `file`.

    `extract` says where the JSON stands: the `whole` completion; the first `fenced` block (three
    backquotes); or the `first` object or array in running text, which is the first opening bracket that
    JSON follows. Judged is one `part` of the completion: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        schema: dict[str, Any] | None = None,
        file: str | None = None,
        extract: Extract = "whole",
        part: Part = "answer",
    ) -> None:
        if (schema is None) == (file is None):
            raise ConfigError("json_schema: give the schema or a file, one of the two")
        where = "json_schema" if file is None else f"json_schema: {file}"
        self._validator = _validator(schema if file is None else _read(file), where)
        self._extract = extract
        self._part: Part = part

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason is the JSON pointer of what does not fit, and why."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        try:
            value = _EXTRACT[self._extract](text)
            problem = best_match(self._validator.iter_errors(value))
        except RecursionError:
            return Verdict.of(False, "not JSON that can be checked: nested too deeply")
        except _NotJsonError as error:
            return Verdict.of(False, str(error))
        if problem is None:
            return Verdict.of(True, "fits the schema")
        pointer = "".join(f"/{_escaped(part)}" for part in problem.absolute_path)
        return Verdict.of(False, f"{pointer or '(root)'}: {problem.message}")


class _NotJsonError(Exception):
    """The completion holds no strict JSON: a property of the completion, not a failure of the constraint."""


def _whole(text: str) -> Any:
    return _parsed(text.strip())


def _fenced(text: str) -> Any:
    block = _FENCE.search(text)
    if block is None:
        raise _NotJsonError("no fenced block in the completion")
    return _parsed(block.group(1).strip())


def _first(text: str) -> Any:
    for opening in _OPENING.finditer(text):
        start = opening.start()
        try:
            return _STRICT.raw_decode(text, start)[0]
        except json.JSONDecodeError as error:
            # Prose in brackets fails at once; what has begun as JSON must also end as JSON, or else
            # the inner part of something broken would count as the answer.
            if text[start + 1 : error.pos].strip():
                raise _NotJsonError(f"not JSON: {error}") from error
        except ValueError as error:
            raise _NotJsonError(f"not JSON: {error}") from error
    raise _NotJsonError("no JSON object or array in the completion")


_EXTRACT = {"whole": _whole, "fenced": _fenced, "first": _first}


def _parsed(text: str) -> Any:
    try:
        value, end = _STRICT.raw_decode(text)
    except ValueError as error:
        raise _NotJsonError(f"not JSON: {error}") from error
    if end != len(text):
        raise _NotJsonError(f"not JSON: {text[end:].strip()[:30]!r} follows the value at character {end}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(n for n in names if names.count(n) > 1)!r} stands twice")
    return found


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text} is not a finite number")
    return value


def _no_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


_STRICT = json.JSONDecoder(object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)


def _validator(schema: object, where: str) -> Validator:
    if not isinstance(schema, dict):
        raise ConfigError(f"{where}: a schema is an object, not {type(schema).__name__}")
    kind = validator_for(schema, default=jsonschema.Draft202012Validator)
    try:
        kind.check_schema(schema, format_checker=_FORMATS)  # pyright: ignore[reportCallIssue]
    except jsonschema.SchemaError as error:
        pointer = "".join(f"/{_escaped(part)}" for part in error.absolute_path)
        raise ConfigError(f"{where}: not a valid schema at {pointer or '(root)'}: {error.message}") from error
    resource = Resource.from_contents(schema, default_specification=DRAFT202012)
    registry: Registry = Registry()
    _check_references(resource, registry.resolver_with_root(resource), where)
    timed = extend(
        kind, {"pattern": _pattern, "patternProperties": _pattern_properties, "additionalProperties": _additional}
    )
    return timed(schema, registry=registry)


def _check_references(resource: Resource, resolver: Any, where: str) -> None:
    if isinstance(resource.contents, dict) and (reference := resource.contents.get("$ref")):
        try:
            resolver.lookup(reference)
        except Unresolvable as error:
            raise ConfigError(f"{where}: $ref {reference!r} leads nowhere within the schema") from error
    for part in resource.subresources():
        _check_references(part, resolver.in_subresource(part), where)


def _pattern(_validator: object, pattern: str, value: object, _schema: object) -> Iterator[jsonschema.ValidationError]:
    """Check `pattern` with a time limit, which jsonschema's own check does not have."""
    if isinstance(value, str) and not _matches(pattern, value):
        yield jsonschema.ValidationError(f"{value!r} does not match {pattern!r}")


def _matches(pattern: str, text: str) -> bool:
    return regex.search(pattern, text, timeout=PATTERN_TIMEOUT_S) is not None


def _pattern_properties(
    validator: Any, patterns: dict[str, Any], value: object, _schema: object
) -> Iterator[jsonschema.ValidationError]:
    r"""Check `patternProperties` by the same patterns as `pattern`: jsonschema's own know no classes like \p{L}."""
    if isinstance(value, dict):
        for pattern, part in patterns.items():
            for name in value:
                if _matches(pattern, name):
                    yield from validator.descend(value[name], part, path=name, schema_path=pattern)


def _additional(
    validator: Any, allowed: object, value: object, schema: dict[str, Any]
) -> Iterator[jsonschema.ValidationError]:
    """Check `additionalProperties`: those that neither `properties` nor `patternProperties` speak of."""
    if not isinstance(value, dict):
        return
    patterns = schema.get("patternProperties", {})
    others = [
        name
        for name in value
        if name not in schema.get("properties", {}) and not any(_matches(pattern, name) for pattern in patterns)
    ]
    if allowed is False and others:
        yield jsonschema.ValidationError(f"Additional properties are not allowed ({', '.join(map(repr, others))})")
    if isinstance(allowed, dict):
        for name in others:
            yield from validator.descend(value[name], allowed, path=name)


def _escaped(part: object) -> str:
    return str(part).replace("~", "~0").replace("/", "~1")


def _read(path: str) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"json_schema: file {path!r} cannot be read: {error}") from error


def _is_pattern(value: object) -> bool:
    if isinstance(value, str):
        regex.compile(value)
    return True


_FORMATS = jsonschema.FormatChecker(formats=())
_FORMATS.checks("regex", raises=regex.error)(_is_pattern)
_NAMES = {"patternProperties": {r"^\p{L}+$": {"type": "integer"}}, "additionalProperties": False}

_NAMED = {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}}

CASES = (
    Case(Candidate('{"name": "Ada"}'), passes=True, params={"schema": _NAMED}),
    Case(Candidate('{"name": 3}'), passes=False, params={"schema": _NAMED}),
    Case(Candidate('{"name": "Ada"'), passes=False, params={"schema": _NAMED}),
    Case(Candidate('给：\n```\n{"name": "Ada"}\n```'), passes=True, params={"schema": _NAMED, "extract": "fenced"}),
    Case(Candidate('It is {"name": "Ada"}.'), passes=True, params={"schema": _NAMED, "extract": "first"}),
    Case(Candidate('{"größe": 1}'), passes=True, params={"schema": _NAMES}),
    Case(Candidate('{"größe": "1"}'), passes=False, params={"schema": _NAMES}),
    Case(Candidate('{"größe 2": 1}'), passes=False, params={"schema": _NAMES}),
)

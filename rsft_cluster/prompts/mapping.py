"""From the fields of a source row to a prompt, or to the reason why it is refused.

Text is taken byte for byte: nothing is stripped, normalised or cut.
"""

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from rsft_cluster.config import PromptsConfig
from rsft_cluster.prompts.jsonl import kind
from rsft_cluster.prompts.rows import MAX_LINE_BYTES, Refused, Row, shown
from rsft_cluster.schemas import prompt_id

ROLES = ("system", "user", "assistant", "tool")
_MISSING: Final = object()
_NONE: Final[dict[str, str]] = {}


class MappedPrompt(NamedTuple):
    """The content of a prompt, and its id in the source."""

    prompt_id: str
    messages: list[dict[str, str]]
    reference: str | None
    attributes: dict[str, str]
    source_id: str | None
    num_characters: int


class ColumnMapping:
    """The columns of a config, applied to rows."""

    def __init__(self, prompts: PromptsConfig) -> None:
        self._prompts = prompts
        self._columns = prompts.columns

    @property
    def names(self) -> list[str]:
        """The fields that are read, dotted where they are nested."""
        columns = self._columns
        named = [columns.messages, columns.prompt, columns.reference, columns.id, *columns.attributes]
        return list(dict.fromkeys(name for name in named if name is not None))

    def prompt(self, row: Row) -> MappedPrompt:
        """Return the prompt that a row holds; raises Refused with the reason."""
        columns = self._columns
        messages = self._messages(row)
        reference = _text(row, columns.reference) if columns.reference else None
        attributes = _NONE
        if columns.attributes:
            texts = {name: _text(row, name, boolean=True) for name in columns.attributes}
            attributes = {name: text for name, text in texts.items() if text is not None}
        source_id = _text(row, columns.id) if columns.id else None
        if columns.id and source_id is None:
            raise Refused(f"{columns.id!r} is null; an id is text or a number")
        length = sum([len(message["content"]) for message in messages])
        if length > MAX_LINE_BYTES:
            raise Refused(f"longer than {MAX_LINE_BYTES} characters")
        identity = prompt_id(messages, reference, attributes)
        return MappedPrompt(identity, messages, reference, attributes, source_id, length)

    def _messages(self, row: Row) -> list[dict[str, str]]:
        columns = self._columns
        value = _find(row.fields, columns.messages)
        if value is not _MISSING and value is not None:
            return self._with_system(_checked(value, columns.messages))
        text = _find(row.fields, columns.prompt)
        if text is _MISSING:
            raise Refused(
                f"neither {columns.messages!r} nor {columns.prompt!r} is there; the line has {shown(row.keys)}"
            )
        if not isinstance(text, str):
            raise Refused(f"{columns.prompt!r} is {kind(text)}, not text")
        if not text:
            raise Refused(f"{columns.prompt!r} is empty")
        if self._prompts.as_chat:
            return self._with_system([{"role": "user", "content": text}])
        return [{"role": "raw", "content": text}]

    def _with_system(self, messages: list[dict[str, str]]) -> list[dict[str, str]]:
        system = self._prompts.system
        if system is None or any(message["role"] == "system" for message in messages):
            return messages
        return [{"role": "system", "content": system}, *messages]


def _find(fields: Mapping[str, object], name: str) -> object:
    """Return a field by its name, or along its dots; below a null everything is null."""
    if name in fields:
        return fields[name]
    value: object = fields
    for part in name.split("."):
        if value is None:
            return None
        if not isinstance(value, Mapping) or part not in value:
            return _MISSING
        value = value[part]
    return value


def _text(row: Row, name: str, *, boolean: bool = False) -> str | None:
    """Return a scalar field as text, None for null. Numbers that are equal give equal text."""
    value = _find(row.fields, name)
    if value is None or isinstance(value, str):
        return value
    if value is _MISSING:
        raise Refused(f"{name!r} is not there; the line has {shown(row.keys)}")
    if isinstance(value, bool) and boolean:
        return "true" if value else "false"
    if isinstance(value, float):
        return _float_text(value, name)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    expected = "text, a number or a boolean" if boolean else "text or a number"
    raise Refused(f"{name!r} is {kind(value)}, not {expected}")


def _float_text(value: float, name: str) -> str:
    if not math.isfinite(value):
        raise Refused(f"{name!r} is {value}, not a finite number")
    # From 2**53 on neighbouring floats lie more than 1 apart: their digits would say more than is known.
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _checked(value: object, name: str) -> list[dict[str, str]]:
    if not isinstance(value, list):
        raise Refused(f"{name!r} is {kind(value)}, not a list of messages")
    if not value:
        raise Refused(f"{name!r} is an empty list")
    messages = [_message(message, f"{name}[{i}]") for i, message in enumerate(value)]
    if messages[-1]["role"] == "assistant":
        raise Refused(f"the last of {name!r} is the assistant's: there is nothing left to answer")
    if not messages[-1]["content"]:
        raise Refused(f"the last of {name!r} is empty")
    return messages


def _message(message: object, where: str) -> dict[str, str]:
    if not isinstance(message, dict):
        raise Refused(f"{where} is {kind(message)}, not an object with role and content")
    others = [key for key, value in message.items() if key not in ("role", "content") and value is not None]
    if others:
        raise Refused(f"{where} has {shown(others)}; only role and content are supported")
    role, content = message.get("role", _MISSING), message.get("content", _MISSING)
    if role is _MISSING or content is _MISSING:
        raise Refused(f"{where} has no {'role' if role is _MISSING else 'content'}")
    if role not in ROLES:
        raise Refused(f"{where} has the role {shown([str(role)])}; expected one of {', '.join(ROLES)}")
    if not isinstance(content, str):
        raise Refused(f"{where}.content is {kind(content)}, not text")
    return {"role": str(role), "content": content}

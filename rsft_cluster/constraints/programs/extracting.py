"""Which text of a completion is its program."""

import ast
import textwrap
from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

import regex

_LANGUAGES = ("python", "py", "python3", "py3", "pycon", "ipython", "sage")
_FENCE = regex.compile(r"^(?P<indent>[ \t>]*)(?:[-*+]\s+|\d+[.)]\s+)?(?P<fence>`{3,}|~{3,})(?P<info>[^`\n]*)$")
_INFO = regex.compile(r"[{\s.]*([\w+#-]*)")
_TAGS = regex.compile(r"<(answer|code|python|solution)>(.*?)(?:</\1>|\Z)", regex.DOTALL | regex.IGNORECASE)
_BEGINS = regex.compile(
    r"(?:async\s+def|def|class|import|from|if|for|while|with|try|@|print)\b|@|[A-Za-z_][\w.]*\s*(?:=|\()|\"\"\"|'''|#"
)
_DEFINED = regex.compile(
    r"^(?:async\s+)?(?:def|class)\s+(\w+)|^(\w+)\s*(?::[^=\n]+)?=[^=]|^from\s.*\bimport\s+(?:.*\bas\s+)?(\w+)",
    regex.MULTILINE,
)
_MAX_TRIES = 60
_MAX_BYTES = 1 << 20


class _Block(NamedTuple):
    language: str
    text: str


def extract(completion: str, names: Collection[str] = ()) -> str:
    """Return the program of a completion: of its Python blocks the last one that defines one of the `names` tested.

    Blocks before it that define what it uses and does not define come before it. Where no block defines a name it is
    the last Python block, else the last block; where there is none, what `<answer>` holds, else the lines that are
    Python among the prose. A last block that is not closed reaches to the end.
    """
    blocks = list(_blocks(completion))
    if not blocks:
        tags = [found[2] for found in _TAGS.finditer(completion)]
        return _of_prose(tags[-1] if tags else completion)
    python = [block.text for block in blocks if block.language in _LANGUAGES]
    texts = python or [block.text for block in blocks]
    defined = [_defined(text) for text in texts]
    chosen = next((i for i in range(len(texts) - 1, -1, -1) if not defined[i].isdisjoint(names)), len(texts) - 1)
    return joined(*_before(texts[: chosen + 1], defined), texts[chosen])


def joined(*pieces: str) -> str:
    """Return pieces of a program as one, imports from `__future__` first, as Python wants them."""
    pieces = tuple(filter(None, pieces))
    if len(pieces) == 1:
        return pieces[0]
    lines: list[str] = []
    kept = []
    for piece in pieces:
        rest = piece
        for first, last in reversed(_future_imports(piece)):
            own = rest.splitlines()
            lines[:0] = own[first - 1 : last]
            rest = "\n".join([*own[: first - 1], *[""] * (last - first + 1), *own[last:]])
        kept.append(rest)
    return "\n".join([*lines, *kept])


def _future_imports(piece: str) -> list[tuple[int, int]]:
    if "__future__" not in piece:
        return []
    tree = _parsed(piece)
    nodes = tree.body if tree else []
    return [
        (node.lineno, node.end_lineno or node.lineno)
        for node in nodes
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]


def _blocks(completion: str) -> Iterator[_Block]:
    """Yield the fenced blocks, freed of the indentation of their fence."""
    fence, indent, language, lines = "", 0, "", []
    for line in completion.splitlines(keepends=True):
        mark = _FENCE.match(line.rstrip("\r\n"))
        bare = line.strip()
        if fence:
            if bare.startswith(fence) and not bare.strip(fence[0]):
                yield _Block(language, _dedented(lines, indent))
                fence = ""
            else:
                lines.append(line)
        elif mark:
            fence, indent, lines = mark["fence"], len(mark["indent"]), []
            info = _INFO.match(mark["info"])
            language = info[1].lower() if info else ""
    if fence:
        yield _Block(language, _dedented(lines, indent))


def _dedented(lines: Sequence[str], indent: int) -> str:
    text = "".join(line[:indent].lstrip(" \t>") + line[indent:] for line in lines) if indent else "".join(lines)
    return textwrap.dedent(text) if text[:1] in (" ", "\t") else text


def _defined(text: str) -> set[str]:
    return {name for found in _DEFINED.finditer(text) for name in found.groups() if name}


def _before(texts: Sequence[str], defined: Sequence[set[str]]) -> list[str]:
    """Return those of the texts before the last one that define what it, or one of them, uses and does not define."""
    program, own = [], set(defined[len(texts) - 1])
    needed = _used(texts[-1]) - own
    for i in range(len(texts) - 2, -1, -1):
        helps = defined[i] & needed
        if helps and not defined[i] & own and _parsed(texts[i]):
            program.insert(0, texts[i])
            own |= defined[i]
            needed = (needed | _used(texts[i])) - own
    return program


def _used(text: str) -> set[str]:
    tree = _parsed(text)
    if tree is None:
        return set()
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)}


def _of_prose(text: str) -> str:
    """Return the lines of a text that are a program, prose around them left out; the text itself where none are."""
    plain = text.strip("\n")
    if _parsed(plain) is not None:
        return text
    lines = textwrap.dedent(plain).splitlines()
    starts = [i for i, line in enumerate(lines) if _BEGINS.match(line)]
    tries = 0
    for start in starts:
        for end in _ends(lines, start):
            tries += 1
            if tries > _MAX_TRIES:
                return text
            program = "\n".join(lines[start:end])
            tree = _parsed(program)
            if tree and any(not isinstance(node, ast.Expr) or isinstance(node.value, ast.Call) for node in tree.body):
                return program + "\n"
    return text


def _ends(lines: Sequence[str], start: int) -> Iterator[int]:
    """Yield where a program that starts at a line may end: at the last line, or before lines that are no code."""
    yield len(lines)
    for end in range(len(lines) - 1, start, -1):
        if lines[end].strip() and not lines[end][0].isspace():
            yield end


def _parsed(text: str) -> ast.Module | None:
    if len(text) > _MAX_BYTES:
        return None
    try:
        return ast.parse(text)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return None

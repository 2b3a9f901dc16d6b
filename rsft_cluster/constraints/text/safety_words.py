"""`SafetyWords`: no word of a lexicon, by category; English and Chinese alike.

A lexicon is a UTF-8 file, a word or phrase a line, `#` starting a comment line, in sections:

    [insult]
    idiot
    傻瓜
    [threat]
    I will find you

How words are found however they are written says `_lexicon`; letters that look like others and hyphens for spaces hide
none. With `spelled_out` they are also found with up to three
spaces or symbols between their characters (i.d.i.o.t, 傻 瓜), never across the end of a sentence.
"""

from collections.abc import Iterator, Mapping, Sequence

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._lexicon import Disguised, Folded, Found, Lexicon, Squeezed, read_lines
from rsft_cluster.errors import ConfigError


class SafetyWords:
    """Pass completions with no word of the `lexicon`, which maps categories to words, nor of the `files`.

    `categories` are those that count, all by default. Files are read where the constraint is built, so every node must
    reach them. Judged is one `part` of the completion: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        lexicon: Mapping[str, Sequence[str]] | None = None,
        files: Sequence[str] = (),
        categories: Sequence[str] | None = None,
        spelled_out: bool = False,
        part: Part = "answer",
    ) -> None:
        words: dict[str, list[str]] = {}
        for category, some in [*(lexicon or {}).items(), *(section for file in files for section in _sections(file))]:
            words.setdefault(category, []).extend(some)
        wanted = list(words) if categories is None else list(categories)
        if unknown := [category for category in wanted if not words.get(category)]:
            raise ConfigError(f"safety_words: no words of category {unknown[0]!r}; there are {sorted(words)}")
        if not wanted:
            raise ConfigError("safety_words: give a lexicon or files, with at least one category")
        self._spelled_out = spelled_out
        self._part: Part = part
        self._lexicons = {
            category: Lexicon(words[category], ignore_case=True, name=f"safety_words: category {category!r}")
            for category in wanted
        }

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names the word, its category, and where it stands."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, completion: str) -> Verdict:
        text = Folded(completion, ignore_case=True)
        found = self._first(text) or self._first(Disguised(text))
        found = found or (self._first(Squeezed(text)) if self._spelled_out else None)
        if found:
            category, word = found
            reason = f"{category}: {word.word!r} at character {word.place}"
            return Verdict(0.0, passed=False, reason=reason, fatal_at=word.ends_at)
        return Verdict.of(True, f"no word of {', '.join(self._lexicons)}")

    def _first(self, text: Folded | Squeezed | Disguised) -> tuple[str, Found] | None:
        every = ((category, lexicon.find(text)) for category, lexicon in self._lexicons.items())
        return min(((c, f) for c, f in every if f), key=lambda one: one[1].place, default=None)


def _sections(file: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each section of a file; raises ConfigError where words stand before the first."""
    section: tuple[str, list[str]] | None = None
    for line in read_lines("safety_words: file", file):
        if line.startswith("[") and line.endswith("]"):
            if section:
                yield section
            section = line[1:-1].strip(), []
        elif section is None:
            raise ConfigError(f"safety_words: file {file!r} begins with {line!r}, before any [category]")
        else:
            section[1].append(line)
    if section:
        yield section


_PARAMS = {"lexicon": {"insult": ["idiot", "傻瓜"], "threat": ["I will find you"]}}
_SPELLED = {**_PARAMS, "spelled_out": True}

CASES = (
    Case(Candidate("You are kind."), passes=True, params=_PARAMS),
    Case(Candidate("You IDIOT."), passes=False, params=_PARAMS),
    Case(Candidate("an idiotic plan"), passes=True, params=_PARAMS),
    Case(Candidate("ｉｄｉｏｔ"), passes=False, params=_PARAMS),
    Case(Candidate("你这个傻\u200b瓜"), passes=False, params=_PARAMS),
    Case(Candidate("I will\nfind you"), passes=False, params=_PARAMS),
    Case(Candidate("I will\nfind you"), passes=True, params={**_PARAMS, "categories": ["insult"]}),
    Case(Candidate("You 1di\u043et"), passes=False, params=_PARAMS),
    Case(Candidate("I-will-find you"), passes=False, params=_PARAMS),
    Case(Candidate("\u0438\u0434\u0438\u043e\u0442"), passes=True, params=_PARAMS),
    Case(Candidate("you i.d.i.o.t!"), passes=True, params=_PARAMS),
    Case(Candidate("you i.d.i.o.t!"), passes=False, params=_SPELLED),
    Case(Candidate("你这个傻 * 瓜"), passes=False, params=_SPELLED),
    Case(Candidate("他很傻。瓜很甜。"), passes=True, params=_SPELLED),
)

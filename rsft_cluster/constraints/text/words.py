"""`Words`: forbidden words are absent, required words are present; English and Chinese alike.

Words of an alphabet count only as whole words ("class" is not in "classic"). Words with characters of a
script that sets no spaces (Chinese, Japanese, Thai ...), or that joins particles to words (Korean), count
wherever they stand. Text and words are compared after Unicode NFKC, invisible characters removed, so that
full-width or broken-up spellings do not slip through; nor do forbidden words with letters that look like theirs.
"""

from collections.abc import Sequence

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._lexicon import Disguised, Folded, Lexicon, read_lines
from rsft_cluster.errors import ConfigError


class Words:
    """Pass completions with none of the `forbidden` and all of the `required` words or phrases.

    The `_file` parameters name UTF-8 files, a word a line, `#` starting a comment line; they are read where
    the constraint is built, so every node must reach them. Judged is one `part`: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        forbidden: Sequence[str] = (),
        required: Sequence[str] = (),
        forbidden_file: str | None = None,
        required_file: str | None = None,
        ignore_case: bool = True,
        part: Part = "answer",
    ) -> None:
        none = [*forbidden, *(read_lines("words: forbidden_file", forbidden_file) if forbidden_file else ())]
        each = [*required, *(read_lines("words: required_file", required_file) if required_file else ())]
        if not none and not each:
            raise ConfigError("words: give at least one word, forbidden or required")
        self._ignore_case = ignore_case
        self._part: Part = part
        self._forbidden = Lexicon(none, ignore_case=ignore_case, name="words: forbidden") if none else None
        self._required = {w: Lexicon([w], ignore_case=ignore_case, name="words: required") for w in each}

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason names the word, and where it stands."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, completion: str) -> Verdict:
        text = Folded(completion, ignore_case=self._ignore_case)
        if self._forbidden and (found := self._forbidden.find(text) or self._forbidden.find(Disguised(text))):
            reason = f"forbidden word {found.word!r} at character {found.place}"
            return Verdict(0.0, passed=False, reason=reason, fatal_at=found.ends_at)
        for word, lexicon in self._required.items():
            if not lexicon.find(text):
                return Verdict.of(False, f"required word {word!r} is missing")
        return Verdict.of(True, "no forbidden word, no required word missing")


CASES = (
    Case(Candidate("A kind word."), passes=True, params={"forbidden": ["idiot"]}),
    Case(Candidate("You IDIOT!"), passes=False, params={"forbidden": ["idiot"]}),
    Case(Candidate("You idi\u043et!"), passes=False, params={"forbidden": ["idiot"]}),
    Case(Candidate("an idiotic idea"), passes=True, params={"forbidden": ["idiot"]}),
    Case(Candidate("这种做法不\u200b道德。"), passes=False, params={"forbidden": ["不道德"]}),
    Case(Candidate("您好，谢谢！"), passes=True, params={"required": ["谢谢"]}),
    Case(Candidate("您好！"), passes=False, params={"required": ["谢谢"]}),
)

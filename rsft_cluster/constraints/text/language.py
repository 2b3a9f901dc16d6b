"""`Language`: the completion is written in one of the languages asked for.

Known are the large languages of each script (ISO 639-1 codes); how they are told apart, also in short and mixed
texts, says `_languages`. A completion without words, like `42`, is in no wrong language and passes.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._languages import LANGUAGES, languages, load_model
from rsft_cluster.constraints.text._text import without_code, without_latex, without_links
from rsft_cluster.errors import ConfigError


class Language:
    """Pass completions with at least the share `at_least` of their words in the `languages`.

    Characters count as words in Chinese and Japanese. With `skip_code` what stands in backquotes is not judged, with
    `skip_links` no web address is; commands and unknowns of LaTeX are
    no words. Judged is one `part`: the answer, the thinking, or all.
    """

    def __init__(
        self,
        *,
        languages: Sequence[str],
        at_least: Annotated[float, Field(gt=0, le=1)] = 0.8,
        skip_code: bool = False,
        skip_links: bool = False,
        part: Part = "answer",
    ) -> None:
        if not languages:
            raise ConfigError("language: give at least one language, like [en, zh]")
        if unknown := sorted(set(languages) - LANGUAGES):
            raise ConfigError(f"language: languages holds {unknown[0]!r}, known are {', '.join(sorted(LANGUAGES))}")
        self._languages = tuple(languages)
        self._at_least = at_least
        self._part: Part = part
        self._skips = [skip for skip, wanted in ((without_code, skip_code), (without_links, skip_links)) if wanted]

    def prepare(self) -> None:
        """Load the detector, once for all processes."""
        load_model()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; the reason gives the share, and the language of most other words."""
        return [judged(candidate.completion, self._part, self._judge) for candidate in candidates]

    def _judge(self, text: str) -> Verdict:
        for skip in self._skips:
            text = skip(text)
        found = languages(without_latex(text), expected=self._languages)
        if not found:
            return Verdict.of(True, "no words to judge")
        rate = sum(found[language] for language in self._languages) / found.total()
        others = [language for language, _ in found.most_common() if language not in self._languages]
        reason = f"{rate:.0%} of {found.total()} words in {' or '.join(self._languages)}"
        return Verdict.of(rate >= self._at_least, reason + (f", others mostly in {others[0]}" if others else ""))


_EN, _ZH = {"languages": ["en"]}, {"languages": ["zh"]}

CASES = (
    Case(Candidate("The order was shipped yesterday and arrives on Monday."), passes=True, params=_EN),
    Case(Candidate("Yes."), passes=True, params=_EN),
    Case(Candidate("La commande a été expédiée hier et arrive lundi."), passes=False, params=_EN),
    Case(Candidate("Ich weiß nicht"), passes=False, params=_EN),
    Case(Candidate("订单昨天已经发货。"), passes=True, params=_ZH),
    Case(Candidate("好的"), passes=True, params=_ZH),
    Case(Candidate("我们用 Python 来写这个程序。"), passes=True, params=_ZH),
    Case(Candidate("Sure! 订单昨天发货 and it arrives on Monday."), passes=False, params=_ZH),
    Case(Candidate("注文は昨日発送されました。"), passes=False, params=_ZH),
    Case(Candidate("Sure! 订单昨天发货"), passes=True, params={"languages": ["en", "zh"]}),
    Case(
        Candidate("运行：\n```\nprint every item of the list\n```"),
        passes=True,
        params={**_ZH, "skip_code": True},
    ),
    Case(Candidate("42"), passes=True, params=_EN),
    Case(Candidate(r"解：由 $\frac{x}{2}+\sqrt{y}=3$ 得 \boxed{x=2}"), passes=True, params=_ZH),
    Case(Candidate("用 Docker 和 Kubernetes 部署 API"), passes=True, params=_ZH),
    Case(Candidate("请看 this is what they wrote to us about the order"), passes=False, params=_ZH),
    Case(Candidate("東京都知事選挙"), passes=True, params={"languages": ["ja"]}),
    Case(Candidate("这个问题很难"), passes=False, params={"languages": ["ja"]}),
    Case(Candidate('He said: "Das Haus ist rot und der Hund schläft heute". So it is.'), passes=False, params=_EN),
)

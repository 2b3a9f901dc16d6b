"""`Similarity`: the completion is like the reference, by one of four measures of overlap, each in [0, 1].

`token_f1`: harmonic mean of precision and recall of words, each counted as often as it stands, as in SQuAD (Rajpurkar
et al. 2016, arXiv 1606.05250) but with articles. `rouge_l`: the same of their longest common subsequence (Lin 2004,
ROUGE, eq. 2-4 with beta 1). `chrf`: F-score, recall weighing twice, of precision and recall of character n-grams, each
averaged over n = 1 to 6, spaces left out (Popovic 2015, chrF). `edit`: 1 - edit distance / longer length, in
characters. Words are single characters in Chinese and Japanese; case does not count.
"""

from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Annotated, Literal
from unicodedata import normalize

from pydantic import Field
from rapidfuzz.distance import LCSseq, Levenshtein

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import Part, judged
from rsft_cluster.constraints.text._text import folded_words, words

Method = Literal["token_f1", "rouge_l", "chrf", "edit"]

_CHRF_ORDER = 6
_CHRF_BETA = 2


class Similarity:
    """Pass completions whose similarity to the reference is `at_least` so much; the similarity is the score.

    A missing reference, or one without words, is an error. Judged is one `part` of the completion: the answer, the
    thinking, or all.
    """

    def __init__(
        self, *, at_least: Annotated[float, Field(gt=0, le=1)], method: Method = "rouge_l", part: Part = "answer"
    ) -> None:
        self._at_least = at_least
        self._method: Method = method
        self._part: Part = part

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict a candidate; raises ValueError where a reference is missing."""
        return [judged(one.completion, self._part, partial(self._judge, one)) for one in candidates]

    def _judge(self, candidate: Candidate, text: str) -> Verdict:
        if not words(candidate.reference or ""):
            raise ValueError(f"prompt {candidate.prompt_id!r} has no reference to compare with")
        score = similarity(text, candidate.reference or "", self._method)
        passed = score >= self._at_least
        return Verdict(score, passed, f"{self._method} {score:.3f}{'' if passed else f', below {self._at_least:g}'}")


def similarity(text: str, reference: str, method: Method) -> float:
    """Return how like a reference a text is, in [0, 1]; 1 for the same text, in whatever form of Unicode."""
    text, reference = normalize("NFKC", text), normalize("NFKC", reference)
    if method == "chrf":
        return _chrf("".join(text.casefold().split()), "".join(reference.casefold().split()))
    if method == "edit":
        return Levenshtein.normalized_similarity(text.strip().casefold(), reference.strip().casefold())
    found, wanted = folded_words(words(text)), folded_words(words(reference))
    longest = method == "rouge_l"
    num_common = LCSseq.similarity(found, wanted) if longest else (Counter(found) & Counter(wanted)).total()
    return 2 * num_common / (len(found) + len(wanted))


def _chrf(text: str, reference: str) -> float:
    """Return chrF; orders that the text or the reference is too short for are left out of the averages."""
    orders = range(1, min(_CHRF_ORDER, len(text), len(reference)) + 1)
    if not orders:
        return 0.0
    precision = recall = 0.0
    for n in orders:
        found, wanted = _grams(text, n), _grams(reference, n)
        num_common = (found & wanted).total()
        precision += num_common / found.total() / len(orders)
        recall += num_common / wanted.total() / len(orders)
    weight = _CHRF_BETA**2
    return (1 + weight) * precision * recall / (weight * precision + recall) if precision + recall else 0.0


def _grams(text: str, n: int) -> Counter[str]:
    return Counter(text[i : i + n] for i in range(len(text) - n + 1))


_CAT = "The cat sat on the mat."
_F1 = {"method": "token_f1"}

CASES = (
    Case(Candidate("the cat sat on the mat", reference=_CAT), passes=True, params={"at_least": 1}),
    Case(
        Candidate("On the mat the cat sat.", reference=_CAT), passes=True, params={"at_least": 1, "method": "token_f1"}
    ),
    Case(Candidate("On the mat the cat sat.", reference=_CAT), passes=False, params={"at_least": 0.9}),
    Case(Candidate("The cats sat on a mat.", reference=_CAT), passes=True, params={"at_least": 0.5, "method": "chrf"}),
    Case(Candidate("A dog ran.", reference=_CAT), passes=False, params={"at_least": 0.5, "method": "chrf"}),
    Case(Candidate("猫坐在垫子上面", reference="猫坐在垫子上"), passes=True, params={"at_least": 0.9}),
    Case(Candidate("狗跑了", reference="猫坐在垫子上"), passes=False, params={"at_least": 0.1, "method": "edit"}),
    Case(Candidate("", reference=_CAT), passes=False, params={"at_least": 0.1, "method": "edit"}),
)

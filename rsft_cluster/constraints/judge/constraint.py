"""`LanguageModelJudge`: a language model behind an OpenAI-compatible endpoint judges the completion.

    use: judge
    params:
      endpoint: {base_url: "https://api.openai.com/v1", model: a-model, api_key_env: OPENAI_API_KEY}
      rubric: {instructions: "Is the answer polite? 1 is rude, 10 is courteous.", scale: [1, 10], at_least: 7}
      limits: {requests_per_minute: 500, max_concurrency: 32}
      cache: s3://bucket/judged

or, instead of `rubric`, `pairwise: {}` to compare with the prompt's reference in both orders (position bias: Zheng et
al. 2023, arXiv:2306.05685). The verdicts of a model are not repeatable, whatever its temperature. With a `cache` that
all nodes reach they stay the same for the same text, and judging again costs nothing; without, each actor remembers its
own answers.

The limits are those of one scoring actor: divide the account's by `scoring.workers`.

It has no inline `CASES`, as judging takes a server: use canaries in the config (`scoring.canaries`) instead.
"""

import asyncio
from collections.abc import Sequence
from functools import partial

from rsft_cluster.constraints.base import Candidate, Verdict
from rsft_cluster.constraints.judge.answers import AnswerAs
from rsft_cluster.constraints.judge.asking import Asker
from rsft_cluster.constraints.judge.cache import FileCache, MemoryCache
from rsft_cluster.constraints.judge.endpoint import Endpoint
from rsft_cluster.constraints.judge.limits import Limits
from rsft_cluster.constraints.judge.modes import Pairwise, Rubric
from rsft_cluster.errors import ConfigError


class LanguageModelJudge:
    """Pass completions that the model judges well enough, by a `rubric` or `pairwise`, one of the two.

    `answer_as: line` asks for a last line instead of JSON, which small models manage better. `cache` is the folder, an
    absolute path or a URI, where answers are kept. A missing or unreadable answer is an error.
    """

    isolated = False

    def __init__(
        self,
        *,
        endpoint: Endpoint,
        rubric: Rubric | None = None,
        pairwise: Pairwise | None = None,
        answer_as: AnswerAs = "json",
        limits: Limits | None = None,
        cache: str | None = None,
    ) -> None:
        mode = rubric or pairwise
        if mode is None or (rubric and pairwise):
            raise ConfigError("judge: give a rubric or pairwise, one of the two")
        endpoint.check()
        self._mode = mode
        self._answer_as: AnswerAs = answer_as
        self._asker = Asker(endpoint, limits or Limits(), MemoryCache() if cache is None else FileCache(cache))
        self._again = partial(
            LanguageModelJudge,
            endpoint=endpoint,
            rubric=rubric,
            pairwise=pairwise,
            answer_as=answer_as,
            limits=limits,
            cache=cache,
        )

    def __reduce__(self) -> tuple[partial["LanguageModelJudge"], tuple[()]]:
        """Pickle only the parameters: connections and remembered answers stay here."""
        return self._again, ()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict | Exception]:
        """Return a verdict or an error for each candidate, all judged at once."""
        return self._asker.run(self._judged(candidates))

    async def _judged(self, candidates: Sequence[Candidate]) -> list[Verdict | Exception]:
        return await asyncio.gather(*map(self._verdict, candidates))

    async def _verdict(self, candidate: Candidate) -> Verdict | Exception:
        try:
            questions = self._mode.questions(candidate, self._answer_as)
            return self._mode.verdict(await asyncio.gather(*map(self._asker.answer, questions)))
        except Exception as error:  # concerns only this candidate
            return error

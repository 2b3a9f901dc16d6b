"""The judge of a scoring actor: constraints in killable processes, watched by canaries, audited by judging twice."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from weakref import finalize

from rsft_cluster.config import ScoringConfig
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.building import build, is_isolated
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of
from rsft_cluster.errors import StageError
from rsft_cluster.keys import audit_uniform
from rsft_cluster.scoring.canaries import Canary, check, configured, inline
from rsft_cluster.scoring.isolation.pool import Pool
from rsft_cluster.scoring.judge import MIN_VERDICTS, Judge, Judgement, first_errors

SCORE_TOLERANCE = 1e-6
"""Scores further apart disagree: a model's batch may change the last bits."""


class IsolatedJudge(Judge):
    """All constraints of a run, those without `isolated = False` in a pool of processes.

    Raises StageError when a canary is judged wrongly, and when most verdicts of a constraint are errors. `close` ends
    the processes; so does the end of this one.
    """

    def __init__(self, scoring: ScoringConfig) -> None:
        super().__init__(scoring.constraints)
        self._scoring = scoring
        self._canaries = configured(scoring)
        self._inline, variants = inline(scoring.constraints)
        # The same constraints with other parameters, for the sake of their inline cases.
        self._built += [build(variant, name=variant.name) for variant in variants]
        self._all = (*scoring.constraints, *variants)
        self._isolated = [is_isolated(built) for built in self._built]
        self._num_verdicts, self._num_errors = Counter[int](), Counter[int]()
        self._first_errors: dict[str, str] = {}
        self._pool = self._start() if any(self._isolated) else None
        self._num_calls = 0
        self._check_canaries([*self._canaries, *self._inline])

    def close(self) -> None:
        """End the processes."""
        if self._pool is not None:
            self._pool.close()

    def judge_unwatched(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement a candidate, without canaries and second judgements."""
        return self._judgements(candidates, self._outcomes)

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement a candidate, in the same order; a share is judged twice, and canaries after them."""
        share = self._scoring.audit_share
        twice = [i for i, c in enumerate(candidates) if audit_uniform(c.candidate_id) < share]
        found = self._judgements([*candidates, *(candidates[i] for i in twice)], self._outcomes)
        judgements = found[: len(candidates)]
        for i, again in zip(twice, found[len(candidates) :], strict=True):
            judgements[i] = replace(judgements[i], audited=True, disagreements=_disagreements(judgements[i], again))
        self._num_calls += 1
        self._check_canaries([*self._canaries, *self._inline_now()])
        return judgements

    def _start(self) -> Pool:
        pool = Pool(
            self._all,
            num_processes=max(1, round(self._scoring.num_cpus)),
            memory_bytes=self._scoring.process_memory_bytes,
        )
        finalize(self, pool.close)
        return pool

    def _inline_now(self) -> list[Canary]:
        """Return one passing and one failing inline case of each constraint, others at every call."""
        groups: dict[tuple[str, bool], list[Canary]] = {}
        for canary in self._inline:
            groups.setdefault((canary.constraint, canary.passes), []).append(canary)
        return [group[self._num_calls % len(group)] for group in groups.values()]

    def _check_canaries(self, canaries: Sequence[Canary]) -> None:
        single = [c for c in canaries if c.number is not None]
        wanted = [[i for i, c in enumerate(single) if c.number == number] for number in range(len(self._all))]
        columns = self._outcomes([c.candidate for c in single], wanted)
        for places, column in zip(wanted, columns, strict=True):
            for i, outcome in zip(places, column, strict=True):
                check(single[i], outcome.verdict and outcome.verdict.passed, outcome.error or outcome.reason)
        whole = [c for c in canaries if c.number is None]
        judgements = self._judgements([c.candidate for c in whole], self._outcomes) if whole else []
        for canary, judgement in zip(whole, judgements, strict=True):
            check(canary, judgement.passed, judgement.reason)

    def _outcomes(self, candidates: Sequence[Candidate], wanted: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        """Judge in the pool and, meanwhile, in this process what is not isolated."""
        pooled = [places if isolated else () for places, isolated in zip(wanted, self._isolated, strict=False)]
        if self._pool is None:
            return self._here(candidates, wanted)
        if pooled == list(wanted):
            return self._pool.judge(candidates, pooled, after=self._watch)
        with ThreadPoolExecutor(1) as thread:
            future = thread.submit(self._pool.judge, candidates, pooled, after=self._watch)
            here = self._here(candidates, [() if i else p for p, i in zip(wanted, self._isolated, strict=False)])
            return [a if i else b for a, b, i in zip(future.result(), here, self._isolated, strict=False)]

    def _here(self, candidates: Sequence[Candidate], wanted: Sequence[Sequence[int]]) -> list[list[Outcome]]:
        columns = []
        for number, places in enumerate(wanted):
            columns.append(outcomes_of(self._built[number], [candidates[i] for i in places]))
            for outcome in columns[-1]:
                self._watch(number, outcome)
        return columns

    def _watch(self, number: int, outcome: Outcome) -> None:
        """Stop where a constraint is plainly broken, rather than let every candidate wait for a deadline first."""
        self._num_verdicts[number] += 1
        if outcome.error is None:
            return
        self._num_errors[number] += 1
        name = self._all[number].name
        self._first_errors.setdefault(name, outcome.error)
        errors, verdicts = self._num_errors[number], self._num_verdicts[number]
        allowed = self._scoring.max_error_rate
        if errors >= MIN_VERDICTS and errors > max(0.5, allowed) * verdicts:
            raise StageError(
                f"{errors} of {verdicts} verdicts of {name} are errors, more than scoring.max_error_rate = {allowed:g} "
                f"allows. {first_errors({name: self._first_errors[name]})}"
            )


def _disagreements(first: Judgement, second: Judgement) -> tuple[str, ...]:
    """Return the constraints that said otherwise the second time: another verdict, another score, or an error."""
    found = []
    for one, other in zip(first.verdicts, second.verdicts, strict=True):
        scores = one["score"], other["score"]
        same = one["passed"] == other["passed"] and (one["error"] is None) == (other["error"] is None)
        if same and isinstance(scores[0], float) and isinstance(scores[1], float):
            same = abs(scores[0] - scores[1]) <= SCORE_TOLERANCE
        if not same:
            found.append(str(one["constraint"]))
    return tuple(found)

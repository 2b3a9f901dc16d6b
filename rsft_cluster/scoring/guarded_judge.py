"""The judge of a scoring actor: constraints in killable processes, with canaries, audits and a circuit breaker."""

from collections.abc import Sequence
from dataclasses import replace

from rsft_cluster.config import ScoringConfig
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.keys import audit_uniform
from rsft_cluster.scoring.canaries import Canaries
from rsft_cluster.scoring.error_limits import CircuitBreaker
from rsft_cluster.scoring.isolation.evaluator import IsolatedEvaluator
from rsft_cluster.scoring.judge import Judge, Judgement

SCORE_TOLERANCE = 1e-6
"""Scores further apart disagree: a model's batch may change the last bits."""


class GuardedJudge:
    """Judges by all constraints of a run, isolated, and checks that they can be trusted.

    Raises StageError when a canary is judged wrongly, also at once, and when most verdicts of a constraint are errors.
    `close` ends the processes; so does the end of this object.
    """

    def __init__(self, scoring: ScoringConfig) -> None:
        self._audit_share = scoring.audit_share
        self._canaries = Canaries(scoring)
        constraints = (*scoring.constraints, *self._canaries.variants)
        breaker = CircuitBreaker([c.name for c in constraints], max_error_rate=scoring.max_error_rate)
        self._evaluator = IsolatedEvaluator(
            constraints,
            num_processes=max(1, round(scoring.num_cpus)),
            memory_bytes=scoring.process_memory_bytes,
            observer=breaker.observe,
        )
        self._judge = Judge(scoring.constraints, self._evaluator)
        self._canaries.check_all(self._judge, self._evaluator)

    def close(self) -> None:
        """End the processes."""
        self._evaluator.close()

    def judge(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement per candidate, in order; a share is judged twice, and canaries after all of them."""
        judgements = _audited(self._judge, candidates, self._audit_share)
        self._canaries.check_some(self._judge, self._evaluator)
        return judgements

    def judge_unaudited(self, candidates: Sequence[Candidate]) -> list[Judgement]:
        """Return one judgement per candidate, in order, without second judgements and canaries."""
        return self._judge.judge(candidates)


def _audited(judge: Judge, candidates: Sequence[Candidate], share: float) -> list[Judgement]:
    """Judge candidates, and a share of them, chosen by their ids, a second time in the same call."""
    audited = [i for i, c in enumerate(candidates) if audit_uniform(c.candidate_id) < share]
    judgements = judge.judge([*candidates, *(candidates[i] for i in audited)])
    judgements, repeated = judgements[: len(candidates)], judgements[len(candidates) :]
    for i, second in zip(audited, repeated, strict=True):
        judgements[i] = replace(judgements[i], audited=True, disagreements=_disagreements(judgements[i], second))
    return judgements


def _disagreements(first: Judgement, second: Judgement) -> tuple[str, ...]:
    """Return the constraints that differ the second time: in what passes, in the score, or in whether they fail."""
    names = []
    for a, b in zip(first.verdicts, second.verdicts, strict=True):
        agree = a.passed == b.passed and (a.error is None) == (b.error is None)
        if agree and a.score is not None and b.score is not None:
            agree = abs(a.score - b.score) <= SCORE_TOLERANCE
        if not agree:
            names.append(a.constraint)
    return tuple(names)

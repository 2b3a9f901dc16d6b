r"""`all_of`, `any_of`, `none_of`: constraints made of constraints.

    use: any_of
    params:
      constraints:
        - {use: pattern, params: {must: '^\d+$'}}
        - {use: choice, params: {options: [none, unknown]}}

The reason names the part that decides. A part that cannot tell raises, and so does the whole: an error is
never taken for a verdict, not even where the other parts would have decided.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from rsft_cluster.config.parts import PluginField
from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.building import build, is_isolated
from rsft_cluster.constraints.outcomes import Outcome, outcomes_of
from rsft_cluster.errors import ConfigError


class _Composed(ABC):
    """Constraints judged together, all in processes that can be killed or all in the scoring actor."""

    def __init__(self, *, constraints: Sequence[PluginField]) -> None:
        if not constraints:
            raise ConfigError("give at least one of constraints")
        self._names = [constraint.use.rpartition(":")[2] for constraint in constraints]
        self._built = [build(part, name=name) for part, name in zip(constraints, self._names, strict=True)]
        self.isolated = is_isolated(self._built[0])
        for name, part in zip(self._names, self._built, strict=True):
            if is_isolated(part) != self.isolated:
                raise ConfigError(
                    f"{name} and {self._names[0]} cannot be composed: one runs in a process that can be killed, the "
                    "other in the scoring actor. List them as constraints of their own"
                )
        self.longest_s = sum(float(getattr(part, "longest_s", 0.0)) for part in self._built)

    def prepare(self) -> None:
        """Prepare the parts."""
        for part in self._built:
            prepare: Callable[[], None] = getattr(part, "prepare", lambda: None)
            prepare()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict | Exception]:
        """Return one verdict per candidate, an error in its place where a part cannot tell."""
        columns = [outcomes_of(part, candidates) for part in self._built]
        return [self._combine(outcomes) for outcomes in zip(*columns, strict=True)]

    def _combine(self, outcomes: Sequence[Outcome]) -> Verdict | Exception:
        verdicts = [outcome.verdict for outcome in outcomes if outcome.verdict is not None]
        if len(verdicts) == len(outcomes):
            return self._decide(verdicts)
        name, failed = next((n, o) for n, o in zip(self._names, outcomes, strict=True) if o.verdict is None)
        return RuntimeError(f"{name} cannot tell: {failed.error or failed.reason}")

    @abstractmethod
    def _decide(self, verdicts: Sequence[Verdict]) -> Verdict:
        """Return the verdict on one candidate, given those of the parts."""

    def _summary(self, i: int, verdicts: Sequence[Verdict]) -> str:
        return f"{self._names[i]}: {verdicts[i].reason or ('passed' if verdicts[i].passed else 'did not pass')}"


class AllOf(_Composed):
    """Pass what every part passes; the score is the lowest of the parts."""

    def _decide(self, verdicts: Sequence[Verdict]) -> Verdict:
        failed = [i for i, verdict in enumerate(verdicts) if not verdict.passed]
        score = min(verdict.score for verdict in verdicts)
        if not failed:
            return Verdict(score, True, f"all of {', '.join(self._names)} passed")
        fatal = [v.fatal_at for v in verdicts if not v.passed and v.fatal_at is not None]
        return Verdict(score, False, self._summary(failed[0], verdicts), min(fatal, default=None))


class AnyOf(_Composed):
    """Pass what at least one part passes; the score is the highest of the parts."""

    def _decide(self, verdicts: Sequence[Verdict]) -> Verdict:
        score = max(verdict.score for verdict in verdicts)
        for i, verdict in enumerate(verdicts):
            if verdict.passed:
                return Verdict(score, True, self._summary(i, verdicts))
        fatal = [v.fatal_at for v in verdicts]
        # Nothing can pass any more only where no part can.
        fatal_at = max(f for f in fatal if f is not None) if None not in fatal else None
        return Verdict(score, False, "; ".join(self._summary(i, verdicts) for i in range(len(verdicts))), fatal_at)


class NoneOf(_Composed):
    """Pass what no part passes; the score is one less the highest of the parts."""

    def _decide(self, verdicts: Sequence[Verdict]) -> Verdict:
        score = 1.0 - max(verdict.score for verdict in verdicts)
        for i, verdict in enumerate(verdicts):
            if verdict.passed:
                return Verdict(score, False, f"passes {self._summary(i, verdicts)}, which it must not")
        return Verdict(score, True, f"passes none of {', '.join(self._names)}")


_DIGITS = {"use": "pattern", "params": {"must": r"^\d+$"}}
_SHORT = {"use": "length", "params": {"max": 3, "unit": "characters"}}
CASES = {
    "AllOf": (
        Case(Candidate("123"), passes=True, params={"constraints": [_DIGITS, _SHORT]}),
        Case(Candidate("1234"), passes=False, params={"constraints": [_DIGITS, _SHORT]}),
    ),
    "AnyOf": (
        Case(Candidate("1234"), passes=True, params={"constraints": [_DIGITS, _SHORT]}),
        Case(Candidate("four"), passes=False, params={"constraints": [_DIGITS, _SHORT]}),
    ),
    "NoneOf": (
        Case(Candidate("four"), passes=True, params={"constraints": [_DIGITS, _SHORT]}),
        Case(Candidate("1234"), passes=False, params={"constraints": [_DIGITS, _SHORT]}),
    ),
}

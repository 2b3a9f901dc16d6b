"""`finished`: the policy ended the completion itself.

A completion that was cut off at the token limit never passes, whatever its text looks like: training on it
would teach the policy to stop in the middle, or never to stop.
"""

from rsft_cluster.constraints.base import Candidate, Case, Verdict


def finished(candidate: Candidate) -> Verdict:
    """Pass exactly the candidates whose finish reason is `stop`."""
    if candidate.finish_reason == "stop":
        return Verdict.of(True, "ended by the policy")
    return Verdict.of(False, f"cut off after {candidate.num_tokens} tokens (finish reason {candidate.finish_reason!r})")


CASES = (
    Case(Candidate("#### 5", finish_reason="stop"), passes=True),
    Case(Candidate("#### 5 and al", finish_reason="length"), passes=False),
)

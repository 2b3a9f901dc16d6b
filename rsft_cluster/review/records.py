"""Records of what is made of a sealed round afterwards: scorings, decisions, previews, trust reports."""

from rsft_cluster.records import FileRef, Record


class Settings(Record):
    """What a name stands for from its beginning on. Written first."""

    settings: dict[str, object]


class Scoring(Record):
    """A scoring of a sealed round's candidates, made after its seal. Written last."""

    name: str
    settings: dict[str, object]
    """Dotted keys of `scoring` and `acceptance`, and a digest of the candidates."""
    scores: tuple[FileRef, ...]
    """In the order of the manifest's candidates."""
    num_candidates: int
    num_passed: int
    num_accepted: int
    num_verdicts: int
    num_errors: int
    chosen: dict[str, float]


class ConstraintChange(Record):
    """How one constraint judged before and judges now; None where it was not, or is not, among them."""

    constraint: str
    num_passed_before: int | None
    num_passed_after: int | None
    num_gained: int = 0
    """Candidates that it passes now and did not."""
    num_lost: int = 0


class Rejudged(Record):
    """What another scoring says, against what the sealed one said. Errors count as not passed."""

    num_candidates: int
    num_passed_before: int
    num_passed_after: int
    num_errors_before: int
    """Candidates that could not be judged."""
    num_errors_after: int
    num_gained: int
    num_lost: int
    gained: tuple[str, ...]
    """Some candidates that pass now and did not."""
    lost: tuple[str, ...]
    constraints: tuple[ConstraintChange, ...]


class Funnel(Record):
    """How many candidates are left after each step of a decision."""

    num_prompts: int
    num_candidates: int = 0
    num_judged: int = 0
    """Without those that a constraint failed to judge."""
    num_passed: int = 0
    num_drawn: int = 0
    """Those whose u is below their probability."""
    num_distinct: int = 0
    """Those of them that repeat no other one of their prompt."""
    num_within_caps: int = 0
    num_accepted: int = 0
    """Without the prompts that `drop_all_passed` leaves out."""
    num_prompts_accepted: int = 0


class Change(Record):
    """What is kept, against what the sealed decision kept."""

    num_before: int = 0
    num_after: int = 0
    num_both: int = 0
    gained: tuple[str, ...] = ()
    """Some candidates that are kept now and were not."""
    lost: tuple[str, ...] = ()
    """Some that were kept and are not now."""


class DecisionSet(Record):
    """A decision on a sealed round, made after its seal. Written last."""

    name: str
    round: int
    scoring: str
    settings: dict[str, object]
    """Dotted keys of `acceptance`, and digests of what was decided on."""
    target: str
    accepted: tuple[FileRef, ...]
    """ACCEPTED rows; files that would be empty are not written."""
    funnel: Funnel
    change: Change
    reasons: dict[str, int]
    """Why candidates were rejected; digits folded, and of the judgement the constraint alone."""
    chosen: dict[str, float]


class Forecast(Record):
    """What one setting would keep."""

    setting: str
    is_current: bool
    num_accepted: int
    acceptance_rate: float
    """Of all candidates."""
    num_prompts_accepted: int
    prompt_coverage: float
    """Share of the round's prompts with something kept."""
    mean_score: float | None
    mean_tokens: float | None


class Histogram(Record):
    """Counts of candidates by a figure: in bin i those from edge i up to edge i + 1, in the last bin that one too."""

    edges: tuple[float, ...]
    kept: tuple[int, ...]
    """By the current setting."""
    passed: tuple[int, ...]
    """Passed and not kept."""
    failed: tuple[int, ...]
    """Judged and not passed, and not kept."""


class Preview(Record):
    """What other settings would keep of a round."""

    round: int
    scoring: str
    num_prompts: int
    num_candidates: int
    forecasts: tuple[Forecast, ...]
    scores: Histogram
    lengths: Histogram
    """In tokens."""


class ConstraintTrust(Record):
    """How one constraint does. Rates and times are of the candidates that it had to judge."""

    constraint: str
    required: bool
    num_verdicts: int
    num_inapplicable: int
    """Prompts' candidates that it has nothing to say of."""
    pass_rate: float | None
    """Of its verdicts."""
    error_rate: float
    num_timeouts: int
    mean_s: float
    p95_s: float
    max_s: float
    time_share: float
    """Of the time that all constraints took."""
    length_correlation: float | None
    """Spearman's, of score and tokens; None where either is constant."""
    num_rejected_alone: int
    """Candidates that pass every other required constraint."""
    rejected_alone_rate: float


class Agreement(Record):
    """How far two constraints say the same of the candidates that both judged."""

    first: str
    second: str
    num_both: int
    agreement: float | None
    kappa: float | None
    """Cohen's (1960); None where one of them is constant, so that chance explains everything."""


class TrustReport(Record):
    """How far the constraints of a round can be trusted."""

    round: int
    scoring: str
    num_candidates: int
    num_sampled: int
    """Candidates that correlations and percentiles rest on."""
    constraints: tuple[ConstraintTrust, ...]
    agreements: tuple[Agreement, ...]
    warnings: tuple[str, ...]

"""Small frozen records that stages publish as JSON: plans, manifests, evaluations, decisions.

They know nothing about storage. `to_json` is canonical (sorted keys), so equal records have equal digests.
"""

import json
from typing import Self

from pydantic import BaseModel, ConfigDict

from rsft_cluster.config import AdaptiveConfig


class Record(BaseModel):
    """Base of all records: immutable, strict about unknown keys, canonical as JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_json(self) -> bytes:
        """Return canonical UTF-8 JSON, the same bytes for equal records."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=False, sort_keys=True, indent=1).encode()

    @classmethod
    def from_json(cls, payload: bytes) -> Self:
        """Parse what `to_json` wrote."""
        return cls.model_validate_json(payload)


class FileRef(Record):
    """A file that a commit or a manifest vouches for."""

    path: str
    """Relative to the run's folder."""
    num_bytes: int
    sha256: str
    num_rows: int


class PolicyRef(Record):
    """A version of the policy: where its files lie and what they are."""

    name: str
    """`round-0003`; the policy that a run starts from is `round-0000`."""
    uri: str
    """A Hugging Face model folder, or a hub id with its revision in `revision`."""
    revision: str | None = None
    adapter: str | None = None
    """A folder with a LoRA adapter; only the policy that a run starts from may have one."""
    digest: str
    """Over the weights and the tokenizer files, for a hub id over id and revision, and over the adapter's files."""


class Pass(Record):
    """One way in which every prompt of a plan is answered: how often, and with which decoding."""

    num_candidates: int
    temperature: float
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    max_tokens: int
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    batch_size: int
    independent_rows: bool = False
    adaptive: AdaptiveConfig | None = None


class Plan(Record):
    """What one collection will do: written once, before the first unit."""

    round: int
    stream: str
    """Names the random stream of every candidate; the same for all evaluations of a run, so that they pair."""
    seed: int
    policy: PolicyRef
    passes: tuple[Pass, ...]
    prompts: str
    """Parquet file of the prompts, relative to the run's folder; a row group holds whole units."""
    num_prompts: int
    num_units: int
    fingerprint: str
    wave: int = 0
    """Number of the first pass, where a round samples in waves."""

    @property
    def adaptive(self) -> AdaptiveConfig | None:
        """How rejections are remembered while sampling, in whichever pass they are."""
        return next((way.adaptive for way in self.passes if way.adaptive is not None), None)


class Unit(Record):
    """A fixed, ordered batch of prompts: what is sampled, retried and committed as a whole."""

    unit: str
    path: str
    """Parquet file of PROMPT rows, relative to the run's folder."""
    row_group: int
    start: int = 0
    """First row within the row group."""
    num_prompts: int


class PromptState(Record):
    """What became of one prompt of a unit."""

    prompt_id: str
    state: str
    """`accepted`, `unaccepted` or `quarantined`."""
    reason: str = ""
    num_candidates: int = 0
    num_passed: int = 0
    num_accepted: int = 0


class Commit(Record):
    """One finished attempt at a unit: written last, after all its files."""

    unit: str
    attempt: str
    content: str
    """Digest of what was sampled and decided; equal for equal outcomes, whatever the attempt."""
    candidates: FileRef | None
    scores: FileRef | None
    accepted: FileRef | None
    prompts: tuple[PromptState, ...]
    num_tokens: int = 0
    num_verdicts: int = 0
    num_errors: int = 0
    """Verdicts that are errors, over all candidates and constraints."""
    num_audited: int = 0
    """Candidates judged twice."""
    disagreements: dict[str, int] = {}
    """How many of those each constraint judged otherwise the second time."""
    sampled_on: str = ""
    """Host that sampled the unit: where odd results come from one machine, this tells which."""
    judged_on: str = ""
    """Host that judged and committed it."""
    remarks: tuple[str, ...] = ()
    """What the generator said about how it decodes."""


class Totals(Record):
    """Counts of one sealed collection. The conservation law is checked on these."""

    num_prompts: int
    num_prompts_accepted: int
    num_prompts_unaccepted: int
    num_prompts_quarantined: int
    num_prompts_skipped: int = 0
    """Not asked: solved in an earlier round, or left out when the run's budget was spent."""
    num_solved: int
    """Prompts with a passing candidate."""
    num_candidates: int
    num_decided: int
    """Candidates that stand in a prompt's count of kept and rejected ones."""
    num_passed: int
    num_accepted: int
    num_tokens: int
    num_verdicts: int
    num_errors: int
    num_audited: int = 0
    """Candidates judged twice."""
    disagreements: dict[str, int] = {}
    """How many of those each constraint judged otherwise the second time."""

    def describe_audit(self) -> str:
        """Return in words how often constraints said otherwise when they were asked twice."""
        said = [f"{name} said otherwise of {count:,}" for name, count in sorted(self.disagreements.items())]
        return f"{self.num_audited:,} candidates judged twice: " + (", ".join(said) or "no constraint said otherwise")

    def violations(self) -> list[str]:
        """Return what is inconsistent, in words; empty when every prompt and candidate is accounted for."""
        found = []
        asked = self.num_prompts_accepted + self.num_prompts_unaccepted + self.num_prompts_quarantined
        states = asked + self.num_prompts_skipped
        if states != self.num_prompts:
            found.append(f"{self.num_prompts} prompts planned, {states} accounted for")
        if self.num_decided != self.num_candidates:
            found.append(f"{self.num_candidates} candidates sampled, {self.num_decided} decided on")
        return found


class Manifest(Record):
    """The sealed record of a collection: one attempt a unit, every file with its checksum."""

    round: int
    policy: PolicyRef
    fingerprint: str
    rule: str
    """The acceptance rule and the distribution that it targets, in words."""
    units: tuple[str, ...]
    candidates: tuple[FileRef, ...]
    scores: tuple[FileRef, ...]
    accepted: tuple[FileRef, ...]
    totals: Totals
    accepted_digest: str
    """Over the sorted accepted candidate ids: equal for equal accepted sets."""
    content: str
    """Over the units' contents: equal for equal outcomes, whatever was retried on the way."""
    processors: tuple[str, ...] = ()
    """What shapes the next-token distribution, in order; empty when the policy itself was sampled."""
    generator: str
    """What sampled, with its parameters."""
    remarks: tuple[str, ...] = ()
    """What the generators said about how they decode: a slower way, another type of numbers."""
    num_waves: int = 1
    chosen: dict[str, float] = {}
    """Numbers that the decision rests on and that were found by looking at the whole round, like beta."""


class Evaluation(Record):
    """How a policy did on held-out prompts."""

    policy: PolicyRef
    num_prompts: int
    num_samples: int
    greedy_accuracy: float
    """Share of prompts whose greedy answer passed."""
    pass_at_1: float
    pass_at_k: float
    """Unbiased estimate (Chen et al. 2021, equation 1)."""
    k: int
    mean_score: float
    mean_tokens: float
    distinct_2: float
    """Distinct ÷ all token bigrams over the sampled completions."""
    self_bleu: float
    """Mean BLEU of a completion against the others of its prompt: 1 when all are the same."""
    entropy: float
    """Nats a token: minus the mean log-probability of sampled tokens under the policy."""
    num_errors: int
    per_prompt: FileRef
    """A row a prompt: what the promotion rule compares."""


class Estimate(Record):
    """A figure, and the 95 % percentile interval of its bootstrap."""

    value: float
    low: float
    high: float


class Gap(Record):
    """How far a rate differs between two groups: the one where it is highest and the one where it is lowest."""

    highest: str
    lowest: str
    difference: Estimate
    """Of the two rates. The groups stay the same over the bootstrap, so the interval may reach below 0."""
    ratio: Estimate | None
    """Lowest ÷ highest; below 0.8 it breaks the four-fifths rule. None where the highest is 0."""


class GroupFigures(Record):
    """How a group fares; None where nobody of it is known to have that merit."""

    group: str
    num_decisions: int
    selection_rate: Estimate | None
    true_positive_rate: Estimate | None
    """Of those who merit the positive decision, the share that got it."""
    false_positive_rate: Estimate | None
    """Of those who do not, the share that got it all the same."""


class AttributeFigures(Record):
    """How the values of one protected attribute fare, or all combinations of them; gaps are None with one group."""

    attribute: str
    groups: tuple[GroupFigures, ...]
    selection: Gap | None
    true_positives: Gap | None
    false_positives: Gap | None


class DecisionFigures(Record):
    """What was decided, for whom, and how right it was."""

    num_decisions: int
    num_undecided: int
    """Completions in which no decision was found: nobody is selected by them."""
    selection_rate: Estimate
    merit_accuracy: Estimate | None
    """Share of decisions that are the merited ones; None where merit is not known."""
    flip_rate: Estimate | None
    """Share of swaps of one prompt that were not all decided alike; None without swaps."""
    attributes: tuple[AttributeFigures, ...]


class FairnessReport(Record):
    """Decisions of a policy on held-out prompts by protected values."""

    positive: str
    greedy: DecisionFigures
    sampled: DecisionFigures


class Decision(Record):
    """Whether the challenger replaces the incumbent, and why."""

    promoted: bool
    reason: str
    incumbent: str = ""
    challenger: str = ""
    metric: str
    incumbent_value: float
    challenger_value: float
    difference_low: float
    difference_high: float
    alarms: tuple[str, ...] = ()
    """What the health monitors say of the challenger."""


class Promotion(Record):
    """One entry of the append-only promotions log."""

    number: int
    action: str
    """`start`, `promote`, `keep` or `rollback`."""
    policy: PolicyRef
    """The policy that is current from here on."""
    reason: str
    round: int
    epoch: int
    """Fencing epoch of the lease under which the entry was written."""


class PilotChoice(Record):
    """What a pilot chose for a round, and on what grounds."""

    temperature: float
    min_score: float | None
    num_prompts: int
    balance: tuple[tuple[float, float | None, float], ...]
    """(temperature, min_score, balance score) of every combination that was tried."""


class AuditHead(Record):
    """The end of a round's chain of audit lines: whoever has it can tell whether a line was changed, added or lost."""

    round: int
    num_lines: int
    head: str
    """Hash of the last line, which depends on all lines before it and on the round before."""
    sealed_at: str
    """UTC, ISO 8601."""
    form: int = 1
    """Of the lines: what they hold, so that they can be made again."""


class TrainingResult(Record):
    """What a training stage publishes beside the model: the model is whole once this stands."""

    policy: PolicyRef
    started_from: str
    """Name of the policy that training began with."""
    num_examples: int
    num_replayed: int
    num_steps: int
    first_loss: float
    final_loss: float


class PromptSet(Record):
    """What one prompt source gave, and where its prompts stand."""

    path: str
    """Parquet file of PROMPT rows; a row group holds whole units."""
    num_lines: int
    num_prompts: int
    num_duplicates: int
    num_bad: int
    content: str
    """Digest over the prompt ids in order."""

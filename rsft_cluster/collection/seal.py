"""The seal of a collection: one attempt a unit, every file vouched for, every prompt accounted for."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow.compute as pc

from rsft_cluster.collection.plan import planned_units, survey
from rsft_cluster.errors import StageError, StoreError
from rsft_cluster.prompts.digests import digests_of
from rsft_cluster.records import Commit, FileRef, Manifest, Plan, Totals, Unit
from rsft_cluster.sampling.unit_sampler import decoding_of
from rsft_cluster.schemas import digest
from rsft_cluster.store.layout import Folder

IDS_AT_ONCE = 1 << 16
COUNTED = (
    "num_solved", "num_candidates", "num_decided", "num_passed", "num_accepted",
    "num_tokens", "num_verdicts", "num_errors", "num_audited",
)  # fmt: skip


def seal(folder: Folder, plan: Plan, *, target: str, generator: str) -> Manifest:
    """Choose one commit a unit and return the manifest over them.

    Raises StageError where a unit is missing or the conservation law is violated, StoreError where a listed file is
    not there in full. The choice depends on the files alone, so everybody who seals writes the same.
    """
    found = _Found()
    for _, commit in sealed_units(folder, plan):
        found.add(commit)
    for ref in (*found.candidates, *found.scores, *found.accepted):
        _check_there(folder, ref)
    totals = checked(folder, found.totals(plan.num_prompts))
    return Manifest(
        round=plan.round,
        policy=plan.policy,
        fingerprint=plan.fingerprint,
        rule=target,
        units=tuple(unit for unit, _ in found.contents),
        candidates=tuple(found.candidates),
        scores=tuple(found.scores),
        accepted=tuple(found.accepted),
        totals=totals,
        accepted_digest=accepted_digest(folder, found.accepted),
        content=digest(found.contents),
        processors=tuple(sorted({text for way in plan.passes for text in decoding_of(way).processors()})),
        generator=generator,
        remarks=tuple(sorted(found.remarks)),
    )


def checked(folder: Folder, totals: Totals) -> Totals:
    """Return the totals of a collection; StageError where they violate the conservation law."""
    if totals.violations():
        raise StageError(f"{folder.store.uri_of(folder.path)}: " + "; ".join(totals.violations()))
    return totals


def sealed_units(folder: Folder, plan: Plan, manifest: Manifest | None = None) -> Iterator[tuple[Unit, Commit]]:
    """Yield every unit of a plan, in order, with the commit that counts; StageError where one has none.

    With a manifest that is the one whose files it lists: what a straggler commits after the seal counts for nothing.
    """
    state = survey(folder)
    listed = {ref.path for ref in manifest.candidates} if manifest else None
    for planned in planned_units(folder, plan):
        for unit in state.leaves(planned):
            if unit.unit not in state.commits:
                raise StageError(f"{folder.store.uri_of(folder.path)}: unit {unit.unit} has no commit; cannot seal")
            yield unit, counting(folder, state.commits[unit.unit], listed)


def counting(folder: Folder, paths: Sequence[str], listed: Collection[str] | None) -> Commit:
    """Return the commit of a unit that counts: the one whose candidates are listed, else the first."""
    first = folder.store.read_record(paths[0], Commit)
    if listed is None or len(paths) == 1:
        return first
    commits = (folder.store.read_record(path, Commit) for path in paths)
    return next((c for c in commits if c.candidates is not None and c.candidates.path in listed), first)


def reasons(folder: Folder, manifest: Manifest) -> Counter[str]:
    """Return how often each reason stands behind a rejection, digits folded so that like reasons count as one."""
    found: Counter[str] = Counter()
    for ref in manifest.scores:
        table = folder.store.read_table(ref, columns=["reason", "accepted"])
        rejected = table.filter(pc.invert(table.column("accepted"))).column("reason")
        folded = pc.replace_substring_regex(rejected, pattern=r"\d+(\.\d+)?", replacement="#")
        found.update({str(r["values"]): int(r["counts"]) for r in pc.value_counts(folded).to_pylist()})
    return found


def _check_there(folder: Folder, ref: FileRef) -> None:
    size = folder.store.size(ref.path)
    if size != ref.num_bytes:
        found = "missing" if size is None else f"{size} bytes long"
        raise StoreError(f"{folder.store.uri_of(ref.path)}: is {found}; its commit vouches for {ref.num_bytes} bytes")


class _Found:
    """What the commits of a collection say, added up one by one: those of all prompts together fill no memory."""

    def __init__(self) -> None:
        self.contents: list[list[str]] = []
        """Of each unit, its name and its content."""
        self.candidates: list[FileRef] = []
        self.scores: list[FileRef] = []
        self.accepted: list[FileRef] = []
        self.remarks: set[str] = set()
        self._states: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()
        self._disagreements: Counter[str] = Counter()

    def add(self, commit: Commit) -> None:
        """Take a commit in."""
        self.contents.append([commit.unit, commit.content])
        for part in ("candidates", "scores", "accepted"):
            ref = getattr(commit, part)
            if ref is not None:
                getattr(self, part).append(ref)
        self._states.update(p.state for p in commit.prompts)
        self._counts["num_solved"] += sum(p.num_passed > 0 for p in commit.prompts)
        self._counts["num_decided"] += sum(p.num_candidates for p in commit.prompts)
        self._counts["num_passed"] += sum(p.num_passed for p in commit.prompts)
        self._counts["num_accepted"] += sum(p.num_accepted for p in commit.prompts)
        self._counts["num_candidates"] += commit.candidates.num_rows if commit.candidates else 0
        for name in ("num_tokens", "num_verdicts", "num_errors", "num_audited"):
            self._counts[name] += getattr(commit, name)
        self._disagreements.update(commit.disagreements)
        self.remarks.update(commit.remarks)

    def totals(self, num_prompts: int) -> Totals:
        """Return the sums, of a plan of so many prompts."""
        counts = {name: self._counts[name] for name in COUNTED}
        return Totals(
            num_prompts=num_prompts,
            num_prompts_accepted=self._states["accepted"],
            num_prompts_unaccepted=self._states["unaccepted"],
            num_prompts_quarantined=self._states["quarantined"],
            disagreements=dict(self._disagreements),
            **counts,
        )


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def accepted_digest(folder: Folder, accepted: Sequence[FileRef]) -> str:
    """Return a digest of the accepted candidates' ids, in whatever order they stand in the files.

    That of the sorted ids, as `schemas.digest` makes it; 16 bytes an id are held.
    """
    tables = (folder.store.read_table(ref, columns=["candidate_id"]) for ref in accepted if ref.num_rows)
    parts = [digests_of(table.column(0).to_pylist()) for table in tables]
    ids = np.sort(np.concatenate(parts)) if parts else np.empty(0, dtype="S16")
    whole = hashlib.sha256(b"[[")
    for start in range(0, len(ids), IDS_AT_ONCE):
        text = ids[start : start + IDS_AT_ONCE].tobytes().hex()
        quoted = ",".join(f'"{text[i : i + 32]}"' for i in range(0, len(text), 32))
        whole.update((f",{quoted}" if start else quoted).encode())
    whole.update(b"]]")
    return whole.hexdigest()[:32]

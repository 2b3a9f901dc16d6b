"""The seal of a collection: one attempt a unit, every file vouched for, every prompt accounted for."""

# pyright: reportAttributeAccessIssue=false
# pyarrow makes the functions of pyarrow.compute when it is imported, where a type checker does not see them.

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

import pyarrow.compute as pc

from rsft_cluster.collection.plan import Folder, planned_units, survey
from rsft_cluster.errors import StageError, StoreError
from rsft_cluster.records import Commit, FileRef, Manifest, Plan, Totals, Unit
from rsft_cluster.sampling import decoding_of
from rsft_cluster.schemas import digest


def seal(folder: Folder, plan: Plan, *, target: str, generator: str) -> Manifest:
    """Choose one commit a unit and return the manifest over them.

    Raises StageError where a unit is missing or the conservation law is violated, StoreError where a listed file is
    not there in full. The choice depends on the files alone, so everybody who seals writes the same.
    """
    commits = [commit for _, commit in sealed_units(folder, plan)]
    for ref in _files(commits, "candidates") + _files(commits, "scores") + _files(commits, "accepted"):
        _check_there(folder, ref)
    totals = checked(folder, _totals(commits, plan))
    return Manifest(
        round=plan.round,
        policy=plan.policy,
        fingerprint=plan.fingerprint,
        rule=target,
        units=tuple(c.unit for c in commits),
        candidates=_files(commits, "candidates"),
        scores=_files(commits, "scores"),
        accepted=_files(commits, "accepted"),
        totals=totals,
        accepted_digest=accepted_digest(folder, _files(commits, "accepted")),
        content=digest([[c.unit, c.content] for c in commits]),
        processors=tuple(sorted({text for way in plan.passes for text in decoding_of(way).processors()})),
        generator=generator,
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


def _files(commits: list[Commit], part: str) -> tuple[FileRef, ...]:
    return tuple(ref for c in commits if (ref := getattr(c, part)) is not None)


def _check_there(folder: Folder, ref: FileRef) -> None:
    size = folder.store.size(ref.path)
    if size != ref.num_bytes:
        found = "missing" if size is None else f"{size} bytes long"
        raise StoreError(f"{folder.store.uri_of(ref.path)}: is {found}; its commit vouches for {ref.num_bytes} bytes")


def _totals(commits: list[Commit], plan: Plan) -> Totals:
    states = [p for c in commits for p in c.prompts]
    by_state = Counter(p.state for p in states)
    return Totals(
        num_prompts=plan.num_prompts,
        num_prompts_accepted=by_state["accepted"],
        num_prompts_unaccepted=by_state["unaccepted"],
        num_prompts_quarantined=by_state["quarantined"],
        num_solved=sum(p.num_passed > 0 for p in states),
        num_candidates=sum(c.candidates.num_rows for c in commits if c.candidates),
        num_decided=sum(p.num_candidates for p in states),
        num_passed=sum(p.num_passed for p in states),
        num_accepted=sum(p.num_accepted for p in states),
        num_tokens=sum(c.num_tokens for c in commits),
        num_verdicts=sum(c.num_verdicts for c in commits),
        num_errors=sum(c.num_errors for c in commits),
        num_audited=sum(c.num_audited for c in commits),
        disagreements=added(c.disagreements for c in commits),
    )


def added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    """Return the sums of counts by name."""
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def accepted_digest(folder: Folder, accepted: Sequence[FileRef]) -> str:
    """Return a digest of the accepted candidates' ids, in whatever order they stand in the files."""
    ids: list[str] = []
    for ref in accepted:
        ids += folder.store.read_table(ref, columns=["candidate_id"]).column(0).to_pylist()
    return digest(sorted(ids))

"""The commit protocol without a cluster: every point where a process can die, zombies, damage, poison.

Adversarially checked: whatever happens before, the sealed outcome equals that of an undisturbed collection.
"""

import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from collecting import collection

from rsft_cluster.collection.plan import Survey, halves, is_done, planned_units, quarantine, split, survey
from rsft_cluster.collection.seal import reasons, seal
from rsft_cluster.config import AcceptanceConfig
from rsft_cluster.errors import StageError, StoreError
from rsft_cluster.generators.base import Refusal
from rsft_cluster.generators.scripted import ScriptedGenerator
from rsft_cluster.records import Unit
from rsft_cluster.schemas import ACCEPTED, CANDIDATE, SCORE, conform
from rsft_cluster.store import Store


class Died(BaseException):
    """Stands for SIGKILL: nothing may catch it."""


class Mortal(Store):
    """A store whose process dies at the n-th file operation, before it or in the middle of it."""

    left = 10**9
    torn = False

    def _tick(self, path, payload):
        Mortal.left -= 1
        if Mortal.left == 0:
            if Mortal.torn:
                aside = Path(f"{self.root}/{path}").with_name(".aside-dead")
                aside.parent.mkdir(parents=True, exist_ok=True)
                aside.write_bytes(payload[: len(payload) // 2])
            raise Died

    def write(self, path, payload):
        self._tick(path, payload)
        super().write(path, payload)

    def create(self, path, payload):
        self._tick(path, payload)
        return super().create(path, payload)


@pytest.fixture
def undisturbed(tmp_path):
    return collection(tmp_path / "undisturbed").finish()


def test_the_sealed_record_accounts_for_every_prompt_and_candidate(undisturbed):
    totals = undisturbed.totals
    assert totals.num_prompts == 10
    assert totals.num_candidates == totals.num_decided == 40
    assert 0 < totals.num_accepted == totals.num_passed < 40
    assert totals.num_prompts_accepted + totals.num_prompts_unaccepted == 10


def test_every_file_has_its_schema(tmp_path):
    made = collection(tmp_path)
    manifest = made.finish()
    for part, schema in (("candidates", CANDIDATE), ("scores", SCORE), ("accepted", ACCEPTED)):
        for ref in getattr(manifest, part):
            found = made.folder.store.read_table(ref)
            assert conform(found, schema).schema.equals(schema, check_metadata=True)
            assert found.schema.metadata == schema.metadata


def test_accepted_samples_stand_before_the_other_units_are_sampled(tmp_path):
    made = collection(tmp_path)
    first = made.units()[0]
    row = made.do(first)
    (path,) = made.folder.store.files("rounds/0001/accepted")
    assert path.startswith(f"rounds/0001/accepted/{first.unit}.")
    assert row["num_accepted"] > 0


@pytest.mark.parametrize("torn", [False, True])
def test_death_at_every_file_operation_changes_nothing_in_the_outcome(tmp_path, undisturbed, monkeypatch, torn):
    monkeypatch.setattr("rsft_cluster.collection.actors.Store", Mortal)
    monkeypatch.setattr(Mortal, "torn", torn)
    num_deaths = 0
    for operation in range(1, 100):
        made = collection(tmp_path / f"{operation}")
        monkeypatch.setattr(Mortal, "left", operation)
        try:
            made.do(made.units()[1])
        except Died:
            num_deaths += 1
        monkeypatch.setattr(Mortal, "left", 10**9)
        manifest = collection_again(made).finish()
        assert manifest.content == undisturbed.content
        assert manifest.accepted_digest == undisturbed.accepted_digest
        if Mortal.left > 10**8 and num_deaths < operation:
            break
    assert num_deaths == 5  # attempt marker, three tables, commit


def collection_again(made):
    """The same collection as a later session sees it."""
    return replace(made, work=replace(made.work, session="t" * 12))


def test_units_done_together_are_committed_one_by_one_and_equal_those_done_alone(tmp_path, undisturbed):
    made = collection(tmp_path / "together")
    rows = made.do_together(made.units())
    assert [row["unit"] for row in rows] == [unit.unit for unit in made.units()]
    assert [row["num_prompts"] for row in rows] == [4, 4, 2]
    assert len(made.folder.store.files(made.folder.at("commits"))) == 3
    assert made.finish().content == undisturbed.content


def test_a_unit_is_finished_once_though_a_prompt_of_it_is_refused(tmp_path, monkeypatch):
    made = collection(tmp_path)
    twice = made.work.plan.model_copy(update={"passes": made.work.plan.passes * 2})
    made.work = replace(made.work, plan=twice)
    asked = []

    def refusing(self, prompts, decoding, keys):
        asked.append(len(prompts))
        for answer in original(self, prompts, decoding, keys):
            is_refused = prompts[answer.prompt].reference == "2"
            yield Refusal(answer.prompt, "no") if is_refused else answer

    original = ScriptedGenerator.generate
    monkeypatch.setattr(ScriptedGenerator, "generate", refusing)
    rows = made.do_together(made.units())
    assert [row["unit"] for row in rows] == [unit.unit for unit in made.units()]
    assert [row["num_candidates"] for row in rows] == [24, 32, 16]
    assert asked == [10, 9]


@pytest.mark.parametrize("fault", ["twice", "index"])
def test_an_answer_too_many_fails_the_unit_that_is_not_out_yet(tmp_path, monkeypatch, fault):
    made = collection(tmp_path)
    original = ScriptedGenerator.generate

    def faulty(self, prompts, decoding, keys):
        answers = list(original(self, prompts, decoding, keys))
        yield from answers[:-1]
        yield answers[-1] if fault == "twice" else replace(answers[-1], index=-1)
        if fault == "twice":
            yield answers[-1]

    monkeypatch.setattr(ScriptedGenerator, "generate", faulty)
    *_, last = made.do_together(made.units())
    said = {"twice": b"twice", "index": b"with index -1 of 4 candidates"}
    assert said[fault] in last["failure"]


def test_a_generator_that_fails_in_the_second_of_three_units_costs_the_units_that_were_not_finished(
    tmp_path, monkeypatch
):
    made = collection(tmp_path / "failing")
    original = ScriptedGenerator.generate

    def failing(self, prompts, decoding, keys):
        for answer in original(self, prompts, decoding, keys):
            if answer.prompt == 5:
                raise ValueError("prompt 5 is poison")
            yield answer

    monkeypatch.setattr(ScriptedGenerator, "generate", failing)
    first, *others = made.do_together(made.units())
    assert first["failure"] is None
    assert all(b"prompt 5 is poison" in row["failure"] for row in others)
    state = survey(made.folder)
    assert [is_done(state, unit.unit, session=made.work.session) for unit in made.units()] == [True, False, False]
    assert [state.num_crashes(unit.unit, made.work.session) for unit in made.units()[1:]] == [1, 1]


def test_a_unit_done_twice_counts_once(tmp_path, undisturbed):
    made = collection(tmp_path)
    for unit in [*made.units(), *made.units()]:
        made.do(unit)
    manifest = seal(made.folder, made.work.plan, target="test", generator="scripted()")
    assert manifest.content == undisturbed.content
    assert len(made.folder.store.files("rounds/0001/commits")) == 2 * len(made.units())


def test_everybody_who_seals_writes_the_same(tmp_path):
    made = collection(tmp_path)
    for unit in [*made.units(), *made.units()]:
        made.do(unit)
    assert seal(made.folder, made.work.plan, target="t", generator="scripted()") == seal(
        made.folder, made.work.plan, target="t", generator="scripted()"
    )


def test_a_zombie_that_commits_after_the_seal_is_not_listed(tmp_path):
    made = collection(tmp_path)
    manifest = made.finish()
    made.folder.store.create(made.folder.manifest, manifest.to_json())
    made.do(made.units()[0])
    assert not made.folder.store.create(made.folder.manifest, b"another")
    listed = {ref.path for ref in manifest.candidates}
    assert len(made.folder.store.files("rounds/0001/candidates")) == len(listed) + 1


def test_a_missing_unit_cannot_be_sealed(tmp_path):
    made = collection(tmp_path)
    made.do(made.units()[0])
    with pytest.raises(StageError, match="unit 0000001 has no commit"):
        seal(made.folder, made.work.plan, target="test", generator="scripted()")


def test_a_listed_file_that_is_gone_or_short_cannot_be_sealed(tmp_path):
    made = collection(tmp_path)
    manifest = made.finish()
    path = manifest.accepted[0].path
    whole = made.folder.store.read(path)
    made.folder.store.write(path, whole[:-1])
    with pytest.raises(StoreError, match="bytes long; its commit vouches for"):
        seal(made.folder, made.work.plan, target="test", generator="scripted()")
    Path(f"{made.folder.store.root}/{path}").unlink()
    with pytest.raises(StoreError, match="is missing"):
        seal(made.folder, made.work.plan, target="test", generator="scripted()")


def test_the_unit_size_does_not_change_what_is_accepted(tmp_path):
    digests = {
        size: collection(tmp_path / str(size), unit_size=size).finish().accepted_digest for size in (1, 3, 4, 10)
    }
    assert len(set(digests.values())) == 1


def test_another_seed_accepts_something_else(tmp_path, undisturbed):
    assert collection(tmp_path / "other", seed=1).finish().accepted_digest != undisturbed.accepted_digest


def _crashing(begun, *, failed=()):
    return Survey({}, {"u": Counter(begun)}, {("u", s) for s in failed}, set())


def test_the_last_attempt_of_a_dead_session_is_excused_and_those_before_are_not():
    assert _crashing({"old": 1}).num_crashes("u", "now") == 0
    assert _crashing({"old": 3}).num_crashes("u", "now") == 2
    assert _crashing({"old": 1, "older": 1, "now": 2}).num_crashes("u", "now") == 2


def test_a_reported_failure_counts_whoever_watched():
    assert _crashing({"old": 1}, failed=["old"]).num_crashes("u", "now") == 1


def test_a_unit_that_kills_every_driver_is_counted_in_the_end():
    assert _crashing({f"s{i}": 1 for i in range(12)}).num_crashes("u", "now") == 12


def test_halving_ends_at_single_prompts_and_loses_none():
    def singles(unit):
        if unit.num_prompts == 1:
            return [unit]
        return [s for half in halves(unit) for s in singles(half)]

    found = singles(Unit(unit="7", path="p", row_group=0, num_prompts=13))
    assert sorted(u.start for u in found) == list(range(13))


def test_a_split_unit_and_a_quarantined_prompt_are_sealed_whole(tmp_path):
    made = collection(tmp_path)
    unit = made.units()[0]
    split(made.folder, unit, num_crashes=3)
    left, right = halves(unit)
    split(made.folder, left, num_crashes=2)
    poison, healthy = halves(left)
    quarantine(made.folder, poison, num_crashes=2)
    for each in (right, healthy):
        made.do(each)
    manifest = made.finish()
    assert manifest.totals.num_prompts_quarantined == 1
    assert manifest.totals.num_candidates == 36
    assert sum(1 for _ in planned_units(made.folder, made.work.plan)) == 3


def test_a_unit_with_too_many_errors_is_judged_again_by_the_next_session(tmp_path):
    broken = collection(tmp_path, constraints=({"use": "collecting_constraints:broken"},))
    row = broken.do(broken.units()[0])
    assert row["num_errors"] == row["num_verdicts"] == 16
    assert row["failing_constraint"] == "broken"
    assert "ZeroDivisionError" in row["first_error"]
    state = survey(broken.folder)
    assert [p.endswith(".faulty.json") for p in state.commits["0000000"]] == [True]
    mended = replace(
        broken, work=replace(collection(tmp_path / "x").work, store_uri=broken.work.store_uri, session="t" * 12)
    )
    assert mended.finish().totals.num_errors == 0


def test_why_candidates_were_rejected_is_counted_with_like_reasons_together(tmp_path):
    made = collection(tmp_path, acceptance=AcceptanceConfig(max_per_prompt=1))
    found = reasons(made.folder, made.finish())
    assert any(r.startswith("answer_matches: ") for r in found)
    assert any(r.startswith("repeats candidate") for r in found)


def test_what_befell_a_unit_is_told_before_it_is_missed_at_the_seal(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")  # what builds the constraints dies at once
    with pytest.raises(
        StageError, match=r"the process that (builds the constraints|forks the constraints' workers) died"
    ):
        collection(tmp_path).finish()

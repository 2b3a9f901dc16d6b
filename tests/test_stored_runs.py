"""Runs that an earlier version of the package left in a store: what stands there is read, gone on with and verified.

Adversarially checked: both were made before the modules of the package were moved, and hold plug-ins by the old paths.
"""

import json
import tarfile
from pathlib import Path

import pytest
from collecting import Collection
from typer.testing import CliRunner

from rsft_cluster.acceptance.decide import selection_rules
from rsft_cluster.cli.app import app
from rsft_cluster.collection.actors import Work
from rsft_cluster.config.file import load_config
from rsft_cluster.errors import AuditError, ConfigError
from rsft_cluster.plugins import bind
from rsft_cluster.policies.spec import PolicySpec
from rsft_cluster.review.audit.lines import head_of
from rsft_cluster.review.audit.verify import verify_run
from rsft_cluster.review.redeciding.accepting import accept_again, decision_of
from rsft_cluster.review.redeciding.outcome import selection_of
from rsft_cluster.review.redeciding.rejudging import rejudge
from rsft_cluster.review.redeciding.stored_round import stored_round
from rsft_cluster.rounds.loop import opened
from rsft_cluster.rounds.run_stages import plan_round
from rsft_cluster.store import Store
from rsft_cluster.store.layout import RunLayout

STORED = Path(__file__).parent / "stored_runs"
ACCEPTED_DIGEST = "3190402f645353e8ac4cabecbb62fdc7"
"""What the round of `killed` accepts where the version that began it has finished it."""


def unpacked(name: str, folder: Path) -> Path:
    """Unpack a stored run with the files that it was made of; what it says of their place is made true."""
    with tarfile.open(STORED / f"{name}.tar.xz") as archive:
        archive.extractall(folder, filter="data")
    for path in folder.rglob("*.json"):
        path.write_text(path.read_text().replace('"/project/', f'"{folder}/').replace(" /project/", f" {folder}/"))
    return folder


@pytest.fixture
def sealed(tmp_path):
    """A round that is sealed, audited, judged again as `longer` and decided again as `best`."""
    return stored_round(Store(str(unpacked("sealed", tmp_path) / "runs" / "waves")), 1)


def invoke(*arguments: str):
    return CliRunner().invoke(app, arguments)


def test_a_run_that_was_killed_goes_on_and_holds_what_it_would_have_held(tmp_path) -> None:
    config = load_config(unpacked("killed", tmp_path) / "run.yaml", [f"store={tmp_path / 'runs'}"])
    with opened(config) as run:
        layout = run.round(1)
        before = set(run.store.files(layout.commits))
        plan = plan_round(run, 1, RunLayout(run.store).prompts("train").table)
        work = Work(
            store_uri=run.store.uri, folder=layout.path, session=run.lease.session, plan=plan,
            policy=PolicySpec(plan.policy.uri), generator=bind(config.sampling.generator, "generators", num_leading=1),
            scoring=config.scoring, selection=selection_rules(config, 1), decides=True, unit_timeout_s=60,
        )  # fmt: skip
        manifest = Collection(work, layout).finish()
        run.store.create(layout.manifest, manifest.to_json())
        run.store.create(layout.audit, head_of(run.store, 1).to_json())
    commits = set(run.store.files(layout.commits))
    assert (len(before), len(commits), before - commits) == (2, 6, set())
    assert manifest.accepted_digest == ACCEPTED_DIGEST
    assert verify_run(run.store).holds


def kept(store: Store, refs) -> list[dict]:
    """Accepted rows without how their completions ended, which is told since schema 4."""
    tables = [store.read_table(ref) for ref in refs]
    rows = [row for table in tables for row in table.to_pylist()]
    return sorted(
        ({k: v for k, v in row.items() if k != "finish_reason"} for row in rows), key=lambda row: row["candidate_id"]
    )


def test_a_sealed_round_is_shown_and_decided_and_judged_again_alike(sealed) -> None:
    root, totals = sealed.store.root, sealed.manifest.totals
    rows = [json.loads(line) for line in invoke("inspect", root, "--json", "--limit", "99").stdout.splitlines()]
    assert sum(row["accepted"] for row in rows) == totals.num_accepted
    made = accept_again(sealed, selection_of(sealed, sealed.config), name="again")
    assert kept(sealed.store, made.accepted) == kept(sealed.store, sealed.manifest.accepted)
    judged = rejudge(sealed, sealed.config, selection_of(sealed, sealed.config), "same")
    assert (judged.num_passed, judged.num_accepted) == (totals.num_passed, totals.num_accepted)


def test_a_scoring_and_a_decision_made_before_are_opened(sealed) -> None:
    before = sealed.scoring("longer")
    config = sealed.config.model_copy(update={"scoring": sealed.config.scoring.model_copy(update={"constraints": ()})})
    with pytest.raises(ConfigError, match="scoring longer was made with other settings"):
        rejudge(sealed, config, selection_of(sealed, sealed.config), "longer")
    assert accept_again(sealed, selection_of(sealed, sealed.config), "longer").funnel.num_passed == before.num_passed
    assert decision_of(sealed, "best").target == "the n best-scored of each prompt's candidates among those that passed"


def test_an_audit_trail_that_another_version_sealed_is_refused_in_one_sentence(sealed) -> None:
    says = (
        "round 1: an earlier version of rsft-cluster sealed its audit trail, in lines of form 1, and this one writes "
        "form 2: verify it with that version, or what that version exports of it"
    )
    found = verify_run(sealed.store)
    assert (found.problems, found.num_problems) == ([says], 1)
    failed = invoke("audit", "verify", sealed.store.root)
    assert isinstance(failed.exception, AuditError)
    refused = invoke("audit", "export", sealed.store.root)
    assert isinstance(refused.exception, ConfigError)
    assert str(refused.exception).startswith("round 1: an earlier version of rsft-cluster sealed its audit trail")


def test_what_another_version_exported_of_its_audit_trail_is_verified(tmp_path) -> None:
    folder = unpacked("sealed", tmp_path)
    shown = invoke("audit", "verify", str(folder / "trail.jsonl"))
    assert "24 decisions of 1 rounds replayed from 25 lines: all hold" in shown.stdout


def test_a_round_that_is_changed_is_found_whatever_version_sealed_it(sealed) -> None:
    found = sealed.manifest.model_copy(update={"chosen": {"lowest_score": 0.1}})
    sealed.store.write(sealed.folder.manifest, found.to_json())
    assert verify_run(sealed.store).num_problems == 2

"""One project for all tests on several hosts, and what an undisturbed run of it accepts."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
from collecting import Collection
from comparing import FAST, accepted, write_run

from rsft_cluster.collection.actors import Work
from rsft_cluster.config.file import load_config
from rsft_cluster.records import Manifest, Totals
from rsft_cluster.report.reporter import Reporter
from rsft_cluster.rounds import loop, stages


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder that every host reaches, with prompts, a model and the runs."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="session")
def undisturbed(project) -> list[dict]:
    """The accepted samples of a run without a cluster, unit by unit in this process: nothing can happen to it."""
    config = load_config(write_run(project, "undisturbed", sampling__generator=FAST))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stages, "collect", _collect_here)
        patch.setattr(loop, "connect", lambda *_, **__: nullcontext())
        loop.run_rounds(config, Reporter(quiet=True), until="sample")
    return accepted(project / "runs" / "undisturbed")


def _collect_here(work: Work, *_: object, earlier: Sequence[Totals], units_a_pass: int):
    folder = work.open()
    folder.store.create(folder.manifest, Collection(work, folder).finish().to_json())
    return folder.store.read_record(folder.manifest, Manifest)

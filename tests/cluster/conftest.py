"""One project for all tests on several hosts, and what an undisturbed run of it accepts."""

import subprocess
import sys
from pathlib import Path

import pytest
from comparing import FAST, accepted, write_run

LOCAL_TIMEOUT_S = 300


@pytest.fixture(scope="session")
def project(tmp_path_factory) -> Path:
    """A folder that every host reaches, with prompts, a model and the runs."""
    return tmp_path_factory.mktemp("project")


@pytest.fixture(scope="session")
def undisturbed(project) -> list[dict]:
    """The accepted samples of a run that nothing happened to, on this machine alone."""
    config = write_run(project, "undisturbed", sampling__generator=FAST)
    command = [sys.executable, "-m", "rsft_cluster", "sample", str(config), "--quiet"]
    subprocess.run(command, check=True, timeout=LOCAL_TIMEOUT_S, capture_output=True)
    return accepted(project / "runs" / "undisturbed")

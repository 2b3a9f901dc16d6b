"""A real Slurm over two nodes: the shipped batch script brings a run to its end, whatever Slurm does to the job."""

import sys
from pathlib import Path

import hosts
import pytest
from comparing import FAST, NUM_UNITS, accepted, num_commits, write_run
from rays import REPOSITORY, wait_until
from slurm import TOOLS, Slurm

SCRIPT = REPOSITORY / "deploy" / "slurm" / "rsft.sbatch"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL")
RUN_TIMEOUT_S = 500

why = hosts.missing({**hosts.TOOLS, **TOOLS})
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(why), reason=why)]


@pytest.fixture(scope="module")
def slurm():
    with hosts.network() as network:
        yield Slurm(network, num_nodes=2)


def send(slurm: Slurm, config: Path, *options: str, **environment: str) -> str:
    """Submit the shipped script for a config, as its own head says."""
    return slurm.batch(
        SCRIPT, "--nodes=2", "--cpus-per-task=2", f"--chdir={config.parent}", *options,
        RSFT_CONFIG=str(config), RSFT_VENV=sys.prefix, RSFT_SHARED=str(config.parent), RSFT_LOCAL=str(slurm.folder),
        PYTHONPATH=str(REPOSITORY), **environment,
    )  # fmt: skip


def printed(config: Path, job: str) -> str:
    return (config.parent / f"rsft-{job}.log").read_text()


def test_a_whole_run_over_two_nodes(slurm, project, undisturbed):
    config = write_run(project, "slurm", sampling__generator=FAST)
    job = send(slurm, config)
    assert slurm.wait(job, ENDED, RUN_TIMEOUT_S) == "COMPLETED", printed(config, job)
    assert "2 nodes joined" in printed(config, job)
    assert accepted(project / "runs" / "slurm") == undisturbed
    assert (project / "runs" / "slurm" / "rounds" / "0001" / "decision.json").exists()
    assert not list(project.glob(f"rsft-{job}.*/token"))


def test_a_stopped_job_is_requeued_and_ends_with_the_same_result(slurm, project, undisturbed):
    config, run = write_run(project, "requeued"), project / "runs" / "requeued"
    job = send(slurm, config, RSFT_COMMAND="sample")
    wait_until(lambda: num_commits(run) >= 2, RUN_TIMEOUT_S, "sampling never began")
    slurm.command("scancel", "--batch", "--signal=TERM", job)
    slurm.wait(job, ("PENDING",), 60)
    assert slurm.field(job, "Restarts") == "1"
    before = num_commits(run)
    assert 2 <= before < NUM_UNITS
    said = printed(config, job)
    assert "the driver is asked to stop" in said
    assert "the driver ended with exit code 143" in said
    assert "back into the queue" in said
    assert slurm.wait(job, ENDED, RUN_TIMEOUT_S) == "COMPLETED", printed(config, job)
    assert accepted(run) == undisturbed

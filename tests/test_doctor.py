"""`rsft doctor`: what is there is said, what is missing is said, and the exit code tells the two apart."""

import json
import sys

import pytest

from rsft_cluster.cli import app
from rsft_cluster.constraints.programs.sandbox import escape_probe, tiers


@pytest.fixture
def doctor(monkeypatch, capsys):
    """The command, called as a user calls it; returns exit code, stdout and stderr."""

    def call(*arguments: str) -> tuple[object, str, str]:
        monkeypatch.setattr(sys, "argv", ["rsft", "doctor", *arguments])
        with pytest.raises(SystemExit) as ended:
            app.main()
        return ended.value.code, *capsys.readouterr()

    yield call
    escape_probe.probed.cache_clear()


def findings(out: str) -> dict[str, dict[str, str]]:
    return {finding["about"].strip(): finding for finding in json.loads(out)["findings"]}


def test_what_is_there_is_said(doctor, tmp_path) -> None:
    code, out, _ = doctor("--json", "--store", str(tmp_path / "store"))
    found = findings(out)
    assert {"Python", "torch", "ray", "deepspeed", "CPUs", "memory", "GPUs", "free disk", "sandbox", "store"} <= set(
        found
    )
    assert (found["Python"]["state"], found["store"]["state"]) == ("fine", "fine")
    assert (code, json.loads(out)["works"]) == ((0, True) if found["sandbox"]["state"] == "fine" else (1, False))
    assert not any(path.name.startswith(".probe") for path in (tmp_path / "store").iterdir())


def test_a_store_that_cannot_be_written_is_broken(doctor, tmp_path) -> None:
    (tmp_path / "file").write_text("")
    code, out, _ = doctor("--json", "--store", str(tmp_path / "file" / "store"))
    assert (code, findings(out)["store"]["state"]) == (1, "broken")


def test_a_machine_without_a_sandbox_is_told_what_each_tier_lacks(doctor, monkeypatch) -> None:
    monkeypatch.setattr(tiers, "absent", lambda tier: f"{tier} is not [here]")
    escape_probe.probed.cache_clear()
    code, out, err = doctor()
    assert code == 1
    assert "the constraint `code` refuses to run" in out
    assert all(f"{tier} is not [here]" in out for tier in tiers.TIERS)
    assert "what is broken" in err


def test_a_package_that_is_missing_is_broken(doctor, monkeypatch) -> None:
    monkeypatch.setattr("rsft_cluster.cli.doctor.PACKAGES", ("no-such-package",))
    code, out, _ = doctor("--json")
    assert (code, findings(out)["no-such-package"]["state"]) == (1, "broken")

"""`--apply`: hand the ready files to the scheduler of this machine or of the cluster that it speaks with."""

import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.scheduling.kinds import ON_KUBERNETES
from rsft_cluster.scheduling.order import File, Order


def install(order: Order, kind: str, files: Sequence[File]) -> str:
    """Install what a kind is made of; return in words what is there now.

    Installing again replaces what this run had. Raises ConfigError where the tool is missing, StageError where it
    refuses.
    """
    if kind in ON_KUBERNETES:
        _run("kubectl", "apply", "-f", "-", given=files[0].text)
        return f"namespace {order.kubernetes.namespace}: {files[0].name} applied"
    if kind == "systemd":
        return _install_units(files)
    if kind == "airflow":
        raise ConfigError("--apply: Airflow reads its folder of DAGs: write the file there with --out")
    if kind == "slurm":
        _need("sbatch")
        _write(order.folder, files[:1])
    tool = "scrontab" if kind == "slurm" and not shutil.which("crontab") and shutil.which("scrontab") else "crontab"
    return _install_lines(tool, order.run, files[-1].text)


def _write(folder: Path, files: Sequence[File]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        (folder / file.name).write_text(file.text, encoding="utf-8")


def write(folder: Path, files: Sequence[File]) -> None:
    """Write ready files into a folder; raises ConfigError where that cannot be."""
    try:
        _write(folder, files)
    except OSError as error:
        raise ConfigError(f"--out {folder}: cannot be written: {error.strerror}") from error


def _install_units(files: Sequence[File]) -> str:
    _need("systemctl")
    _write(Path.home() / ".config" / "systemd" / "user", files)
    _run("systemctl", "--user", "daemon-reload")
    timer = next(file.name for file in files if file.name.endswith(".timer"))
    _run("systemctl", "--user", "enable", "--now", timer)
    return f"{timer} is on; `loginctl enable-linger` keeps it on while you are logged out"


def _install_lines(tool: str, run: str, lines: str) -> str:
    """Put a run's lines at the end of the user's table, in place of those it had there."""
    _need(tool)
    listing = subprocess.run([tool, "-l"], capture_output=True, text=True, check=False)  # noqa: S603
    # An empty table ends with exit code 1.
    text = listing.stdout if listing.returncode == 0 else ""
    begin, end = f"# BEGIN rsft {run}", f"# END rsft {run}"
    kept = re.sub(rf"^{re.escape(begin)}\n.*?^{re.escape(end)}\n", "", text, flags=re.MULTILINE | re.DOTALL)
    if kept and not kept.endswith("\n"):
        kept += "\n"
    _run(tool, "-", given=f"{kept}{begin}\n{lines}{end}\n")
    return f"{tool}: has the line of {run}"


def _need(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise ConfigError(f"--apply: there is no {tool} on this machine; without --apply the ready files are printed")
    return path


def _run(tool: str, *words: str, given: str | None = None) -> None:
    command = [_need(tool), *words]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        output = (done.stderr or done.stdout).strip().splitlines() or [f"exit code {done.returncode}"]
        raise StageError(f"--apply: {tool} {' '.join(words)}: {output[-1]}")

"""Contestants as processes: started together, run one at a time, their memory read from the system.

Every contestant has a process of its own, so that no library's settings or caches reach another, and all of them
inherit the cores that this process is bound to.
"""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from jobs.benchmarks.serving import Run, Spec

ROOT = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 3600.0
"""A contestant that is silent for so long is given up."""
FAREWELL_SECONDS = 30.0
SETTLE_SECONDS = {"vllm": 1.5}
"""vLLM's worker spins for a second after its last answer; the next contestant is to have all cores."""
MB = 2**20


class SideError(Exception):
    """A contestant that died or stopped answering; the message ends with its last words."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One run's answers and what it took."""

    seconds: float
    lengths: list[list[int]]
    """Of every candidate of every prompt."""
    cores: float
    cores_of_others: float

    @property
    def num_tokens(self) -> int:
        """Tokens of all answers."""
        return sum(map(sum, self.lengths))

    @property
    def num_steps(self) -> int:
        """Tokens of the longest answer."""
        return max(map(max, self.lengths))


class Side:
    """One contestant's process."""

    def __init__(self, name: str, spec: Spec, *, log: Path, vllm_python: str | None) -> None:
        self._name, self._log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("w") as stderr:
            self._process = subprocess.Popen(  # noqa: S603  # our own command line
                [*_command(name, vllm_python), json.dumps(spec)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                cwd=ROOT,
                env=_environment(spec["threads"], vllm_python if name == "vllm" else None),
                start_new_session=True,
            )

    def loaded(self) -> float:
        """Wait until the model is loaded; return how long that took. The memory high-water mark starts anew."""
        seconds = self._answer()["load_seconds"]
        for pid in self._pids():
            _forget_peak(pid)
        return float(seconds)

    def run(self, request: Run) -> Ran:
        """Answer every prompt; come back when the process is at rest again."""
        assert self._process.stdin is not None
        began, own, everyone = time.perf_counter(), self._cpu_seconds(), _cpu_seconds()
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._error("died") from None
        answer = self._answer()
        wall, own, everyone = time.perf_counter() - began, self._cpu_seconds() - own, _cpu_seconds() - everyone
        time.sleep(SETTLE_SECONDS.get(self._name, 0.0))
        return Ran(answer["seconds"], answer["lengths"], own / wall, max(0.0, everyone - own) / wall)

    def peak_mb(self) -> float | None:
        """Return the most memory its processes had since it was loaded, summed; None where the system does not say."""
        pids = self._pids()
        peaks = [peak for peak in map(_peak_bytes, pids) if peak is not None]
        return sum(peaks) / MB if len(peaks) == len(pids) > 0 else None

    def close(self) -> None:
        """Let it end, or else end it and whatever it started."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.close()
            self._process.wait(FAREWELL_SECONDS)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        # Nothing is read ahead: the process writes one line and then waits for the next request.
        deadline, parts = time.monotonic() + PATIENCE_SECONDS, []
        while not (parts and parts[-1].endswith(b"\n")):
            if not select.select([self._process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise self._error(f"silent for {PATIENCE_SECONDS:.0f} s")
            parts.append(os.read(self._process.stdout.fileno(), 1 << 16))
            if not parts[-1]:
                raise self._error("died")
        return json.loads(b"".join(parts))

    def _error(self, what: str) -> SideError:
        with self._log.open(errors="replace") as log:
            last = [line.strip() for line in deque(log, 40) if line.strip()]
        return SideError(f"{self._name}: {what}; {last[-1] if last else 'it said nothing'} ({self._log})")

    def _cpu_seconds(self) -> float:
        times = [psutil.Process(pid).cpu_times() for pid in self._pids()]
        return sum(t.user + t.system for t in times)

    def _pids(self) -> list[int]:
        try:
            process = psutil.Process(self._process.pid)
            return [self._process.pid, *(child.pid for child in process.children(recursive=True))]
        except psutil.NoSuchProcess:
            return []


def _command(name: str, vllm_python: str | None) -> list[str]:
    if name == "vllm":
        assert vllm_python is not None
        return [vllm_python, "-m", "jobs.benchmarks.vllm_side"]
    return [sys.executable, "-m", "jobs.benchmarks.contestants", name]


def _environment(threads: int, vllm_python: str | None) -> dict[str, str]:
    environment = os.environ | {"OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    if vllm_python is not None:
        # vLLM asks for Intel's OpenMP, which its wheel brings, and for tcmalloc, where there is one.
        libraries = [*Path(vllm_python).parent.parent.glob("lib/libiomp5.so")]
        libraries += sorted(Path("/usr/lib").glob("*/libtcmalloc*.so.4"))[:1]
        environment["LD_PRELOAD"] = ":".join([environment.get("LD_PRELOAD", ""), *map(str, libraries)]).strip(":")
    return environment


def _cpu_seconds() -> float:
    """Return the seconds that all cores together were busy."""
    times = psutil.cpu_times()
    return times.user + times.nice + times.system


def _forget_peak(pid: int) -> None:
    """Start a process's high-water mark anew, so that loading is not counted; Linux alone can."""
    try:
        Path(f"/proc/{pid}/clear_refs").write_text("5")
    except OSError:
        return


def _peak_bytes(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return None
    kilobytes = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(kilobytes[0]) * 1024 if kilobytes else None

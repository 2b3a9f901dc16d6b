"""Constraints that hang, crash, hoard and flicker, for tests: what a completion says is what they do."""

import ctypes
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rsft_cluster.constraints.base import Candidate, Case, Verdict

EVERYTHING = ("sleep", "spin", "loop_in_c", "deaf", "segfault", "exit", "abort", "hoard", "daemon", "threads", "raise")


def does(candidate: Candidate, *, work_s: float = 0.0) -> bool:
    """Do what the completion says; pass where it says ok."""
    time.sleep(work_s)
    return _do(candidate.completion)


def _do(what: str) -> bool:  # noqa: PLR0912
    if what == "sleep":
        time.sleep(1000)
    elif what == "spin":
        while True:
            pass
    elif what == "loop_in_c":  # never gives the interpreter lock back
        sum(range(10**13))
    elif what == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(0)
    elif what == "abort":
        os.abort()
    elif what == "hoard":
        hoard = [bytes(2**26) for _ in range(16)]  # 1 GiB
        assert hoard
    elif what == "daemon":
        # Twice forked, in a session of its own: no child of the worker any more.
        code = "import subprocess, sys; subprocess.Popen(['sleep', '97531'], start_new_session=True)"
        subprocess.run([sys.executable, "-c", code], start_new_session=True, check=True)
        time.sleep(1000)
    elif what == "threads":
        for _ in range(8):
            threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        time.sleep(1000)
    elif what == "raise":
        raise RuntimeError("cannot tell")
    elif what == "nan":
        return float("nan")  # type: ignore[return-value]
    elif what == "shout":
        print("x" * 100_000)
        sys.stdout.flush()
        os.write(1, b"y" * 100_000)
    elif what == "flicker":
        return random.SystemRandom().random() < 0.5
    return what == "ok"


class Together:
    """Judges eight in a call, and says how many it was given."""

    batch_size = 8

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict.of(_do(c.completion), f"{len(candidates)} together") for c in candidates]


class Prepared:
    """Passes when it was prepared in another process than the one that judges."""

    def __init__(self) -> None:
        self.prepared_by = 0

    def prepare(self) -> None:
        self.prepared_by = os.getpid()

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict.of(self.prepared_by not in (0, os.getpid()), f"pid {os.getpid()}") for _ in candidates]


class Slow:
    """Batches of eight; raises together, slow at one, and then does what the completion says."""

    batch_size = 8

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        if len(candidates) > 1 and any(c.completion == "raise" for c in candidates):
            raise RuntimeError("one of them")
        if candidates[0].completion == "slow":
            time.sleep(0.15)
        return [Verdict.of(c.completion == "slow" or _do(c.completion)) for c in candidates]


class OwnText(str):
    """A kind of text that does not travel."""

    __slots__ = ()

    def __reduce__(self) -> str:
        raise TypeError("stays here")


class Library:
    """Speaks in its own kind of text, and fails with an exception that cannot tell itself."""

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict(1.0, True, OwnText(self._read(c.completion))) for c in candidates]

    def _read(self, text: str) -> str:
        if text == "mute":
            raise MuteError
        return text


class MuteError(Exception):
    def __str__(self) -> str:
        raise ValueError("nothing to say")


class Served:
    """Needs a process that it starts once for all."""

    def prepare(self) -> None:
        self.server = subprocess.Popen(["sleep", "600"])

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        verdicts = []
        for candidate in candidates:
            _do(candidate.completion)
            status = Path(f"/proc/{self.server.pid}/stat").read_text().split()[2]
            verdicts.append(Verdict.of(status not in "ZX", status))
        return verdicts


class NoBatch:
    batch_size = 0

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return []


class Patient:
    """Takes two seconds, and says so."""

    longest_s = 5.0

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        time.sleep(2)
        return [Verdict.of(True) for _ in candidates]


class InTheActor:
    """Says in which process it runs."""

    isolated = False

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        return [Verdict.of(True, f"pid {os.getpid()}, {len(candidates)} together") for _ in candidates]


def strict(candidate: Candidate, *, word: str = "yes") -> bool:
    return candidate.completion == word


def breaks_when(candidate: Candidate, *, file: str) -> bool:
    """Passes "yes", until there is such a file."""
    return candidate.completion == "yes" and not Path(file).exists()


def broken_here(candidate: Candidate) -> bool:
    """Passes everything, as a verifier may whose library is not what it was written for."""
    return True


CASES = {
    "strict": (
        Case(Candidate("yes"), passes=True),
        Case(Candidate("no"), passes=False),
        Case(Candidate("no"), passes=True, params={"word": "no"}),
    ),
    "broken_here": (Case(Candidate("right"), passes=True), Case(Candidate("wrong"), passes=False)),
}

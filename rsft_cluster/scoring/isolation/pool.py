"""The pool of a scoring actor: hands out jobs, watches deadlines, replaces what was killed."""

import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle

from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.outcomes import Outcome
from rsft_cluster.errors import StageError
from rsft_cluster.scoring.isolation.call_table import NUM_BYTES, SLOTS, At, Progress
from rsft_cluster.scoring.isolation.priority import cpu_s, give_way

START_S = 300
"""What building and preparing the constraints may take."""
JOB_S = 0.25
"""A job is cut to take about so long."""
MAX_JOB = 256
FIRST_JOB = 4
"""Candidates of a job of a constraint whose speed is not known yet."""
LATE, OVERDUE = 1.5, 1.1
"""A call that takes so many times the mean is late and does not keep others waiting: they go to another process. One
that has taken so many times what any took of the processor that came back is overdue: it goes on at the lowest
priority, where calls do hang."""
PLAGUED = 0.02
"""Share of killed calls from which on slow ones are taken for hanging."""
MIN_LATE_S, MIN_OVERDUE_S = 0.02, 0.02
SPARE = 8
"""Late calls that others pass by, for each process of the pool; more are waited for."""
MIN_LOOK_S, MAX_LOOK_S = 0.002, 0.1
"""How often the pool looks at what its workers are at."""
RETIRE_AFTER = 20_000
"""Candidates, after which a worker is replaced: what leaks, leaks no further."""


@dataclass
class _Job:
    """Candidates, by their places, that one constraint judges."""

    number: int
    places: Sequence[int]
    alone: bool = False
    """Given out one by one, since a call about all of them was killed."""


@dataclass
class _Worker:
    channel: Connection
    slot: int
    job: _Job
    num_done: int = 0
    """Of the job's candidates."""
    num_judged: int = 0
    late: bool = False
    """It finishes its present call; the rest of its job was given to others."""
    overdue: bool = False
    """It has the lowest priority now, and its present call is its last one."""


@dataclass
class _Speed:
    """How long a constraint takes, from what it took."""

    num: int = 0
    total_s: float = 0.0
    longest_s: float = 0.0
    """The most that one candidate took of the processor and yet came back."""
    num_killed: int = 0
    """Calls that were killed at their deadline."""
    hanging_s: float = 0.0
    """What calls that were killed had taken before they were late."""

    @property
    def mean_s(self) -> float | None:
        return self.total_s / self.num if self.num else None


@dataclass
class _Board:
    """What is to be judged, and what was found."""

    candidates: Sequence[Candidate]
    pending: deque[_Job]
    found: list[dict[int, Outcome]] = field(default_factory=list)


class Pool:
    """Processes that judge with the constraints of a run; `close` ends them all.

    Raises ConfigError where a constraint cannot be built there, StageError where the processes cannot be started.
    """

    def __init__(self, constraints: Sequence[Constraint], *, num_processes: int, memory_bytes: int) -> None:
        self.constraints = tuple(constraints)
        self._num_processes = num_processes
        self._max_processes = min(SLOTS, num_processes * (1 + SPARE))
        self._speed = [_Speed() for _ in constraints]
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._has_dying, self._look_at = False, 0.0  # until when no worker is past anything
        self._free_slots = deque(range(SLOTS))
        with tempfile.TemporaryFile() as table:
            table.truncate(NUM_BYTES)
            self._progress = Progress(table.fileno())
            self._fork_server, self._control = _start_fork_server(table.fileno())
        self._ask((self.constraints, memory_bytes))
        ready = self._built_there()
        if isinstance(ready, Exception):
            self.close()
            raise ready
        self._batch_sizes = [size for size, _ in ready]
        self._timeouts_s = [max(c.timeout_s, longest_s) for c, (_, longest_s) in zip(constraints, ready, strict=True)]

    def judge(
        self,
        candidates: Sequence[Candidate],
        wanted: Sequence[Sequence[int]],
        *,
        after: Callable[[int, Outcome], None] | None = None,
    ) -> list[list[Outcome]]:
        """Return the outcomes of each constraint for the places in `wanted`, one sequence a constraint, in its order.

        `after` is told of every outcome, with the constraint's number, as it comes in; what it raises ends the call.
        """
        board = _Board(candidates, deque(), [{} for _ in wanted])
        self._cut(board, wanted)
        try:
            while board.pending or self._busy:
                self._give_out(board)
                self._take_in(board, after)
                self._look(board, after)
            if self._has_dying:
                self._ask(("bury", 0))
                self._has_dying = bool(self._answer())
        except BaseException:
            for worker in self._busy.copy():
                self._end(worker)
            raise
        return [[found[place] for place in places] for found, places in zip(board.found, wanted, strict=True)]

    def _built_there(self) -> list[tuple[int, float]] | Exception:
        """Return the batch size and the longest time of each constraint, or why one cannot be built."""
        if not self._control.poll(START_S):
            self._fork_server.kill()
            names = ", ".join(dict.fromkeys(c.name for c in self.constraints))
            raise StageError(f"constraints were not built and prepared within {START_S} s: {names}")
        try:
            return pickle.loads(self._control.recv_bytes())
        except (EOFError, ConnectionResetError) as error:
            raise StageError("the process that builds the constraints died; what it said stands above") from error

    @property
    def fork_server_pid(self) -> int:
        """The process that builds the constraints and forks the workers."""
        return self._fork_server.pid

    def close(self) -> None:
        """End all processes."""
        self._control.close()
        for worker in (*self._idle, *self._busy):
            worker.channel.close()
        self._idle, self._busy = [], []
        try:
            self._fork_server.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._fork_server.kill()
            self._fork_server.wait()

    def _num_wanted(self) -> int:
        """Return how many processes judge at once: more where part of them is known to hang, not yet late."""
        judging_s = sum(speed.total_s for speed in self._speed)
        hanging_s = sum(speed.hanging_s for speed in self._speed)
        return math.ceil(self._num_processes * (1 + min(1.0, hanging_s / judging_s if judging_s else 0.0)) - 0.05)

    def _cut(self, board: _Board, wanted: Sequence[Sequence[int]]) -> None:
        """Cut the work into jobs, those of slow constraints first."""
        jobs = []
        for number, places in enumerate(wanted):
            size = self._job_size(number, len(places))
            jobs += [(number, places[i : i + size]) for i in range(0, len(places), size)]
        jobs.sort(key=lambda job: -(self._speed[job[0]].mean_s or 1.0))
        board.pending.extend(_Job(number, places) for number, places in jobs)

    def _job_size(self, number: int, num_places: int) -> int:
        mean_s = self._speed[number].mean_s
        size = FIRST_JOB if mean_s is None else int(JOB_S / max(mean_s, 1e-6))
        fair = -(-num_places // self._num_processes)
        batch = self._batch_sizes[number]
        return batch * -(-max(1, min(size, fair, MAX_JOB)) // batch)

    def _give_out(self, board: _Board) -> None:
        while board.pending:
            num_late = sum(w.late for w in self._busy)
            if len(self._busy) - num_late >= self._num_wanted() or len(self._busy) >= self._max_processes:
                return
            job = board.pending.popleft()
            if job.alone and len(job.places) > 1:
                board.pending.extendleft(_Job(job.number, [place], alone=True) for place in reversed(job.places))
                continue
            worker = self._idle.pop() if self._idle else self._fork(job)
            worker.job, worker.num_done, worker.late = job, 0, False
            self._progress.give(worker.slot, min(self._batch_sizes[job.number], len(job.places)))
            self._progress.allow(worker.slot, len(job.places))
            try:
                worker.channel.send((job.number, [board.candidates[place] for place in job.places]))
            except OSError:
                self._end(worker)
                board.pending.appendleft(job)
                continue
            self._busy.append(worker)
            self._look_at = 0.0  # what is new may be late before all others

    def _take_in(self, board: _Board, after: Callable[[int, Outcome], None] | None) -> None:
        by_channel = {w.channel: w for w in self._busy}
        for channel in wait(list(by_channel), timeout=max(self._look_at - time.monotonic(), 0.0)):
            worker = by_channel[channel]  # type: ignore[index]
            try:
                self._receive(board, worker, after)
            except (EOFError, OSError):
                self._lost(board, worker, after)

    def _receive(self, board: _Board, worker: _Worker, after: Callable[[int, Outcome], None] | None) -> None:
        if not self._read(board, worker, after):
            return
        self._busy.remove(worker)
        worker.num_judged += worker.num_done
        if worker.overdue or worker.num_judged >= RETIRE_AFTER:
            self._end(worker)
        else:
            self._idle.append(worker)

    def _read(self, board: _Board, worker: _Worker, after: Callable[[int, Outcome], None] | None) -> bool:
        """Take in a message of a worker; return whether it ends the job."""
        first, outcomes, longest_s, is_over = worker.channel.recv()
        speed = self._speed[worker.job.number]
        speed.longest_s = max(speed.longest_s, longest_s)
        # A worker whose job was cut short in the moment in which it went on sends more than is wanted of it.
        for place, outcome in zip(worker.job.places[first:], outcomes, strict=False):
            self._note(board, worker.job.number, place, outcome, after)
            worker.num_done += 1
        return is_over

    def _note(
        self, board: _Board, number: int, place: int, outcome: Outcome,
        after: Callable[[int, Outcome], None] | None,
    ) -> None:  # fmt: skip
        board.found[number][place] = outcome
        if outcome.error is None:
            self._speed[number].num += 1
            self._speed[number].total_s += outcome.duration_s
        if after is not None:
            after(number, outcome)

    def _look(self, board: _Board, after: Callable[[int, Outcome], None] | None) -> None:
        """End what is past its deadline, and let what is late or overdue give way to others."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + MAX_LOOK_S
        for worker in self._busy.copy():
            at = self._progress.at(worker.slot)
            late_s, overdue_s, timeout_s = self._limits(worker.job.number, at.num)
            elapsed_s = now - at.since
            if elapsed_s > timeout_s:
                self._lost(board, worker, after, hung=at)
                continue
            if elapsed_s > late_s and not worker.late:
                self._relieve(board, worker)
            wait_s = (timeout_s if worker.late else late_s) - elapsed_s
            if worker.late and not worker.overdue and self._is_plagued(worker.job.number):
                wait_s = min(wait_s, self._until_overdue(worker, at, overdue_s))
            self._look_at = min(self._look_at, now + max(wait_s, MIN_LOOK_S))

    def _until_overdue(self, worker: _Worker, at: At, overdue_s: float) -> float:
        """Return for how long at least a call is not overdue; infinite where it is, and so has lost its priority."""
        pid = self._progress.pid(worker.slot)
        left_s = overdue_s - (cpu_s(pid) - at.cpu_s if pid else 0.0)
        if left_s > 0:
            return left_s
        worker.overdue = True
        give_way(pid)
        return math.inf

    def _is_plagued(self, number: int) -> bool:
        """Say whether calls hang: only then may a slow one lose its priority, which may cost it its deadline."""
        speed, num_late = self._speed[number], sum(worker.late for worker in self._busy)
        return speed.num_killed > PLAGUED * speed.num or num_late >= 4 * self._num_processes

    def _limits(self, number: int, num_candidates: int) -> tuple[float, float, float]:
        """Return after how many seconds a call about so many candidates is late, overdue and killed."""
        speed, timeout_s = self._speed[number], self._timeouts_s[number]
        if speed.mean_s is None:
            return math.inf, math.inf, timeout_s
        late_s = max(MIN_LATE_S, LATE * speed.mean_s * num_candidates)
        return late_s, max(MIN_OVERDUE_S, OVERDUE * speed.longest_s * num_candidates), timeout_s

    def _relieve(self, board: _Board, worker: _Worker) -> None:
        """Leave a worker that is late its present call alone; its other candidates go to others."""
        worker.late = True
        job, at = worker.job, self._progress.at(worker.slot)
        batch = self._batch_sizes[job.number]
        end = batch * -(-(at.start + at.num) // batch)  # where the worker looks whether it may go on
        if end < len(job.places):
            worker.job = _Job(job.number, job.places[:end], job.alone)
            self._progress.allow(worker.slot, end)
            board.pending.appendleft(_Job(job.number, job.places[end:], job.alone))

    def _lost(
        self, board: _Board, worker: _Worker, after: Callable[[int, Outcome], None] | None, hung: At | None = None
    ) -> None:
        """End a worker that hangs or died; the candidate that it was at gets the error, the others another worker."""
        job = worker.job
        with suppress(EOFError, OSError):
            while worker.channel.poll():
                self._read(board, worker, after)
        status = self._end(worker, and_wait=not hung)
        at = self._progress.at(worker.slot)
        end = min(at.start + at.num, len(job.places))
        start = min(max(at.start, worker.num_done), end)
        if hung is not None and hung != at:
            start = end = worker.num_done  # it got over its deadline in the last moment
        elif at.num == 1 and start < end:
            constraint = self.constraints[job.number]
            error = _past_deadline(constraint, self._timeouts_s[job.number]) if hung else _died(constraint, status)
            outcome = Outcome(None, time.monotonic() - at.since, error, error)
            self._note(board, job.number, job.places[start], outcome, after)
            if hung:
                self._speed[job.number].num_killed += 1
                self._speed[job.number].hanging_s += min(self._limits(job.number, 1))
        elif start < end:
            board.pending.appendleft(_Job(job.number, job.places[start:end], alone=True))
        for places in (job.places[worker.num_done : start], job.places[end:]):
            if places:
                board.pending.appendleft(_Job(job.number, places, job.alone))

    def _fork(self, job: _Job) -> _Worker:
        mine, theirs = Pipe()
        slot = self._free_slots.popleft()
        self._progress.clear(slot)
        self._ask(("fork", slot))
        send_handle(self._control, theirs.fileno(), self._fork_server.pid)
        theirs.close()
        return _Worker(mine, slot, job)

    def _end(self, worker: _Worker, *, and_wait: bool = True) -> int:
        """End a worker and all that it started; return its wait status, 0 where it is not waited for."""
        worker.channel.close()
        self._busy = [w for w in self._busy if w is not worker]
        self._free_slots.append(worker.slot)
        self._ask(("end" if and_wait else "kill", worker.slot))
        self._has_dying |= not and_wait
        return self._answer() if and_wait else 0

    def _answer(self) -> int:
        try:
            return self._control.recv()
        except (EOFError, ConnectionResetError) as error:
            raise StageError("the process that forks the constraints' workers died") from error

    def _ask(self, message: object) -> None:
        try:
            self._control.send(message)
        except OSError as error:
            raise StageError(f"the process that forks the constraints' workers died: {error}") from error


def _start_fork_server(table: int) -> tuple[subprocess.Popen[bytes], Connection]:
    mine, theirs = Pipe()
    paths = os.pathsep.join(os.path.abspath(path) for path in sys.path)  # noqa: PTH100 zip files and absent ones too
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", "rsft_cluster.scoring.isolation.fork_server", str(theirs.fileno()), str(table)],
        pass_fds=[theirs.fileno(), table],
        stdin=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": paths},
        start_new_session=True,
    )
    theirs.close()
    return process, mine


def _past_deadline(constraint: Constraint, timeout_s: float) -> str:
    return f"TimeoutError: {constraint.name} took over {timeout_s:g} s and was killed"


def _died(constraint: Constraint, status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"ProcessDiedError: the process that ran {constraint.name} {how}"

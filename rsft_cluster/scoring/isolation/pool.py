"""The pool of a scoring actor: hands out assignments, watches deadlines, replaces what was killed."""

import math
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe, wait
from multiprocessing.reduction import send_handle

from rsft_cluster.config.parts import Constraint
from rsft_cluster.constraints.base import Candidate
from rsft_cluster.constraints.outcomes import Outcome
from rsft_cluster.errors import StageError
from rsft_cluster.scoring.evaluator import Observer
from rsft_cluster.scoring.isolation.call_table import NUM_BYTES, SLOTS, Call, CallTable
from rsft_cluster.scoring.isolation.priority import cpu_s, yield_cpu
from rsft_cluster.scoring.isolation.speed import Speed
from rsft_cluster.scoring.isolation.worker import Report

START_S = 300
"""Seconds that building and preparing the constraints may take."""
ASSIGNMENT_S = 0.25
"""Seconds that an assignment is cut to take, roughly."""
MAX_ASSIGNMENT = 256
FIRST_ASSIGNMENT = 4
"""Candidates in an assignment for a constraint whose speed is not known yet."""
SPARE = 8
"""Late calls for each process of the pool that other candidates overtake; beyond these the pool waits."""
MIN_LOOK_S, MAX_LOOK_S = 0.002, 0.1
"""Bounds on the time between two looks at the table of calls."""
RETIRE_AFTER = 20_000
"""Candidates after which a worker is replaced, which bounds what a constraint leaks."""


@dataclass(frozen=True)
class _Assignment:
    """Candidates for a worker to judge by one constraint."""

    number: int
    """Index of the constraint."""
    rows: Sequence[int]
    """Indices of the candidates."""
    one_by_one: bool = False
    """Handed out one candidate at a time, since a call with all of them was killed."""

    def part(self, start: int, end: int | None = None) -> "_Assignment":
        """Return the assignment of some of the candidates."""
        return replace(self, rows=self.rows[start:end])


@dataclass
class _Worker:
    channel: Connection
    slot: int
    assignment: _Assignment
    num_done: int = 0
    """Candidates of the assignment."""
    num_judged: int = 0
    late: bool = False
    """It finishes its current call; the rest of its assignment went to others."""
    overdue: bool = False
    """It runs at the lowest priority, and its current call is its last."""


@dataclass
class _Board:
    """The state of one `judge`: assignments still to hand out, and the outcomes so far."""

    candidates: Sequence[Candidate]
    pending: deque[_Assignment]
    outcomes: list[dict[int, Outcome]]
    """One mapping per constraint, from the candidate's index."""
    observer: Observer | None


class ProcessPool:
    """Processes that judge by the constraints of a run; `close` ends them all.

    Raises ConfigError where a constraint cannot be built in them, StageError where they cannot be started.
    """

    def __init__(self, constraints: Sequence[Constraint], *, num_processes: int, memory_bytes: int) -> None:
        self.constraints = tuple(constraints)
        self._num_processes = num_processes
        self._max_processes = min(SLOTS, num_processes * (1 + SPARE))
        self._speed = [Speed() for _ in constraints]
        self._idle: list[_Worker] = []
        self._busy: list[_Worker] = []
        self._has_dying, self._look_at = False, 0.0  # no worker is late or past its deadline before then
        self._free_slots = deque(range(SLOTS))
        with tempfile.TemporaryFile() as table:
            table.truncate(NUM_BYTES)
            self._table = CallTable(table.fileno())
            self._fork_server, self._control = _start_fork_server(table.fileno())
        self._ask((self.constraints, memory_bytes))
        limits = self._limits_or_error()
        if isinstance(limits, Exception):
            self.close()
            raise limits
        self._batch_sizes = [size for size, _ in limits]
        self._timeouts_s = [max(c.timeout_s, longest_s) for c, (_, longest_s) in zip(constraints, limits, strict=True)]

    def judge(
        self,
        candidates: Sequence[Candidate],
        indices: Sequence[Sequence[int]],
        *,
        observer: Observer | None = None,
    ) -> list[list[Outcome]]:
        """Return a column of outcomes for each constraint: those on the candidates at its `indices`, in that order.

        `observer` gets every outcome as it comes in; what it raises ends the call.
        """
        board = _Board(candidates, deque(), [{} for _ in indices], observer)
        self._cut(board, indices)
        try:
            while board.pending or self._busy:
                self._give_out(board)
                self._take_in(board)
                self._look(board)
            if self._has_dying:
                self._ask(("bury", 0))
                self._has_dying = bool(self._answer())
        except BaseException:
            for worker in self._busy.copy():
                self._end(worker)
            raise
        return [[outcomes[i] for i in rows] for outcomes, rows in zip(board.outcomes, indices, strict=True)]

    def _limits_or_error(self) -> list[tuple[int, float]] | Exception:
        """Return each constraint's batch size and its own bound on a call's seconds, or why one cannot be built."""
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
        """Process id of what builds the constraints and forks the workers."""
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

    def _num_active(self) -> int:
        """Return how many processes are to judge at once: more while some of them probably hang, not yet late."""
        judging_s = sum(speed.total_s for speed in self._speed)
        hanging_s = sum(speed.hanging_s for speed in self._speed)
        return math.ceil(self._num_processes * (1 + min(1.0, hanging_s / judging_s if judging_s else 0.0)) - 0.05)

    def _cut(self, board: _Board, indices: Sequence[Sequence[int]]) -> None:
        """Cut the work into assignments, those of slow constraints first."""
        assignments = []
        for number, rows in enumerate(indices):
            size = self._assignment_size(number, len(rows))
            assignments += [_Assignment(number, rows[i : i + size]) for i in range(0, len(rows), size)]
        assignments.sort(key=lambda assignment: -(self._speed[assignment.number].mean_s or 1.0))
        board.pending.extend(assignments)

    def _assignment_size(self, number: int, num_candidates: int) -> int:
        mean_s = self._speed[number].mean_s
        size = FIRST_ASSIGNMENT if mean_s is None else int(ASSIGNMENT_S / max(mean_s, 1e-6))
        fair = -(-num_candidates // self._num_processes)
        batch = self._batch_sizes[number]
        return batch * -(-max(1, min(size, fair, MAX_ASSIGNMENT)) // batch)

    def _give_out(self, board: _Board) -> None:
        while board.pending:
            num_late = sum(w.late for w in self._busy)
            if len(self._busy) - num_late >= self._num_active() or len(self._busy) >= self._max_processes:
                return
            assignment = board.pending.popleft()
            number, num_candidates = assignment.number, len(assignment.rows)
            if assignment.one_by_one and num_candidates > 1:
                board.pending.extendleft(assignment.part(i, i + 1) for i in reversed(range(num_candidates)))
                continue
            worker = self._idle.pop() if self._idle else self._fork(assignment)
            worker.assignment, worker.num_done, worker.late = assignment, 0, False
            self._table.assign(worker.slot, min(self._batch_sizes[number], num_candidates))
            self._table.set_limit(worker.slot, num_candidates)
            try:
                worker.channel.send((number, [board.candidates[i] for i in assignment.rows]))
            except OSError:
                self._end(worker)
                board.pending.appendleft(assignment)
                continue
            self._busy.append(worker)
            self._look_at = 0.0  # what is new may be late before all others

    def _take_in(self, board: _Board) -> None:
        by_channel = {w.channel: w for w in self._busy}
        for channel in wait(list(by_channel), timeout=max(self._look_at - time.monotonic(), 0.0)):
            worker = by_channel[channel]  # type: ignore[index]
            try:
                self._receive(board, worker)
            except (EOFError, OSError):
                self._replace(board, worker)

    def _receive(self, board: _Board, worker: _Worker) -> None:
        if not self._read(board, worker):
            return
        self._busy.remove(worker)
        worker.num_judged += worker.num_done
        if worker.overdue or worker.num_judged >= RETIRE_AFTER:
            self._end(worker)
        else:
            self._idle.append(worker)

    def _read(self, board: _Board, worker: _Worker) -> bool:
        """Take in a report of a worker; return whether it ends the assignment."""
        report: Report = worker.channel.recv()
        assignment = worker.assignment
        speed = self._speed[assignment.number]
        speed.longest_s = max(speed.longest_s, report.longest_s)
        # A worker that went on just as its assignment was cut short reports more than the rest of it.
        for row, outcome in zip(assignment.rows[report.first :], report.outcomes, strict=False):
            self._record(board, assignment.number, row, outcome)
            worker.num_done += 1
        return report.is_last

    def _record(self, board: _Board, number: int, row: int, outcome: Outcome) -> None:
        board.outcomes[number][row] = outcome
        if outcome.error is None:
            self._speed[number].num += 1
            self._speed[number].total_s += outcome.duration_s
        if board.observer is not None:
            board.observer(number, outcome)

    def _look(self, board: _Board) -> None:
        """End what is past its deadline, and let what is late or overdue give way to others."""
        now = time.monotonic()
        if now < self._look_at:
            return
        self._look_at = now + MAX_LOOK_S
        for worker in self._busy.copy():
            call = self._table.call(worker.slot)
            late_s, overdue_s, timeout_s = self._limits(worker.assignment.number, call.num)
            elapsed_s = now - call.since
            if elapsed_s > timeout_s:
                self._replace(board, worker, hung=call)
                continue
            if elapsed_s > late_s and not worker.late:
                self._relieve(board, worker)
            wait_s = (timeout_s if worker.late else late_s) - elapsed_s
            if worker.late and not worker.overdue and self._is_plagued(worker.assignment.number):
                wait_s = min(wait_s, self._until_overdue(worker, call, overdue_s))
            self._look_at = min(self._look_at, now + max(wait_s, MIN_LOOK_S))

    def _until_overdue(self, worker: _Worker, call: Call, overdue_s: float) -> float:
        """Return the least seconds until a call is overdue; infinite once it is, and so has lost its priority."""
        pid = self._table.pid(worker.slot)
        left_s = overdue_s - (cpu_s(pid) - call.cpu_s if pid else 0.0)
        if left_s > 0:
            return left_s
        worker.overdue = True
        yield_cpu(pid)
        return math.inf

    def _is_plagued(self, number: int) -> bool:
        """Return whether calls hang: only then may a slow one lose its priority, which may cost it its deadline."""
        num_late = sum(worker.late for worker in self._busy)
        return self._speed[number].is_plagued or num_late >= 4 * self._num_processes

    def _limits(self, number: int, num_candidates: int) -> tuple[float, float, float]:
        """Return the seconds after which a call with this many candidates is late, overdue and killed."""
        speed = self._speed[number]
        return speed.late_s(num_candidates), speed.overdue_s(num_candidates), self._timeouts_s[number]

    def _relieve(self, board: _Board, worker: _Worker) -> None:
        """Leave a late worker only its current call; its other candidates go to others."""
        worker.late = True
        assignment, call = worker.assignment, self._table.call(worker.slot)
        batch = self._batch_sizes[assignment.number]
        end = batch * -(-(call.start + call.num) // batch)  # where the worker looks whether it may go on
        if end < len(assignment.rows):
            worker.assignment = assignment.part(0, end)
            self._table.set_limit(worker.slot, end)
            board.pending.appendleft(assignment.part(end))

    def _replace(self, board: _Board, worker: _Worker, hung: Call | None = None) -> None:
        """End a worker that hangs or died; its current candidate gets the error, the others another worker."""
        assignment, number = worker.assignment, worker.assignment.number
        with suppress(EOFError, OSError):
            while worker.channel.poll():
                self._read(board, worker)
        status = self._end(worker, and_wait=not hung)
        call = self._table.call(worker.slot)
        end = min(call.start + call.num, len(assignment.rows))
        start = min(max(call.start, worker.num_done), end)
        if hung is not None and hung != call:
            start = end = worker.num_done  # it finished the call in the last moment
        elif call.num == 1 and start < end:
            constraint = self.constraints[number]
            error = _past_deadline(constraint, self._timeouts_s[number]) if hung else _died(constraint, status)
            outcome = Outcome(None, time.monotonic() - call.since, error, error)
            self._record(board, number, assignment.rows[start], outcome)
            if hung:
                self._speed[number].num_killed += 1
                self._speed[number].hanging_s += min(self._limits(number, 1))
        elif start < end:
            board.pending.appendleft(replace(assignment.part(start, end), one_by_one=True))
        for rest in (assignment.part(worker.num_done, start), assignment.part(end)):
            if rest.rows:
                board.pending.appendleft(rest)

    def _fork(self, assignment: _Assignment) -> _Worker:
        mine, theirs = Pipe()
        slot = self._free_slots.popleft()
        self._table.clear(slot)
        self._ask(("fork", slot))
        send_handle(self._control, theirs.fileno(), self._fork_server.pid)
        theirs.close()
        return _Worker(mine, slot, assignment)

    def _end(self, worker: _Worker, *, and_wait: bool = True) -> int:
        """End a worker and all that it started; return its wait status, 0 without `and_wait`."""
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
    ending = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return f"ProcessDiedError: the process that ran {constraint.name} {ending}"

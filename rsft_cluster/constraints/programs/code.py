r"""`Code`: the Python program in the completion passes its tests, run in a sandbox.

The program is the last fenced block marked as Python, else the last block, else the whole completion. Its tests are
JSON, in the reference or in an attribute, of one of these kinds:

    [{"input": "2 3\n", "output": "5"}]                 what it prints for an input; white space at line ends is free
    [{"call": "add(2, 3)", "expect": "5"}]              what a call returns, both as Python text; `expect` may also be
                                                        a JSON value that is no string, tuples then counting as lists
    ["assert add(2, 3) == 5"]                           statements; also as one text, and as text that is no JSON
    {"tests": any of these, "setup": "", "entry_point": "add", "prelude": ""}

A test of the third kind is each top-level statement that asserts, each function `test_...`, and `check(candidate)`,
which is given the `entry_point`. `setup` runs before them; `prelude` is put before the program. The score is the share
of tests that pass; all of them have to.

The promise: the program never runs without a sandbox, and it does not see what is expected. Inputs and calls are
compared out here. Statements run in a second sandbox, where the names of the program stand for questions to its
process; only numbers, texts and collections of them come back, as copies. So the program cannot end, patch, read or
overrule its tests. Not promised: it may guess from the arguments, and where a test relies on a function of the
program's own (`assert decode(encode(x)) == x`), the program decides both: give such a function in `setup`.
Statements cannot pass functions to the program, see their arguments changed in place, or compare values that are no
plain data (`Decimal`, instances of classes: their attributes they can): these fail with a reason; calls can.
"""

import math
import os
import sys
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field

from rsft_cluster.constraints.base import Candidate, Case, Verdict
from rsft_cluster.constraints.parts import answer_of, no_answer
from rsft_cluster.constraints.programs import code_tests, results
from rsft_cluster.constraints.programs.code_tests import Suite
from rsft_cluster.constraints.programs.extracting import extract, joined
from rsft_cluster.constraints.programs.sandbox import escape_probe
from rsft_cluster.constraints.programs.sandbox.inside.plain import READY, decode, frames, shown
from rsft_cluster.constraints.programs.sandbox.program import Limits, ProgramResult
from rsft_cluster.constraints.programs.sandbox.sandbox import Sandbox
from rsft_cluster.errors import StageError

Tier = Literal["auto", "gvisor", "bubblewrap", "landlock"]

_JUDGE_LONGER_S = 2.0
"""The tests' side outlives the program's, to tell that it timed out."""
_AROUND_S = 8.0
"""Starting and ending the sandbox takes no longer."""
_OUTPUT_BYTES = 16 << 20
_SHOWN_CHARACTERS = 100
_STOPPED = {
    "output": "it wrote too much to its output",
    "tasks": "it started too many threads",
    "disk": "it wrote too much to its files",
    "cancelled": "its tests were over",
}


class Code:
    """Pass completions whose program passes all tests; a missing or unreadable test is an error.

    `tests` is `reference`, or the name of the attribute that holds them. `timeout_s` and `memory_mb` are for one
    candidate's tests together. `python` is the interpreter that runs them, with nothing but its standard library and
    the folders `packages`. `sandbox` names a tier; `auto` takes the strongest that this machine gives, and where it
    gives none building raises ConfigError. Decimals that a program prints or returns may differ by `float_tolerance`,
    absolute or relative, whichever is more; 0 compares them digit by digit.
    """

    def __init__(
        self,
        *,
        tests: str = "reference",
        timeout_s: Annotated[float, Field(gt=0)] = 10.0,
        memory_mb: Annotated[int, Field(ge=64)] = 512,
        python: str = sys.executable,
        packages: Sequence[str] = (),
        sandbox: Tier = "auto",
        float_tolerance: Annotated[float, Field(ge=0, lt=1)] = 1e-9,
    ) -> None:
        self._tolerance = float_tolerance
        self._tests = tests
        self._timeout_s = timeout_s
        self.longest_s = timeout_s + _JUDGE_LONGER_S + _AROUND_S
        self._memory_bytes = memory_mb << 20
        self._python = python
        self._packages = tuple(packages)
        self.tier = escape_probe.choose(sandbox, python)
        self._sandboxes: tuple[Sandbox, Sandbox] | None = None

    def judge(self, candidates: Sequence[Candidate]) -> list[Verdict]:
        """Return one verdict per candidate; raises ValueError for unusable tests, StageError if the sandbox fails."""
        try:
            return [self._judge(candidate) for candidate in candidates]
        except StageError:
            self.close()
            raise

    def close(self) -> None:
        """End the sandboxes' processes; the next candidate starts others."""
        for sandbox in self._sandboxes or ():
            sandbox.close()
        self._sandboxes = None

    def _judge(self, candidate: Candidate) -> Verdict:
        text = candidate.reference if self._tests == "reference" else candidate.attributes.get(self._tests)
        if not text:
            raise ValueError(f"prompt {candidate.prompt_id!r} has no tests in {self._tests!r}")
        suite = code_tests.read(text)
        answer = answer_of(candidate)
        if answer is None:
            return no_answer()
        program = joined(suite.prelude, extract(answer, suite.names))
        num_passed, problem = self._checked(program, suite) if suite.steps else self._compared(program, suite)
        return Verdict(
            num_passed / suite.num_tests,
            num_passed == suite.num_tests,
            f"{num_passed} of {suite.num_tests} tests passed{problem and '; '}{problem}",
        )

    def _compared(self, program: str, suite: Suite) -> tuple[int, str]:
        """Run the program and compare the result of each input or call; return how many fit, and what did not."""
        pairs = suite.inputs or suite.calls
        given = {"inputs" if suite.inputs else "calls": [pair.given for pair in pairs]}
        sandbox, _ = self._started()
        task = {"program": program, "packages": self._packages, **given}
        ended = sandbox.run(sandbox.python.program("produce", task), self._limits(self._timeout_s))
        first, *found = [*frames(ended.stdout)] or [b""]
        if first != READY:
            raise StageError(f"no Python starts in the {self.tier} sandbox: {_end(ended)}")
        problems = []
        for number, pair in enumerate(pairs):
            if number >= len(found):
                problems += [f"{_short(pair.given)}: {self._ending(ended)}"] * (len(pairs) - number)
                break
            problems.append(_difference(found[number], pair, self._tolerance, printed=bool(suite.inputs)))
        return problems.count(""), next(filter(None, problems), "")

    def _checked(self, program: str, suite: Suite) -> tuple[int, str]:
        """Run the steps against the program, a sandbox a side; return how many tests passed, and what did not."""
        ours, theirs = self._started()
        task = {
            "steps": [(step.source, step.asserts, bool(step.label)) for step in suite.steps],
            "entry_point": suite.entry_point, "modules": suite.modules, "packages": self._packages,
        }  # fmt: skip
        questions, answers = os.pipe(), os.pipe()
        try:
            theirs.start(
                theirs.python.program("serve", {"program": program, "packages": self._packages}),
                self._limits(self._timeout_s), stdin=questions[0], stdout=answers[1],
            )  # fmt: skip
            try:
                ours.start(
                    ours.python.program("judge", task),
                    self._limits(self._timeout_s + _JUDGE_LONGER_S), stdin=answers[0], stdout=questions[1],
                )  # fmt: skip
            finally:
                for file in (*questions, *answers):
                    os.close(file)
            tests_run = ours.wait()
        finally:
            theirs.cancel()
        program_run = theirs.wait()
        return self._passed(suite, tests_run, program_run)

    def _passed(self, suite: Suite, tests_run: ProgramResult, program_run: ProgramResult) -> tuple[int, str]:
        """Return how many tests passed, by the report of the tests' side, and what did not."""
        reports = {number: (status, reason) for number, status, reason in map(decode, frames(tests_run.stderr))}
        if -1 in reports:
            raise StageError(f"no Python starts in the {self.tier} sandbox: {_end(program_run)}")
        if not reports:
            raise StageError(f"no Python starts in the {self.tier} sandbox: {_end(tests_run)}")
        num_passed, problem = 0, ""
        for number, step in enumerate(suite.steps):
            status, reason = reports.get(number, ("gone", ""))
            label = _short(step.label or step.source)
            if status == "fault":
                raise ValueError(f"the tests fail by themselves, at {label}: {reason}")
            if status == "gone":
                reason = self._ending(program_run if program_run.stopped != "cancelled" else tests_run)
            if status != "passed":
                problem = problem or f"{label}: {reason}"
            num_passed += status == "passed" and bool(step.label)
        return num_passed, problem

    def _started(self) -> tuple[Sandbox, Sandbox]:
        if self._sandboxes is None:
            first, second = (Sandbox(self.tier, python=self._python, packages=self._packages) for _ in range(2))
            self._sandboxes = first, second
        return self._sandboxes

    def _limits(self, wall_s: float) -> Limits:
        return Limits(
            wall_s=wall_s,
            cpu_s=math.ceil(wall_s) + 1,
            memory_bytes=self._memory_bytes,
            output_bytes=_OUTPUT_BYTES,
        )

    def _ending(self, ended: ProgramResult) -> str:
        if ended.timed_out:
            return f"timed out after {self._timeout_s:g} s"
        if ended.stopped:
            return f"ended by the sandbox: {_STOPPED[ended.stopped]}"
        return f"the program ended early, with exit status {ended.exit_status}"


def _difference(result: bytes, pair: code_tests.Pair, tolerance: float, *, printed: bool) -> str:
    """Return how a result differs from what is expected, or nothing; a result may be any bytes."""
    try:
        status, value = decode(result)
    except (TypeError, ValueError):
        return f"{_short(pair.given)}: gave nothing that can be read"
    if status != "value":
        return f"{_short(pair.given)}: {_short(value)}"
    if printed:
        found = value.decode("utf-8", "replace") if isinstance(value, bytes) else ""
        if results.same_output(found, str(pair.expected), tolerance):
            return ""
        return f"{_short(pair.given)}: printed {_short(found.strip())}, expected {_short(str(pair.expected).strip())}"
    return (
        ""
        if results.same(value, pair.expected, tolerance, as_json=pair.as_json)
        else (f"{_short(pair.given)}: gave {_short(shown(value))}")
    )


def _end(ended: ProgramResult) -> str:
    message = ended.stderr.decode("utf-8", "replace").strip()
    return f"exit status {ended.exit_status}{message and ': '}{message[-300:]}"


def _short(text: object) -> str:
    shown = " ".join(str(text).split())
    return shown if len(shown) <= _SHOWN_CHARACTERS else shown[: _SHOWN_CHARACTERS - 3] + "..."


_SUM = "```python\ndef add(a, b):\n    return a + b\n```"
_WRONG = "```python\ndef add(a, b):\n    return a - b\n```"
_CASES = {
    "statements": '["assert add(2, 3) == 5", "assert add(0, 0) == 0"]',
    "check": '{"tests": "def check(candidate):\\n    assert candidate(2, 3) == 5", "entry_point": "add"}',
    "calls": '[{"call": "add(2, 3)", "expect": "5"}]',
}
CASES = (
    *(Case(Candidate(_SUM, reference=tests), passes=True) for tests in _CASES.values()),
    *(Case(Candidate(_WRONG, reference=tests), passes=False) for tests in _CASES.values()),
    Case(Candidate("print(int(input()) * 2)", reference='[{"input": "4", "output": "8"}]'), passes=True),
    Case(Candidate("print(input() * 2)", reference='[{"input": "4", "output": "8"}]'), passes=False),
    Case(Candidate("import os; os._exit(0)", reference=_CASES["statements"]), passes=False),
)

"""The code constraint: verdicts are right, reasons say why, and no program forges one, on every tier there is."""

import json
from collections.abc import Iterator

import pytest
from factories import candidate
from forgeries import FORGERIES, HANGS

from rsft_cluster.constraints.base import Verdict
from rsft_cluster.constraints.programs.code import CASES, Code
from rsft_cluster.constraints.programs.extracting import extract
from rsft_cluster.constraints.programs.sandbox import escape_probe, tiers
from rsft_cluster.constraints.programs.sandbox.inside.plain import NotPlainError, decode, encode
from rsft_cluster.constraints.programs.sandbox.program import Program
from rsft_cluster.constraints.programs.sandbox.sandbox import Sandbox
from rsft_cluster.errors import ConfigError, StageError
from rsft_cluster.testing import check_constraint

SUITES = {
    "statements": json.dumps(["assert add(2, 3) == 5", "assert 5 in [add(2, 3)]", "assert not add(2, 3) != 5"]),
    "builtins": json.dumps(["assert abs(add(2, 3) - 5) < 1", "assert sorted([add(2, 3), 1]) == [1, 5]"]),
    "modules": json.dumps(["assert math.isclose(add(2, 3), 5)"]),
    "loops": json.dumps(["assert all(map(lambda x: add(x, 3) == x + 3, [2]))", "for x in [add(2, 3)]: assert x == 5"]),
    "check": json.dumps({"tests": "def check(candidate):\n    assert candidate(2, 3) == 5", "entry_point": "add"}),
    "function": "def test_add():\n    assert add(2, 3) == 5",
    "calls": json.dumps([{"call": "add(2, 3)", "expect": "5"}, {"call": "add(1, 1)", "expect": 2}]),
}  # fmt: skip
ADD = "def add(a, b): return a + b"


@pytest.fixture(scope="module", params=tiers.TIERS)
def tier(request) -> str:
    found = escape_probe.probed(request.param)
    if not found.holds:
        pytest.skip(f"no {request.param} here: {found.problem}")
    return request.param


@pytest.fixture(scope="module")
def code(tier) -> Iterator[Code]:
    made = Code(sandbox=tier, timeout_s=8.0)
    yield made
    made.close()


@pytest.fixture(scope="module")
def fast() -> Iterator[Code]:
    """The quickest tier there is, for what does not depend on it."""
    holding = [found.tier for found in escape_probe.survey() if found.holds]
    if not holding:
        pytest.skip("no sandbox here")
    made = Code(sandbox=holding[-1], timeout_s=8.0)
    yield made
    made.close()


def judged(code: Code, program: str, tests: object) -> Verdict:
    text = tests if isinstance(tests, str) else json.dumps(tests)
    return code.judge([candidate(f"Here it is:\n```python\n{program}\n```\n", reference=text)])[0]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_cases_are_judged_as_they_say(code, case) -> None:
    verdict = code.judge([CASES[case].candidate])[0]
    assert verdict.passed == CASES[case].passes, verdict


@pytest.mark.parametrize("suite", SUITES)
def test_a_program_that_solves_its_task_passes(code, suite) -> None:
    verdict = judged(code, ADD, SUITES[suite])
    assert (verdict.passed, verdict.score) == (True, 1.0), verdict


@pytest.mark.parametrize("name", FORGERIES)
def test_no_program_forges_its_verdict(code, name) -> None:
    suites = ("statements", "calls") if code.tier == tiers.GVISOR else SUITES
    for suite in suites:
        verdict = judged(code, FORGERIES[name], SUITES[suite])
        assert (verdict.passed, verdict.score) == (False, 0.0), (suite, verdict)
        assert verdict.reason.startswith("0 of "), verdict


@pytest.mark.parametrize(
    "name",
    [
        "os._exit(0)",
        "sys.exit(0) in the function",
        "always equal",
        "an int that is always equal",
        "is the module",
    ],
)
def test_where_tests_run_beside_the_program_it_does_forge(fast, name) -> None:
    """The programs are as hostile as they claim: one process for both, and its exit status for a verdict."""
    with Sandbox(fast.tier) as sandbox:
        asked = "from candidate import add\n" if name == "is the module" else ""
        whole = f"{FORGERIES[name]}\n{asked}assert add(2, 3) == 5"
        assert sandbox.run(Program(sandbox.python.argv("-c", whole))).exit_status == 0


@pytest.mark.parametrize("name", FORGERIES)
def test_no_program_forges_what_it_prints(fast, name) -> None:
    verdict = judged(fast, FORGERIES[name] + "\nprint(add(2, 3))", [{"input": "2 3", "output": "5"}])
    assert (verdict.passed, verdict.score) == (False, 0.0), verdict


@pytest.mark.parametrize("name", HANGS)
def test_a_program_that_hangs_fails_with_the_time_it_had(tier, name) -> None:
    code = Code(sandbox=tier, timeout_s=1.0)
    verdict = judged(code, HANGS[name], ["assert add(2, 3) == 5"])
    assert not verdict.passed
    assert verdict.reason == "0 of 1 tests passed; assert add(2, 3) == 5: timed out after 1 s"
    code.close()


def test_tests_that_were_done_in_time_count(fast) -> None:
    code = Code(sandbox=fast.tier, timeout_s=1.0)
    program = "def f(x):\n    while x > 1: pass\n    return x"
    for tests in (["assert f(0) == 0", "assert f(1) == 1", "assert f(2) == 2"],
                  [{"call": f"f({x})", "expect": x} for x in range(3)]):  # fmt: skip
        verdict = judged(code, program, tests)
        assert verdict.score == pytest.approx(2 / 3)
        assert "f(2)" in verdict.reason
        assert "timed out after 1 s" in verdict.reason
    code.close()


@pytest.mark.parametrize(
    ("program", "tests", "score", "reason"),
    [
        (ADD, ["assert add(2, 3) == 6", "assert add(1, 1) == 2"], 0.5,
         "1 of 2 tests passed; assert add(2, 3) == 6: the last call gave 5"),
        ("def f(x): return 1 / x", ["assert f(0) == 1"], 0,
         "0 of 1 tests passed; assert f(0) == 1: ZeroDivisionError: division by zero (line 1)"),
        ("def g(): pass", ["assert f(0) == 1"], 0,
         "0 of 1 tests passed; assert f(0) == 1: NameError: name 'f' is not defined"),
        ("def f(:", ["assert f(0) == 1"], 0,
         "0 of 1 tests passed; assert f(0) == 1: the program does not run: SyntaxError: invalid syntax (line 1)"),
        ("class f:\n    def __init__(self, x): pass", ["assert f(1) == 1"], 0,
         "0 of 1 tests passed; assert f(1) == 1: a value of type f cannot be compared: only plain data leaves "
         "the sandbox"),
        ("import os\nos._exit(3)", ["assert f(0) == 1"], 0,
         "0 of 1 tests passed; assert f(0) == 1: the program ended early, with exit status 3"),
        ("x = bytearray(1 << 30)", ["assert f(0) == 1"], 0,
         "0 of 1 tests passed; assert f(0) == 1: the program does not run: MemoryError: (line 1)"),
        ("print(input()[::-1])", [{"input": "ab", "output": "ab"}], 0,
         "0 of 1 tests passed; ab: printed ba, expected ab"),
        ("raise ValueError('no')", [{"input": "ab", "output": "ab"}], 0,
         "0 of 1 tests passed; ab: ValueError: no (line 1)"),
        ("import sys; sys.exit(2)", [{"input": "ab", "output": ""}], 0, "0 of 1 tests passed; ab: exit status 2"),
        ("def f(): return object()", [{"call": "f()", "expect": "1"}], 0,
         "0 of 1 tests passed; f(): a value of type object, which is no plain data"),
        ("def f(): return (1, 2)", [{"call": "f()", "expect": "[1, 2]"}], 0, "0 of 1 tests passed; f(): gave (1, 2)"),
    ],
)  # fmt: skip
def test_the_reason_says_what_was_found(fast, program, tests, score, reason) -> None:
    verdict = judged(fast, program, tests)
    assert (verdict.score, verdict.passed, verdict.reason.replace("MemoryError:  (", "MemoryError: (")) == (
        score,
        False,
        reason,
    )


@pytest.mark.parametrize(
    ("program", "tests"),
    [
        ("def f(): return (1, [2.5, None], {'a': {1, 2}, 2: b'x'}, 1j, frozenset({1}), float('inf'), True)",
         ["assert f() == (1, [2.5, None], {'a': {1, 2}, 2: b'x'}, 1j, frozenset({1}), float('inf'), True)"]),
        ("def f(n): return 10 ** n", ["assert f(6000) == 10 ** 6000"]),
        ("def f(x): return x + '\\ud800\\x00\u516c'", ["assert f('a') == 'a\\ud800\\x00\u516c'"]),
        ("def f(): return (1, 2)", [{"call": "f()", "expect": "(1, 2)"}, {"call": "f()", "expect": [1, 2]}]),
        ("def f(n):\n    for i in range(n): yield i", ["assert list(f(3)) == [0, 1, 2]", "assert sum(f(4)) == 6"]),
        ("from collections import Counter as f", ["assert f('aab') == {'a': 2, 'b': 1}", "assert f('a')['a'] == 1"]),
        ("class Stack:\n    def __init__(self): self.x = []\n    def push(self, v): self.x.append(v)\n"
         "    def pop(self): return self.x.pop()\n    def __len__(self): return len(self.x)",
         ["s = Stack()\ns.push(3)\nassert len(s) == 1\nassert s.pop() == 3\nassert s.x == []"]),
        ("class P:\n    def __init__(self, a, b): self.a, self.b = a, b\n"
         "def longest(ps): return max(p.b - p.a for p in ps)",
         ["assert longest([P(5, 24), P(15, 25)]) == 19"]),
        ("def f(x):\n    if x < 0: raise ValueError('below')\n    return x",
         ["try:\n    f(-1)\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'below'"]),
        ("import dataclasses, asyncio, threading\n@dataclasses.dataclass\nclass D:\n    x: int = 3\n"
         "async def g(): return D().x\n"
         "def f(): return asyncio.run(g())", ["assert f() == 3", "assert f() is not None"]),
        ("def poly(xs, x): return sum(c * x ** i for i, c in enumerate(xs))\ndef f(xs): return -xs[0] / xs[1]",
         {"tests": "def check(candidate):\n    assert math.fabs(poly([2, 4], candidate([2, 4]))) < 1e-9",
          "setup": "import math\ndef poly(xs, x): return sum(c * x ** i for i, c in enumerate(xs))",
          "entry_point": "f"}),
        ("def f(x: List[int]) -> int: return sum(x)",
         {"tests": ["assert f([1, 2]) == 3"], "prelude": "from typing import List"}),
        ("if __name__ == '__main__':\n    print(*sorted(map(int, input().split())))",
         [{"input": "3 1 2\n", "output": "1 2 3"}, {"input": "1", "output": "1\n\n"}]),
        ("import os, sys\ndata = sys.stdin.buffer.read()\nos.write(1, data[:2]); sys.exit()",
         [{"input": "\u00e9x", "output": "\u00e9"}]),
        ("def f():\n    import sys\n    print('noise'); print('noise', file=sys.stderr); return 1",
         ["assert f() == 1"]),
        ("from decimal import Decimal\ndef f(): return Decimal('1.5')", ["assert f() == Decimal('1.5')"]),
        ("from collections import deque\ndef f(): return deque([1])",
         ["import collections as c\nassert f() == c.deque([1])"]),
        ("def f(m):\n    m[0][1] = 5\n    m.append([3])",
         ["m = [[1, 2]]\nr = m[0]\nf(m)\nassert m == [[1, 5], [3]] and r == [1, 5]"]),
        ("def f(xs, key): return sorted(xs, key=key)", ["assert f([1, -2], lambda x: -x) == [1, -2]"]),
        ("def f(g, n): return g(g, n)\ndef h(n): return n + 1", ["assert f(lambda g, n: h(n), 2) == 3"]),
        ("def add(a, b): return a + b\ndef bad(): raise ValueError('no way')",
         "import unittest\nclass T(unittest.TestCase):\n    def setUp(self): self.x = 2\n"
         "    def test_a(self): self.assertEqual(add(self.x, 3), 5)\n"
         "    def test_b(self):\n        with self.assertRaises(ValueError): bad()\n"
         "if __name__ == '__main__': unittest.main()"),
        ("def bad(): raise ValueError('no way')",
         "import pytest\ndef test_bad():\n    with pytest.raises(ValueError, match='no'):\n        bad()"),
        ("def f(x): return x / 3",
         "import pytest\n@pytest.mark.parametrize('x, y', [(3, 1), (1, 0.333333333)])\n"
         "def test_f(x, y):\n    assert f(x) == pytest.approx(y)"),
        ("import atexit\natexit.register(lambda: print('end'))\nimport sys\nsys.path.append('x')\nquit()",
         [{"input": "", "output": "end"}, {"input": "", "output": "end"}]),
        ("def bisect(xs, x): return 7", ["assert bisect([1], 2) == 7"]),
        ("def f(x): x.append(1)", [{"call": "(lambda x: (f(x), x)[1])([0])", "expect": "[0, 1]"}]),
        ("def f(x): return x",
         {"tests": "METADATA = {}\ndef check(f):\n    assert f(1) == 1\ncheck(f)", "entry_point": "f"}),
    ],
)  # fmt: skip
def test_honest_programs_pass_whatever_they_return(fast, program, tests) -> None:
    verdict = judged(fast, program, tests)
    assert verdict.passed, verdict


@pytest.mark.parametrize(
    ("tests", "message"),
    [
        ("", "has no tests in 'reference'"),
        ("[]", "at least one"),
        ('["x = 1"]', "hold no assertion"),
        ('["assert f(:"]', "test 1 is no Python"),
        ('{"tests": ["assert f()"], "entry": "f"}', r"keys \['entry'\]"),
        ('{"tests": ["assert f()"], "setup": 3}', "these are texts"),
        ('{"tests": "def check(candidate):\\n    assert candidate()"}', "needs an entry_point"),
        ('[{"call": "f("}]', "keys"),
        ('[{"call": "f(", "expect": "1"}]', "no Python expression"),
        ('[{"call": "f()", "expect": "hello"}]', "its own quotes"),
        ('[{"input": 3, "output": "1"}]', "are texts"),
        ('[{"input": "3", "output": "1"}, {"call": "f()", "expect": "1"}]', "all tests the same"),
        ('{"tests": [{"input": "3", "output": "1"}], "setup": "x = 1"}', "setup has an effect"),
        ('["import no_such_module\\nassert f() == 1"]', "the tests fail by themselves, at import no_such_module"),
        ('["assert 1 / 0"]', "the tests fail by themselves"),
        ('["assert f(object()) == 1"]', "only plain data and functions enter"),
        ("[\"assert re.compile(f(1) * 'a') == g()\"]", "does not leave the sandbox"),
    ],
)
def test_tests_that_cannot_judge_are_an_error_and_no_verdict(fast, tests, message) -> None:
    with pytest.raises(ValueError, match=message):
        judged(fast, ADD + "\nimport re\ndef f(*a): return 1\ndef g(): return re.compile('a')", tests)


def test_tests_may_stand_in_an_attribute(fast) -> None:
    code = Code(sandbox=fast.tier, tests="suite")
    given = candidate(ADD, reference=None, attributes={"suite": SUITES["check"]})
    assert code.judge([given])[0].passed
    with pytest.raises(ValueError, match="has no tests in 'suite'"):
        code.judge([candidate(ADD)])
    code.close()


@pytest.mark.parametrize(
    ("completion", "program"),
    [
        ("x = 1", "x = 1"),
        ("Text\n```python\nx = 1\n```\nmore", "x = 1\n"),
        ("```python\nx = 1\n```\nthen\n```py\nx = 2\n```\nand the output\n```\n2\n```", "x = 2\n"),
        ("```\nx = 1\n```", "x = 1\n"),
        ("```python\nx = 1\n", "x = 1\n"),
        ("```Python title\nx = '''\n'''\n```", "x = '''\n'''\n"),
        ("````python\n```\nx\n```\n````", "```\nx\n```\n"),
        ("`x` and ```y``` stay\n", "`x` and ```y``` stay\n"),
        ("```bash\npip\n```", "pip\n"),
    ],
)
def test_the_program_is_the_last_block_or_the_whole(completion, program) -> None:
    assert extract(completion) == program


def test_a_hostile_completion_is_read_in_linear_time() -> None:
    for text in ("```python\n" * 20_000, "`" * 200_000, "```\n" * 50_000):
        extract(text)


def test_the_contract_holds(fast) -> None:
    right, wrong = (candidate(case.candidate.completion, reference=SUITES["statements"]) for case in CASES[:4:3])
    check_constraint(fast, passing=[right], failing=[wrong])


def test_a_sandbox_that_fails_is_an_error_and_the_next_candidate_has_another(fast) -> None:
    code = Code(sandbox=fast.tier)
    assert judged(code, ADD, SUITES["statements"]).passed
    for sandbox in code._sandboxes or ():
        sandbox.close()
    with pytest.raises(StageError, match="supervisor is gone"):
        judged(code, ADD, SUITES["statements"])
    assert judged(code, ADD, SUITES["statements"]).passed
    code.close()


def test_memory_in_which_no_python_starts_is_an_error(fast, monkeypatch) -> None:
    code = Code(sandbox=fast.tier)
    monkeypatch.setattr(code, "_memory_bytes", 8 << 20)
    for suite in ("statements", "calls"):
        with pytest.raises(StageError):
            judged(code, ADD, SUITES[suite])
    code.close()


def test_without_a_sandbox_the_constraint_cannot_be_built(monkeypatch) -> None:
    monkeypatch.setattr(tiers, "absent", lambda tier: "not here")
    escape_probe.probed.cache_clear()
    with pytest.raises(ConfigError, match="code is run in a sandbox only"):
        Code()
    with pytest.raises(ConfigError, match="landlock: not here"):
        Code(sandbox="landlock")
    escape_probe.probed.cache_clear()


def test_only_plain_values_cross() -> None:
    values = [None, True, 1, -(10**50), 1.5, "a", b"a", [1], (1,), {1}, frozenset({1}), {"a": (1, [None])}, 2j]
    for value in [*values, values[:9]]:
        back = decode(encode(value))
        assert (back, type(back)) == (value, type(value))
    with pytest.raises(NotPlainError, match="type object"):
        encode([object()])
    for data in (
        b"",
        b"x",
        b"i1",
        b"l5;N",
        b"s9;a",
        b"NN",
        b"S1;l0;",
        b"d1;l0;N",
        b"h0",
        b"l-1;",
        b"i" + b";",
        b"s-5;",
    ):
        with pytest.raises(ValueError, match=r".*"):
            decode(data)

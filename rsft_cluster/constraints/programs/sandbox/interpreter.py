"""The files of a sandboxed interpreter: itself and its standard library, read only, and the code of `inside`."""

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rsft_cluster.constraints.programs.sandbox.inside import plain, program_side, tests_side
from rsft_cluster.constraints.programs.sandbox.program import Program
from rsft_cluster.errors import ConfigError

Verb = Literal["serve", "produce", "judge"]

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_ANSWER_WITHIN_S = 30
_MAX_TASK_BYTES = 1 << 28
_SIDES = {verb: side for side in (program_side, tests_side) for verb in side.VERBS}
_DESCRIBE = """
import sys, os, json, marshal, base64
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
def compiled(path):
    with open(path, encoding="utf-8") as file:
        return base64.b64encode(marshal.dumps(compile(file.read(), "<sandbox>", "exec"))).decode()
print(json.dumps({
    "executable": path, "version": sys.version_info[:2],
    "prefixes": sorted({os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)}),
    "code": {path: compiled(path) for path in sys.argv[1:]},
}))
"""
_BOOT = """
import marshal, os, sys
verb, plain, side = sys.argv[1:]
sys.argv[1:] = []
for name in plain, side:
    module = sys.modules[name] = type(sys)(name)
    with open(name, "rb") as file:
        exec(marshal.load(file), module.__dict__)
with open("task", "rb") as file:
    task = sys.modules[plain].decode(file.read())
sys.path.extend(task["packages"])
module.VERBS[verb](task)
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python to run programs with, without the packages that are installed for it."""

    executable: str
    folders: tuple[str, ...]
    """Folders that it reads, the system's among them."""
    code: Mapping[str, bytes]
    """The modules of `inside` by name, compiled for it."""

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """Return a command of this interpreter: no site packages, no user's settings, standard library frozen."""
        return (self.executable, "-s", "-S", "-P", "-B", "-X", "frozen_modules=on", "-X", "utf8", *arguments)

    def program(self, verb: Verb, task: Mapping[str, Any]) -> Program:
        """Return the program that does a task of `inside`: plain values, as its side documents them."""
        names = (plain.__name__, _SIDES[verb].__name__)
        files = {name: self.code[name] for name in names}
        files["task"] = plain.encode({"packages": (), **task}, max_bytes=_MAX_TASK_BYTES)
        return Program(self.argv("-c", _BOOT, verb, *names), files)


@cache
def interpreter(python: str) -> Interpreter:
    """Return the interpreter that the command `python` starts, out of its virtual environment.

    Raises ConfigError where it is no CPython that can be used.
    """
    modules = {str(module.__file__): module.__name__ for module in (plain, program_side, tests_side)}
    try:
        done = subprocess.run(  # noqa: S603 the user names the interpreter
            [python, "-I", "-S", "-c", _DESCRIBE, *modules],
            capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=True,
        )  # fmt: skip
        facts = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        message = getattr(error, "stderr", "") or str(error)
        raise ConfigError(f"{python!r} is no Python that code can be run with: {message.strip()[-300:]}") from error
    if tuple(facts["version"]) < (3, 11):
        version = ".".join(map(str, facts["version"]))
        raise ConfigError(f"{python!r} is Python {version}; code is run with 3.11 or newer")
    folders = (*SYSTEM_FOLDERS, *(p for p in facts["prefixes"] if not Path(p).is_relative_to("/usr")))
    code = {modules[path]: base64.b64decode(text) for path, text in facts["code"].items()}
    return Interpreter(facts["executable"], folders, code)

"""What a sandboxed interpreter needs: itself and its standard library, read only, and the code of `inside`."""

import base64
import json
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from rsft_cluster.errors import ConfigError
from rsft_cluster.sandbox.inside.plain import encode
from rsft_cluster.sandbox.program import Program

Verb = Literal["serve", "produce", "judge"]

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_ANSWER_WITHIN_S = 30
_MAX_TASK_BYTES = 1 << 28
_PACKAGE = "rsft_cluster.sandbox.inside"
_SIDES = {"serve": "program_side", "produce": "program_side", "judge": "tests_side"}
_DESCRIBE = """
import sys, os, json, marshal, base64
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
def compiled(path):
    with open(path, encoding="utf-8") as file:
        return base64.b64encode(marshal.dumps(compile(file.read(), "<sandbox>", "exec"))).decode()
print(json.dumps({
    "executable": path, "version": sys.version_info[:2],
    "prefixes": sorted({os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)}),
    "code": {name: compiled(name) for name in sys.argv[1:]},
}))
"""
_BOOT = """
import marshal, os, sys
verb, package, *names = sys.argv[1:]
sys.argv[1:] = []
for name in names:
    module = sys.modules[package + "." + name] = type(sys)(name)
    with open(name, "rb") as file:
        exec(marshal.load(file), module.__dict__)
with open("task", "rb") as file:
    task = sys.modules[package + ".plain"].decode(file.read())
sys.path.extend(task["packages"])
module.VERBS[verb](task)
os._exit(0)
"""


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python to run programs with, without the packages that are installed for it."""

    executable: str
    folders: tuple[str, ...]
    """What it reads, the system's folders among them."""
    code: Mapping[str, bytes]
    """The modules of `inside`, compiled for it."""

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """Return a command of this interpreter: no site packages, no user's settings, standard library frozen."""
        return (self.executable, "-s", "-S", "-P", "-B", "-X", "frozen_modules=on", "-X", "utf8", *arguments)

    def program(self, verb: Verb, task: Mapping[str, Any]) -> Program:
        """Return the program that does a task of `inside`: plain values, as its side documents them."""
        names = ("plain", _SIDES[verb])
        files = {
            "task": encode({"packages": (), **task}, max_bytes=_MAX_TASK_BYTES),
            **{name: self.code[name] for name in names},
        }
        return Program(self.argv("-c", _BOOT, verb, _PACKAGE, *names), files)


@cache
def interpreter(python: str) -> Interpreter:
    """Return the interpreter that the command `python` starts, out of its virtual environment.

    Raises ConfigError where it is no CPython that can be used.
    """
    folder = Path(__file__).with_name("inside")
    sources = [str(folder / f"{name}.py") for name in ("plain", "program_side", "tests_side")]
    try:
        done = subprocess.run(  # noqa: S603 the user names the interpreter
            [python, "-I", "-S", "-c", _DESCRIBE, *sources],
            capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ConfigError(f"{python!r} is no Python that code can be run with: {said.strip()[-300:]}") from error
    if tuple(found["version"]) < (3, 11):
        version = ".".join(map(str, found["version"]))
        raise ConfigError(f"{python!r} is Python {version}; code is run with 3.11 or newer")
    folders = (*SYSTEM_FOLDERS, *(p for p in found["prefixes"] if not Path(p).is_relative_to("/usr")))
    code = {Path(name).stem: base64.b64decode(text) for name, text in found["code"].items()}
    return Interpreter(found["executable"], folders, code)

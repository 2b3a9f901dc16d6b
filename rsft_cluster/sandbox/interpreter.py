"""What a sandboxed interpreter needs of the machine's files: itself and its standard library, read only."""

import base64
import json
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from rsft_cluster.errors import ConfigError

SYSTEM_FOLDERS = ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache")
_ANSWER_WITHIN_S = 30
_DESCRIBE = """
import sys, os, json, marshal, base64, importlib.util
path = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
with open(sys.argv[1], encoding="utf-8") as file:
    code = marshal.dumps(compile(file.read(), "<sandbox>", "exec"))
print(json.dumps({
    "executable": path, "version": sys.version_info[:2],
    "prefixes": sorted({os.path.realpath(p) for p in (sys.base_prefix, sys.base_exec_prefix)}),
    "inside": base64.b64encode(importlib.util.MAGIC_NUMBER + bytes(12) + code).decode(),
}))
"""
INSIDE = Path(__file__).with_name("inside.py")


@dataclass(frozen=True, slots=True)
class Interpreter:
    """A Python to run programs with, without the packages that are installed for it."""

    executable: str
    folders: tuple[str, ...]
    """What it reads, the system's folders among them."""
    inside: bytes
    """The module `inside` compiled for it, as a `.pyc` file."""

    def argv(self, *arguments: str) -> tuple[str, ...]:
        """Return a command of this interpreter: no site packages, no user's settings, standard library frozen."""
        return (self.executable, "-s", "-S", "-P", "-B", "-X", "frozen_modules=on", "-X", "utf8", *arguments)


@cache
def interpreter(python: str) -> Interpreter:
    """Return the interpreter that the command `python` starts, out of its virtual environment.

    Raises ConfigError where it is no CPython that can be used.
    """
    try:
        done = subprocess.run(
            [python, "-I", "-S", "-c", _DESCRIBE, str(INSIDE)],
            capture_output=True, text=True, timeout=_ANSWER_WITHIN_S, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise ConfigError(f"{python!r} is no Python that code can be run with: {said.strip()[-300:]}") from error
    if tuple(found["version"]) < (3, 11):
        raise ConfigError(f"{python!r} is Python {'.'.join(map(str, found['version']))}; code is run with 3.11 or newer")
    folders = (*SYSTEM_FOLDERS, *(p for p in found["prefixes"] if not Path(p).is_relative_to("/usr")))
    return Interpreter(found["executable"], folders, base64.b64decode(found["inside"]))

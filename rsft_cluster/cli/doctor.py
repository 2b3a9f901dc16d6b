"""`rsft doctor`: what this machine has, whether it suffices, and what would make it better."""

import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich import box
from rich.table import Table

from rsft_cluster.cli.options import AsJson
from rsft_cluster.errors import RsftError
from rsft_cluster.report.console import results

State = Literal["fine", "weak", "broken"]

PACKAGES = ("torch", "transformers", "ray", "deepspeed", "pyarrow")
MIN_SHM_BYTES = 2 << 30
"""Ray moves objects to disk where shared memory is smaller than this, and slows down."""
MIN_DISK_BYTES = 20 << 30
_STYLES = {"fine": "green", "weak": "yellow", "broken": "bold red"}
_NVIDIA = ("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader")


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was checked: `broken` keeps rsft from working, `weak` makes it work less well."""

    about: str
    state: State
    says: str


def doctor(
    store: Annotated[str | None, typer.Option(help="A folder or URI to store runs in: is it usable?")] = None,
    as_json_: AsJson = False,
) -> None:
    """Say what this machine has, what is missing, and how model-written code is confined. Needs no cluster."""
    findings = [*_software(), *_hardware(store), *_confinement(), *(_storage(store) if store else ())]
    works = all(finding.state != "broken" for finding in findings)
    if as_json_:
        typer.echo(json.dumps({"works": works, "findings": [asdict(f) for f in findings]}, ensure_ascii=False))
    else:
        table = Table(box=box.SIMPLE, show_header=False, padding=(0, 1))
        for finding in findings:
            style = _STYLES[finding.state]
            table.add_row(f"[bold]{finding.about}[/bold]", f"[{style}]{finding.state}[/{style}]", _plain(finding.says))
        results().print(table)
        typer.echo("all that is needed works" if works else "what is broken keeps rsft from working here", err=True)
    raise typer.Exit(0 if works else 1)


def _software() -> Iterator[Finding]:
    yield Finding("Python", "fine", f"{platform.python_version()}, {platform.system()} {platform.release()}")
    for package in PACKAGES:
        try:
            yield Finding(package, "fine", version(package))
        except PackageNotFoundError:
            yield Finding(package, "broken", "not installed: pip install rsft-cluster")


def _hardware(store: str | None) -> Iterator[Finding]:
    yield Finding("CPUs", "fine", str(len(os.sched_getaffinity(0))))
    yield Finding("memory", "fine", _size(_memory_bytes()))
    yield _gpus()
    shm = shutil.disk_usage("/dev/shm")  # noqa: S108 the machine's shared memory, not a temporary file
    small = shm.total < MIN_SHM_BYTES
    hint = f"; Ray wants at least {_size(MIN_SHM_BYTES)} (docker run --shm-size)" if small else ""
    yield Finding("shared memory", "weak" if small else "fine", f"{_size(shm.total)}{hint}")
    folder = store if store and "://" not in store and Path(store).is_dir() else "."
    free = shutil.disk_usage(folder).free
    little = free < MIN_DISK_BYTES
    yield Finding("free disk", "weak" if little else "fine", _size(free) + ("; a model's rounds take more" * little))


def _gpus() -> Finding:
    if not shutil.which(_NVIDIA[0]):
        return Finding("GPUs", "weak", "none: sampling and training run on CPUs, for small models")
    try:
        done = subprocess.run(_NVIDIA, capture_output=True, text=True, timeout=30, check=True)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        return Finding("GPUs", "weak", f"nvidia-smi fails: {error}")
    names = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return Finding("GPUs", "fine" if names else "weak", f"{len(names)}: {'; '.join(sorted(set(names)))}")


def _confinement() -> Iterator[Finding]:
    """Return what confines model-written code: the tier in use, and why the stronger ones are not."""
    from rsft_cluster.constraints.programs.sandbox.escape_probe import survey

    tiers = survey()
    holding = [tier for tier in tiers if tier.holds]
    if holding:
        yield Finding("sandbox", "fine", f"{holding[0].tier}: a hostile program reached nothing outside")
    else:
        yield Finding("sandbox", "broken", "none: the constraint `code` refuses to run, the rest of rsft works")
    for tier in tiers[: tiers.index(holding[0])] if holding else tiers:
        yield Finding(f"  {tier.tier}", "weak", tier.problem)


def _storage(uri: str) -> Iterator[Finding]:
    from rsft_cluster.store import Store

    try:
        Store(uri).probe()
    except RsftError as error:
        yield Finding("store", "broken", str(error))
    else:
        yield Finding("store", "fine", f"{uri}: a file is created once and by one alone")


def _memory_bytes() -> int:
    """Return the memory of this machine, or of the container where that has less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    allowed = limit.read_text().strip() if limit.exists() else "max"
    return min(total, int(allowed)) if allowed.isdecimal() else total


def _size(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):,.1f} GiB"


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


COMMANDS = (doctor,)

"""A night as a batch job of Slurm, and the line of a crontab on a login node that submits it."""

import math
import shlex
from pathlib import Path

from rsft_cluster.cluster.needs import needs
from rsft_cluster.scheduling import cron
from rsft_cluster.scheduling.order import File, Order

CPUS_A_NODE, GPUS_A_NODE = 32, 8
"""The largest node that is assumed when nodes are counted. Sites differ: the lines are there to be edited."""
SCRIPT = Path(__file__).with_name("rsft.sbatch")


def batch(order: Order) -> list[File]:
    """Return the job's script with this config's size and settings in it, and the crontab."""
    name = f"rsft-{order.run}.sbatch"
    log = shlex.quote(str(order.folder / f"rsft-{order.run}.log"))
    command = f"cd {shlex.quote(str(order.folder))} && sbatch --parsable {shlex.quote(name)} >>{log} 2>&1"
    return [File(name, _script(order)), File(f"rsft-{order.run}.crontab", cron.lines(order, command))]


def _script(order: Order) -> str:
    head, directives, body = _parts(SCRIPT.read_text(encoding="utf-8"))
    variables = {
        "RSFT_COMMAND": "nightly",
        "RSFT_CONFIG": str(order.path),
        "RSFT_VENV": _venv(order.python),
        "RSFT_OPTIONS": shlex.join([*order.words, "--quiet"]),
    }
    exports = [f"{key}=${{{key}:-{shlex.quote(value)}}}" for key, value in variables.items() if value]
    exports.append("export " + " ".join(variables))
    return "\n".join([*head, *_size(order), *directives, *exports, *body]) + "\n"


def _parts(text: str) -> tuple[list[str], list[str], list[str]]:
    """Return the script's lines before, among and after its #SBATCH lines, less those that a config decides."""
    lines = text.splitlines()
    marks = [i for i, line in enumerate(lines) if line.startswith("#SBATCH")]
    decided = ("--job-name", "--nodes", "--output")
    kept = [line for line in lines[marks[0] : marks[-1] + 1] if not any(f" {name}=" in line for name in decided)]
    return lines[: marks[0]], kept, lines[marks[-1] + 1 :]


def _size(order: Order) -> list[str]:
    required, nightly = needs(order.config), order.config.nightly
    nodes = max(1, math.ceil(required.num_gpus / GPUS_A_NODE), math.ceil(required.num_cpus / CPUS_A_NODE))
    gpus = math.ceil(required.num_gpus / nodes)
    return [
        f"#SBATCH --job-name=rsft-{order.run}",
        # One night at a time: a job that finds another one of its name waits for it.
        "#SBATCH --dependency=singleton",
        f"#SBATCH --nodes={nodes}",
        f"#SBATCH --cpus-per-task={math.ceil(required.num_cpus / nodes)}",
        *([f"#SBATCH --gpus-per-node={gpus}"] if gpus else []),
        f"#SBATCH --time={math.ceil((nightly.max_hours or 8) * 60)}",
        f"#SBATCH --output=rsft-{order.run}-%j.log",
    ]


def _venv(python: str) -> str:
    folder = Path(python).parent.parent
    return str(folder) if (folder / "pyvenv.cfg").exists() else ""

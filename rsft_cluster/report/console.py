"""What people see: progress while a run works, tables when a round is done. Reads records, decides nothing."""

import sys

from rich.console import Console

PLAIN_WIDTH = 120


def results() -> Console:
    """Return the console for results: stdout, as wide as the terminal, or PLAIN_WIDTH where there is none."""
    return Console(width=None if sys.stdout.isatty() else PLAIN_WIDTH, highlight=False)

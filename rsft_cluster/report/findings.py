"""The check's findings as people read them: what it is about, then the words, wrapped to the terminal."""

import textwrap

from rich.console import Console
from rich.text import Text

LABEL_WIDTH = 20


def show_finding(console: Console, about: str, says: str, *, warns: bool = False) -> None:
    """Print one finding, its further lines indented as the first one is."""
    words = f"warning: {says}" if warns else says
    width = max(console.width - LABEL_WIDTH, LABEL_WIDTH)
    lines = textwrap.wrap(words, width, break_long_words=False, break_on_hyphens=False)
    label = f"{about:<{LABEL_WIDTH - 1}} "
    body = ("\n" + " " * LABEL_WIDTH).join(lines)
    console.print(Text.assemble((label, "bold"), (body, "yellow" if warns else "")), soft_wrap=True)

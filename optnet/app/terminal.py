"""Text for a terminal, by rich: what stands in a name is shown as it is, never read as markup. Decides nothing."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from optnet.errors import printable


def console() -> Console:
    """A console that takes text literally: equations have square brackets, and names have whatever people like."""
    return Console(markup=False, emoji=False, highlight=False, width=None if sys.stdout.isatty() else 160)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], text: int = 1) -> Table:
    """A table whose first ``text`` columns are text and whose others are numbers."""
    made = Table(title=Text(title))
    for number, column in enumerate(columns):
        if number < text:
            made.add_column(Text(column), overflow="fold")
        else:
            made.add_column(Text(column), justify="right", overflow="fold")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def entries(title: str, rows: Sequence[tuple[str, str]]) -> Table:
    """A table of names and what is said of each."""
    made = Table(title=Text(printable(title)), show_header=False)
    made.add_column(style="bold")
    made.add_column(overflow="fold")
    for name, text in rows:
        made.add_row(Text(name), Text(printable(text)))
    return made

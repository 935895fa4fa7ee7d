"""How results are laid out: tables without frames, and values beside their labels."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table
from rich.text import Text

Row = tuple[str, str | Text]
"""A label and its value."""


def table(*headers: str, left: int = 1, title: str | None = None, caption: str | None = None) -> Table:
    """An empty table whose first ``left`` columns are words, and whose others are numbers."""
    made = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        title=title,
        title_justify="left",
        title_style="bold",
        caption=caption,
        caption_justify="left",
        caption_style="dim",
    )
    for place, header in enumerate(headers):
        is_words = place < left  # where there is little room, numbers' headers wrap, and names do not
        made.add_column(header, justify="left" if is_words else "right", no_wrap=is_words)
    return made


def labelled(rows: Iterable[Row], width: int) -> Table:
    """Values beside labels of ``width`` columns; a label that the row above has too is left out."""
    made = Table.grid(padding=(0, 2, 0, 0))
    made.add_column(min_width=width)
    made.add_column()
    before = None
    for label, value in rows:
        made.add_row("" if label == before else label, value)
        before = label
    return made


def threads(count: int | None) -> str:
    """Such as "1 thread" or "default threads"."""
    return f"{count or 'default'} thread{'s' * (count != 1)}"

"""Renderables as the lines that a person sees."""

from collections.abc import Iterable

from rich.console import Console, RenderableType


def lines_of(shown: Iterable[RenderableType], width: int = 80) -> list[str]:
    """As ``Terminal.answer`` prints them, at ``width`` columns."""
    console = Console(width=width, markup=False, emoji=False)
    with console.capture() as captured:
        for one in shown:
            console.print(one, crop=False)
    return [line.rstrip() for line in captured.get().splitlines()]

"""What commands tell people: progress on stderr, tables on stdout, and one line where they fail."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable, Iterator
from typing import NoReturn, TypeVar

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from svd2onnx.progress import Track

T = TypeVar("T")


def fail(message: str) -> NoReturn:
    """End the command with ``message`` as its one line on stderr, and exit code 1."""
    click.echo(f"error: {message}", err=True)
    sys.exit(1)


@contextlib.contextmanager
def progress() -> Iterator[Track]:
    """Bars on stderr, for a person alone: files get none, and the bars go when they are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # A failure leaves its one line alone on stderr.
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bars:

        def track(sequence: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
            return bars.track(sequence, total=total, description=description)

        yield track

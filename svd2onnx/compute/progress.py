"""How long work tells of itself without printing: a function that wraps an iterable.

``rich.progress.track`` has the same shape, so a caller may pass that; the default is silent.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Track(Protocol):
    """Yields the items of ``sequence`` unchanged and shows ``description`` while it does."""

    def __call__(self, sequence: Iterable[T], description: str, total: int | None = None) -> Iterable[T]: ...


def silent(sequence: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Shows nothing."""
    return sequence

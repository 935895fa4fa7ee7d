"""How work that need not be done twice is asked for: a function that may know the result from an earlier run.

The default does the work; ``svd2onnx.memo`` remembers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

T = TypeVar("T")


class Memoize(Protocol):
    """Returns what ``make`` makes, which depends on ``key`` and on nothing else that may change.

    ``kind`` names the piece of work. Keys and results are what a record can hold, see ``records``.
    """

    def __call__(self, kind: str, key: object, make: Callable[[], T]) -> T: ...

    def knows(self, kind: str, key: object) -> bool:
        """Whether the work has been done, as far as can be told without reading the result."""
        ...


class _NoMemo:
    """Remembers nothing."""

    def __call__(self, kind: str, key: object, make: Callable[[], T]) -> T:
        return make()

    def knows(self, kind: str, key: object) -> bool:
        return False


no_memo: Memoize = _NoMemo()

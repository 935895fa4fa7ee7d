"""A folder of finished parts of runs, each under a name that says all that it depends on.

Entries appear by rename and are checked when they are read, so that runs may share a folder, be killed, and
find damaged files: what cannot be read is made anew. A cache that cannot be written costs time later
and nothing now, so it does not fail the run; ``problem`` says what there is to say.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svd2onnx.compute.draft_folder import draft_folder, remove_abandoned
from svd2onnx.memo.entries import read_entry, write_entry
from svd2onnx.memo.records import decode, encode
from svd2onnx.values.errors import OutputError

SUFFIX = ".svd2onnx"
_DRAFTS = "draft"
MOST_BYTES = 8 << 30
"""Of a cache that is kept, beside what the last run used; what was used longest ago goes first."""


class Cache:
    """The entries of ``folder``, which is made with the first of them."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self._stack, self._lock = stack, threading.Lock()
        self._drafts: Path | None = None
        self._used: set[Path] = set()
        self.problem: str | None = None

    def prepare(self) -> Path:
        """The folder on the same disk in which entries are drafted.

        Raises:
            OSError: it cannot be made.
        """
        with self._lock:
            if self._drafts is None:
                self.folder.mkdir(exist_ok=True)
                self._drafts = self._stack.enter_context(draft_folder(self.folder, _DRAFTS))
            return self._drafts

    def has(self, name: str) -> bool:
        """Whether there is an entry under ``name``; it may be damaged."""
        return self._path(name).exists()

    def get(self, name: str) -> Any:
        """The value under ``name``; None where there is none, or a damaged one."""
        path = self._path(name)
        found = read_entry(path)
        if found is None:
            return None
        self._used.add(path)
        with contextlib.suppress(OSError):
            os.utime(path)
        return decode(*found)

    def put(self, name: str, value: object) -> None:
        """Keep ``value``, which is not None."""
        path = self._path(name)
        try:
            draft = self.prepare() / path.name
            try:
                write_entry(draft, *encode(value))
                os.replace(draft, path)
            finally:
                draft.unlink(missing_ok=True)
        except OSError as error:
            self.problem = (
                f"{self.folder} could not keep all that was finished ({error.strerror}): "
                "a run that goes on from it does some of the work again"
            )
        self._used.add(path)

    def trim(self, most: int = MOST_BYTES) -> None:
        """Remove what this run did not use, longest unused first, until ``most`` bytes are left of all."""
        with contextlib.suppress(OSError):  # another run trims too
            stats = {path: path.stat() for path in entries_of(self.folder)}
            total = sum(stat.st_size for stat in stats.values())
            for path in sorted(stats.keys() - self._used, key=lambda path: stats[path].st_mtime):
                if total > most:
                    path.unlink(missing_ok=True)
                    total -= stats[path].st_size

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"


@contextlib.contextmanager
def open_cache(folder: Path, *, fresh: bool, kept: bool) -> Iterator[Cache]:
    """The cache in ``folder``.

    Args:
        folder: where entries are.
        fresh: whether earlier entries go first.
        kept: whether entries stay when the block ends, with or without an error. If not, they stay only where
            the run was interrupted, which its message then says; and of course where it was killed.

    Raises:
        OutputError: what is to be kept cannot be: the folder cannot be made.
    """
    if fresh:
        _clear(folder)
    try:
        with contextlib.ExitStack() as stack:
            cache = Cache(folder, stack)
            if kept:
                try:
                    cache.prepare()
                except OSError as error:
                    raise OutputError(f"cannot keep a cache in {folder}: {error.strerror}") from error
            yield cache
            if kept:
                cache.trim()
    except KeyboardInterrupt as error:
        if entries_of(folder):
            kept = True
            error.add_note(f"what was finished is in {folder}: the same command with --resume goes on there")
        raise
    finally:
        if not kept:
            _clear(folder)


def entries_of(folder: Path) -> list[Path]:
    """The entries in ``folder``; other files there are none of ours."""
    return sorted(folder.glob(f"*{SUFFIX}"))


def _clear(folder: Path) -> None:
    """Remove the entries, and the folder if nothing else is in it."""
    with contextlib.suppress(OSError):
        remove_abandoned(folder, _DRAFTS)
        for path in entries_of(folder):
            path.unlink(missing_ok=True)
        folder.rmdir()

"""Folders for what is not finished: removed when their block ends, or by a later run after a kill.

A lock that the system lets go of with the process tells a live run's folder from one that was left behind.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

_LOCK = ".svd2onnx.lock"
_NEW_S = 60.0
"""Seconds that a live run may take from making its folder to locking it; milliseconds as a rule."""


@contextlib.contextmanager
def draft_folder(parent: Path, name: str) -> Iterator[Path]:
    """A new folder ``.NAME-XXXXXXXX`` in ``parent``; those that killed runs left there go first.

    Raises:
        OSError: the folder cannot be made.
    """
    remove_abandoned(parent, name)
    folder, lock = _locked(parent, name)
    try:
        yield folder
    finally:
        lock.release()
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path, name: str) -> None:
    """Remove the draft folders of ``name`` that no live process holds."""
    for folder in parent.iterdir():
        if not folder.name.startswith(f".{name}-") or folder.is_symlink() or not folder.is_dir():
            continue
        with contextlib.suppress(OSError):
            if (folder / _LOCK).is_file():
                _remove_unless_locked(folder)
            elif time.time() - folder.stat().st_mtime > _NEW_S:
                folder.rmdir()  # one that was killed in between; what is not empty is not ours


def _remove_unless_locked(folder: Path) -> None:
    lock = FileLock(folder / _LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return
    try:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _locked(parent: Path, name: str) -> tuple[Path, FileLock]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=parent))
        lock = FileLock(folder / _LOCK)
        # Another run may have seen the lock's file before it was locked, and removed the folder.
        with contextlib.suppress(Timeout, FileNotFoundError):
            lock.acquire(timeout=0)
            if (folder / _LOCK).exists():
                return folder, lock
            lock.release()

"""Files that appear whole or not at all: written beside their place, renamed into it at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from svd2onnx.compute.draft_folder import draft_folder
from svd2onnx.values.errors import OutputError


@contextlib.contextmanager
def atomic_files(*targets: Path, optional: Collection[Path] = ()) -> Iterator[tuple[Path, ...]]:
    """Give a draft path for each target; move the drafts into place when the block succeeds.

    Drafts of one folder lie in one folder, so that they find each other as they will in their place.

    What cannot be written is found on entry, before any work is done. Where the block raises, nothing is
    left behind and existing files stay as they were. What a killed run left is removed by the next one.

    Args:
        targets: the files.
        optional: those of them that the block may leave unwritten, and that then stay as they were.

    Raises:
        OutputError: a target cannot be written, or is named twice.
    """
    _check_names(targets)
    folders: dict[Path, Path] = {}
    with contextlib.ExitStack() as stack:
        for target in targets:
            _check(target)
            parent = target.parent.resolve()
            if parent not in folders:
                with _refused(target):
                    folders[parent] = stack.enter_context(draft_folder(parent, target.name))
        drafts = tuple(folders[target.parent.resolve()] / target.name for target in targets)
        yield drafts
        made = [(draft, target) for draft, target in zip(drafts, targets, strict=True) if draft.is_file()]
        missing = set(targets) - {target for _, target in made} - set(optional)
        if missing:
            raise OutputError(f"cannot write {missing.pop()}: it was not made")
        # Renames come last, together, and in reverse: the first target is the one that others tell of. A kill
        # between two of them leaves new files beside old ones, each of them whole: a report whose sha256 is
        # not that of its file, and in the worst case new external data beside the old graph. No system
        # renames two files at once; a run with --resume does all of them again.
        for draft, target in reversed(made):
            with _refused(target):
                os.replace(draft, target)


def check_targets(*targets: Path) -> None:
    """Find now what ``atomic_files`` would find on entry, for a command that has slow imports in between.

    Raises:
        OutputError: a target cannot be written, or is named twice.
    """
    _check_names(targets)
    for target in targets:
        _check(target)
        with _refused(target), tempfile.TemporaryFile(dir=target.parent):
            pass  # modes alone do not tell: a disk may be read-only, and root may do anything else


@contextlib.contextmanager
def atomic_folder(target: Path, drafts: Path | None = None) -> Iterator[Path]:
    """Give a draft of the folder ``target``, which takes its place when the block succeeds.

    What is there already is never replaced, because a kill between two renames would lose it.

    Args:
        target: the folder.
        drafts: where its draft lies, if not beside it.

    Raises:
        OutputError: ``target`` holds something, or cannot be written.
    """
    place = Path(os.path.realpath(target))
    with contextlib.ExitStack() as stack:
        with _refused(target):
            if os.path.lexists(place) and not (place.is_dir() and not any(place.iterdir())):
                raise OutputError(
                    f"cannot write {target}: it is there already; remove it or name another folder"
                )
            if not place.parent.is_dir():
                what = "is a file" if place.parent.exists() else "does not exist"
                raise OutputError(f"cannot write {target}: the folder {target.parent} {what}")
            draft = stack.enter_context(draft_folder(drafts or place.parent, place.name)) / place.name
            draft.mkdir()
        yield draft
        with _refused(target):
            _move(draft, place)


def _move(draft: Path, place: Path) -> None:
    try:
        os.rename(draft, place)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        with draft_folder(place.parent, place.name) as near:
            os.rename(shutil.copytree(draft, near / place.name), place)


@contextlib.contextmanager
def _refused(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror or error}") from error


def _check_names(targets: Sequence[Path]) -> None:
    if len({target.parent.resolve() / target.name for target in targets}) < len(targets):
        raise OutputError(f"cannot write two outputs to one file: {', '.join(map(str, targets))}")


def _check(target: Path) -> None:
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: the folder {target.parent} does not exist")
    # Asked of the mode, because the system lets a rename replace what may not be written.
    if target.exists() and not target.stat().st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise OutputError(f"cannot write {target}: it is read-only; remove it or name another file")

"""Files that appear whole or not at all: written beside their place, renamed into it at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from svd2onnx.errors import OutputError


@contextlib.contextmanager
def staged(*targets: Path) -> Iterator[tuple[Path, ...]]:
    """Give a draft path for each target; move the drafts into place when the block succeeds.

    Drafts of one folder lie in one folder, so that they find each other as they will in their place.

    A folder that cannot be written is found on entry, before any work is done. Where the block
    raises, nothing is left behind and existing files stay as they were; so does a target whose draft was not
    written.

    Raises:
        OutputError: a target cannot be written, or is named twice.
    """
    if len({target.parent.resolve() / target.name for target in targets}) < len(targets):
        raise OutputError(f"cannot write two outputs to one file: {', '.join(map(str, targets))}")
    folders: dict[Path, Path] = {}
    try:
        for target in targets:
            _check(target)
            parent = target.parent.resolve()
            if parent not in folders:
                folders[parent] = _draft_folder(target)
        drafts = tuple(folders[target.parent.resolve()] / target.name for target in targets)
        yield drafts
        for draft, target in zip(drafts, targets, strict=True):
            if not draft.exists():
                continue
            try:
                os.replace(draft, target)
            except OSError as error:
                raise OutputError(f"cannot write {target}: {error.strerror}") from error
    finally:
        for folder in folders.values():
            shutil.rmtree(folder, ignore_errors=True)


def _check(target: Path) -> None:
    if target.is_dir():
        raise OutputError(f"cannot write {target}: it is a folder; name a file")
    if not target.parent.is_dir():
        raise OutputError(f"cannot write {target}: the folder {target.parent} does not exist")


def _draft_folder(target: Path) -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error.strerror}") from error

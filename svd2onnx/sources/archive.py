"""Zip archives from strangers: what they say of themselves is checked before a byte of it is unpacked.

PyTorch stores the members of its archives uncompressed, so that they can be mapped into memory. An archive
in which all are stored, and which together are no larger than the file, cannot be a zip bomb.
"""

from __future__ import annotations

import contextlib
import json
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svd2onnx.values.errors import SourceError, one_line

MOST_MEMBERS = 200_000
MOST_JSON_BYTES = 512 << 20
_DAMAGED = (zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError, RuntimeError, ValueError)


class Archive:
    """The members of an open archive by name, without the folder that PyTorch puts them in.

    Raises:
        SourceError: a member is compressed, encrypted, named twice or named so as to leave its folder, or the
            members claim more bytes than the file has.
    """

    def __init__(self, path: Path, archive: zipfile.ZipFile) -> None:
        self.path = path
        self._archive = archive
        members = archive.infolist()
        if len(members) > MOST_MEMBERS:
            raise self._unsafe(f"at most {MOST_MEMBERS} members", f"{len(members)}")
        for member in members:
            if member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1:
                raise self._unsafe("members that are stored as they are", f"{member.filename!r} compressed")
            if "\\" in member.filename or ".." in member.filename.split("/") or member.filename[:1] == "/":
                raise self._unsafe("names within the archive", f"the name {member.filename!r}")
        claimed = sum(member.file_size for member in members)
        if claimed > path.stat().st_size:
            raise self._unsafe("members that fit into the file", f"{claimed} bytes of them")
        self.members = {member.filename.partition("/")[2]: member for member in members}
        roots = {member.filename.partition("/")[0] for member in members}
        if len(self.members) < len(members) or len(roots) != 1:
            raise self._unsafe("one folder with each name once", "several folders, or a name twice")

    def read(self, name: str) -> bytes:
        """The bytes of the member ``name``, whose checksum is right.

        Raises:
            SourceError: there is no such member, or it is damaged.
        """
        if name not in self.members:
            raise self._unsafe(f"the member {name!r}", "none")
        try:
            return self._archive.read(self.members[name])
        except _DAMAGED as error:
            raise damaged(self.path, error) from error

    def json(self, name: str) -> Any:
        """The member ``name`` as JSON; likewise."""
        if name in self.members and self.members[name].file_size > MOST_JSON_BYTES:
            raise self._unsafe(
                f"at most {MOST_JSON_BYTES} bytes of {name}", f"{self.members[name].file_size}"
            )
        return parse_json(self.path, self.read(name))

    def _unsafe(self, expected: str, found: str) -> SourceError:
        return SourceError(
            f"{self.path} is no sound archive of PyTorch: expected {expected}, found {found}; "
            "write it again with PyTorch, or download it again"
        )


@contextlib.contextmanager
def open_archive(path: Path) -> Iterator[Archive]:
    """Open the archive at ``path`` for reading.

    Raises:
        SourceError: it is no archive, or not a sound one (see ``Archive``).
    """
    try:
        opened = zipfile.ZipFile(path)
    except _DAMAGED as error:
        raise damaged(path, error) from error
    with opened:
        yield Archive(path, opened)


def parse_json(path: Path, text: bytes) -> Any:
    """Parse a JSON part of ``path``.

    Raises:
        SourceError: it is none, or is nested too deep.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: BaseException) -> SourceError:
    """What to say where a file cannot be read to its end."""
    return SourceError(
        f"{path} is damaged or cut off ({one_line(error)}); expected the whole file: "
        "copy or download it again"
    )

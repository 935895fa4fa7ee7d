"""Files of strangers, mutated at random: each ends in success or in one line; nothing is left or hangs.

A few cases of each kind by default; ``-m slow`` runs 2000 of each. Mutations are of raw bytes, and of the
parts inside an archive, whose checksums are made right again, so that they get further than the first check.
"""

import io
import json
import resource
import signal
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from svd2onnx.cli.main import main
from tests.svd2onnx.sources import files

LONGEST_S = 60
MOST_GROWTH_KB = 4 << 20
Edit = tuple[str, float, bytes]
"""What to do, where (a share of the length), and with what."""
EDITS = st.tuples(
    st.sampled_from(["flip", "put", "insert", "delete", "cut", "repeat"]),
    st.floats(0, 1, exclude_max=True),
    st.binary(min_size=1, max_size=8),
)
ODD = ["__class__", "../x", "torch.load", "s0", "-1", "9**9**9", "\n", "F32", "I64", "a" * 5000]
PLAIN = st.one_of(st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12))
VALUES = st.one_of(PLAIN, st.sampled_from(ODD), st.just([]), st.just({}))


def mutated(content: bytes, edit: Edit) -> bytes:
    """``content`` with one change."""
    kind, place, extra = edit
    start = int(place * len(content))
    if kind == "flip":
        return (
            content[:start]
            + bytes(a ^ b for a, b in zip(content[start:], extra, strict=False))
            + content[start + len(extra) :]
        )
    if kind == "put":
        return content[:start] + extra + content[start + len(extra) :]
    if kind == "insert":
        return content[:start] + extra + content[start:]
    if kind == "delete":
        return content[:start] + content[start + len(extra) * 7 :]
    return content[:start] if kind == "cut" else content[:start] + content[max(0, start - 64) :]


def in_archive(content: bytes, place: float, edit: Callable[[str, bytes], bytes]) -> bytes:
    """The archive with one member changed, found by ``place`` among those that are more than numbers."""
    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        told = [name for name in old.namelist() if not name.rpartition("/")[2].startswith("weight_")]
        chosen = told[int(place * len(told))]
        for name in old.namelist():
            part = old.read(name)
            new.writestr(name, edit(name, part) if name == chosen else part)
    return out.getvalue()


def in_json(text: bytes, place: float, value: object) -> bytes:
    """The JSON with one of its entries replaced."""
    tree = json.loads(text)
    entries = list(entries_of(tree))
    container, key = entries[int(place * len(entries))]
    container[key] = value
    return json.dumps(tree).encode()


def entries_of(tree: Any) -> Iterator[tuple[Any, Any]]:
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in list(items):
        yield tree, key
        yield from entries_of(value)


def part_edit(edit: Edit, value: object) -> Callable[[str, bytes], bytes]:
    """Of a member: one entry of JSON, else raw bytes."""
    return lambda name, part: (
        in_json(part, edit[1], value) if name.endswith(".json") and len(part) > 20 else mutated(part, edit)
    )


def pt_file() -> bytes:
    buffer = io.BytesIO()
    torch.save(files.state_dict(), buffer)
    return buffer.getvalue()


def pt2_file() -> bytes:
    buffer = io.BytesIO()
    network = files.seeded(files.Texts)
    program = torch.export.export(
        network,
        (torch.randint(0, 160, (2, 7)),),
        dynamic_shapes={"ids": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length")}},
    )
    torch.export.save(program, buffer)
    return buffer.getvalue()


def npz_file() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, ids=np.random.default_rng(0).integers(0, 160, (12, 7)))
    return buffer.getvalue()


KINDS: dict[str, Callable[[], bytes]] = {
    "pt": pt_file,
    "pt2": pt2_file,
    "safetensors": lambda: save(files.state_dict()),
    "npz": npz_file,
}


class Mutated(bytes):
    """Bytes that are not shown: they are many."""

    def __repr__(self) -> str:
        return f"<{len(self)} bytes>"


@st.composite
def mutations(draw: st.DrawFn, kind: str, whole: bytes) -> Mutated:
    """``whole`` with one to three changes."""
    content = whole
    for _ in range(draw(st.integers(1, 3))):
        edit, value, place = draw(EDITS), draw(VALUES), draw(st.floats(0, 1, exclude_max=True))
        try:
            if kind == "safetensors" and draw(st.booleans()):
                length = int.from_bytes(content[:8], "little")
                header = in_json(content[8 : 8 + length], place, value)
                content = len(header).to_bytes(8, "little") + header + content[8 + length :]
            elif kind != "safetensors" and draw(st.integers(0, 3)):
                content = in_archive(content, place, part_edit(edit, value))
            else:
                content = mutated(content, edit)
        except (
            ValueError,
            zipfile.BadZipFile,
            IndexError,
            NotImplementedError,
            UnicodeError,
            EOFError,
            OSError,
        ):
            content = mutated(content, edit)  # an earlier change has broken the container
    return Mutated(content)


@contextmanager
def in_time() -> Iterator[None]:
    """A hang fails: the alarm interrupts what runs."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"longer than {LONGEST_S} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LONGEST_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def check(kind: str, content: bytes, folder: Path) -> None:
    """Inspect the file, or its network on it as calibration data: one line, or success."""
    path = folder / f"mutated.{kind}"
    path.write_bytes(content)
    before = sorted(folder.rglob("*"))
    options: tuple[object, ...] = (path, "--model", folder / "network.py")
    if kind == "pt2":
        options = (path,)
    elif kind == "npz":
        options = (folder / "network.py", "--calibration", path)
    with in_time():
        result = CliRunner().invoke(main, ["inspect", *map(str, options)])
    assert sorted(folder.rglob("*")) == before
    assert result.exception is None or isinstance(result.exception, SystemExit)
    if result.exit_code:
        assert result.exit_code == 1
        (line,) = result.stderr.splitlines()
        assert line.startswith("error: ")
        assert "a bug: please report" not in line
        assert str(folder) in line
        assert result.stdout == ""
    else:
        assert result.stderr == ""


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cases", [25, pytest.param(2000, marks=pytest.mark.slow)])
def test_mutated_files(kind: str, cases: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files.model_file(tmp_path / "network.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    whole = KINDS[kind]()
    check(kind, whole, tmp_path)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, ended = time.monotonic(), []

    @settings(
        max_examples=cases,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(mutations(kind, whole))
    def run(content: Mutated) -> None:
        check(kind, content, tmp_path)
        ended.append(time.monotonic() - started)

    run()
    assert len(ended) >= cases * 0.9
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < MOST_GROWTH_KB

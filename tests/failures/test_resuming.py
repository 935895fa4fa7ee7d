"""Runs that are killed, interrupted or refused lose nothing; a resumed one gives the bytes of a whole one."""

import json
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from svd2onnx.memo.cache import entries_of
from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.processes import (
    COMMAND,
    PREVIOUS,
    await_that,
    contents,
    finish,
    kill_after,
    start,
)

SAME = ("out.onnx", "out.onnx.plan.json")
"""Files that hold no times."""


@dataclass(frozen=True)
class Whole:
    """What a run that nothing disturbs writes, and how long it takes."""

    files: dict[str, bytes]
    seconds: float


def arguments(folder: Path, *options: object) -> list[object]:
    source = folder / "network.py"
    source.write_text(MODEL_FILE)
    shared = ("--provider", "cpu", "--target-size", "0.3x", "--overwrite")
    return ["compress-export", source, "-o", folder / "out.onnx", *shared, *options]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder = tmp_path_factory.mktemp("whole")
    started = time.monotonic()
    code, _, err = finish(start(arguments(folder), hash_seed=1))
    assert (code, err) == (0, "")
    return Whole(contents(folder), time.monotonic() - started)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """One with the output of an earlier run."""
    for name, content in PREVIOUS.items():
        (tmp_path / name).write_bytes(content)
    return tmp_path


def assert_as_whole(folder: Path, whole: Whole) -> None:
    found = contents(folder)
    assert set(found) == set(whole.files)
    for name in SAME:
        assert found[name] == whole.files[name], f"{name} differs"


def assert_intact(folder: Path) -> None:
    found = contents(folder)
    assert {name: found[name] for name in PREVIOUS} == PREVIOUS
    assert set(found) == {*PREVIOUS, "network.py"}


def assert_nothing_is_lost(folder: Path, whole: Whole) -> None:
    """A kill may come after some files, or all, were replaced; each is the old one or the new one."""
    found = contents(folder)
    assert set(found) == {*PREVIOUS, "network.py"}
    for name, previous in PREVIOUS.items():
        if name in SAME:
            assert found[name] in (previous, whole.files[name]), f"{name} is neither old nor new"
        elif found[name] != previous:
            json.loads(found[name])


def test_another_process_writes_the_same_bytes(folder: Path, whole: Whole) -> None:
    """With other hashes of names, and over earlier files; and nothing but its files stays."""
    code, _, err = finish(start(arguments(folder), hash_seed=2))
    assert (code, err) == (0, "")
    assert_as_whole(folder, whole)
    assert not any(path.is_dir() for path in folder.iterdir())
    for name in SAME:
        for secret in (str(folder), "network.py", time.strftime("%Y-%m")):
            assert secret.encode() not in whole.files[name]


def resumed_after_kills(folder: Path, whole: Whole, moments: list[float]) -> None:
    """Kill a run at each of ``moments`` (shares of its time), going on each time; then let it end."""
    for moment in moments:
        code = kill_after(start(arguments(folder, "--resume")), moment * whole.seconds)
        assert code in (-signal.SIGKILL, 0)
        assert_nothing_is_lost(folder, whole)
    code, _, err = finish(start(arguments(folder, "--resume"), hash_seed=3))
    assert (code, err) == (0, "")
    assert_as_whole(folder, whole)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["out.onnx.cache"]
    assert set((folder / "out.onnx.cache").iterdir()) == set(entries_of(folder / "out.onnx.cache"))


def test_a_run_that_is_killed_twice_is_finished_by_resume(folder: Path, whole: Whole) -> None:
    resumed_after_kills(folder, whole, [0.4, 0.7])


@pytest.mark.slow
def test_a_run_that_is_killed_at_ten_random_moments_is_finished_by_resume(folder: Path, whole: Whole) -> None:
    moments = random.Random(0)
    resumed_after_kills(folder, whole, [moments.uniform(0.2, 1.0) for _ in range(10)])


@pytest.mark.slow
@pytest.mark.parametrize("moment", [random.Random(1).uniform(0.2, 1.0) for _ in range(10)])
def test_a_run_that_is_killed_at_any_moment_is_finished_by_resume(
    folder: Path, whole: Whole, moment: float
) -> None:
    """Each of ten moments of a run of its own, that was not asked to keep anything."""
    kill_after(start(arguments(folder)), moment * whole.seconds)
    assert_nothing_is_lost(folder, whole)
    resumed_after_kills(folder, whole, [])


KILLED_AT_RENAME = """
import os, signal, sys
from svd2onnx.cli.main import main

replace, left = os.replace, [int(sys.argv.pop(1))]

def counted(source, target):
    if "out.onnx.cache" not in str(target):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
    replace(source, target)

os.replace = counted
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_renames_leaves_whole_files_and_resume_repairs_them(
    folder: Path, whole: Whole, renames: int
) -> None:
    command = (COMMAND[0], "-c", KILLED_AT_RENAME, str(renames))
    code, _, _ = finish(start(arguments(folder, "--resume"), command=command))
    assert code == -signal.SIGKILL
    found = contents(folder)
    assert found["out.onnx"] == PREVIOUS["out.onnx"]
    assert found["out.onnx.plan.json"] == (whole.files if renames else PREVIOUS)["out.onnx.plan.json"]
    resumed_after_kills(folder, whole, [])


@pytest.mark.parametrize(
    ("number", "code"),
    [
        (signal.SIGINT, 130),
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, 129, marks=pytest.mark.slow),
    ],
    ids=["SIGINT", "SIGTERM", "SIGHUP"],
)
def test_an_interrupted_run_says_so_in_one_line_and_where_its_parts_are(
    folder: Path, number: signal.Signals, code: int
) -> None:
    process = start(arguments(folder))
    await_that(lambda: any((folder / "out.onnx.cache").glob("probes-*")), process)
    process.send_signal(number)
    found, out, err = finish(process)
    assert (found, out) == (code, "")
    assert err == (
        f"error: interrupted by {number.name}; what was finished is in {folder / 'out.onnx.cache'}: "
        "the same command with --resume goes on there\n"
    )
    assert_intact(folder)
    assert [path.name for path in folder.iterdir() if path.is_dir()] == ["out.onnx.cache"]


@pytest.mark.parametrize("file_bytes", [60_000, pytest.param(20_000, marks=pytest.mark.slow)])
def test_a_file_that_may_not_be_written_whole_is_told_in_one_line(folder: Path, file_bytes: int) -> None:
    code, out, err = finish(start(arguments(folder), file_bytes=file_bytes))
    assert (code, out) == (1, "")
    assert err.startswith("error: a file would be larger than is allowed here")
    assert err.count("\n") == 1
    assert_intact(folder)
    assert not any(path.is_dir() for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 100 kB, which the float32 graph alone fills."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ("mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(disk))
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root and the right to mount")
    try:
        yield disk
    finally:
        subprocess.run(("umount", "-l", str(disk)), check=True)


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(small_disk: Path) -> None:
    for name, content in PREVIOUS.items():
        (small_disk / name).write_bytes(content)
    code, out, err = finish(start(arguments(small_disk)))
    assert (code, out) == (1, "")
    assert err.startswith("error: the disk is full")
    assert err.count("\n") == 1
    assert_intact(small_disk)
    assert not any(path.is_dir() for path in small_disk.iterdir())


@pytest.mark.slow
def test_a_cache_that_finds_no_room_costs_no_more_than_a_warning(folder: Path, whole: Whole) -> None:
    """Its largest entry is larger than the files of the run."""
    code, out, err = finish(start(arguments(folder, "--resume"), file_bytes=250_000))
    assert (code, err) == (0, "")
    assert "could not keep all that was finished" in " ".join(out.split())
    assert_as_whole(folder, whole)

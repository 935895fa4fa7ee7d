"""Folders of killed runs go with the next run, and those of live ones never."""

import os
import subprocess
import sys
import time
from pathlib import Path

from svd2onnx.compute.draft_folder import draft_folder

HOLD = """
import sys, time
from pathlib import Path
from svd2onnx.compute.draft_folder import draft_folder
with draft_folder(Path(sys.argv[1]), "out.onnx") as folder:
    (folder / "half").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def held(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    """A live process with a draft folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(parent)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    with process.stdout:
        return process, Path(process.stdout.readline().strip())


def test_a_folder_goes_with_its_block(tmp_path: Path) -> None:
    with draft_folder(tmp_path, "out.onnx") as folder:
        assert folder.parent == tmp_path
        assert folder.name.startswith(".out.onnx-")
        (folder / "half").write_text("x")
    assert list(tmp_path.iterdir()) == []


def test_that_of_a_live_run_stays_and_that_of_a_killed_one_goes(tmp_path: Path) -> None:
    process, left = held(tmp_path)
    try:
        with draft_folder(tmp_path, "out.onnx"):
            assert (left / "half").exists()
    finally:
        process.kill()
        process.wait()
    assert left.exists()
    with draft_folder(tmp_path, "other.onnx"):
        assert left.exists()
    with draft_folder(tmp_path, "out.onnx"):
        assert not left.exists()


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    (tmp_path / ".out.onnx-notes").mkdir()
    (tmp_path / ".out.onnx-notes" / "text").write_text("x")
    (tmp_path / ".out.onnx-file").write_text("x")
    (tmp_path / ".out.onnx-link").symlink_to(tmp_path / ".out.onnx-notes")
    (tmp_path / ".out.onnx-new").mkdir()  # of a run that is about to lock it
    (tmp_path / ".out.onnx-old").mkdir()  # of one that was killed before it could
    for name in ("notes", "old"):
        os.utime(tmp_path / f".out.onnx-{name}", (time.time() - 3600,) * 2)
    with draft_folder(tmp_path, "out.onnx"):
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".out.onnx-file",
        ".out.onnx-link",
        ".out.onnx-new",
        ".out.onnx-notes",
    ]

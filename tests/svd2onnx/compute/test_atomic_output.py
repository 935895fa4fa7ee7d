"""Files appear whole or not at all, and whatever was there before a failure is there after it."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from svd2onnx.compute.atomic_output import atomic_files, atomic_folder, check_targets
from svd2onnx.values.errors import OutputError


def contents(folder: Path) -> dict[str, str]:
    """Every file of ``folder``, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_drafts_take_their_place_when_the_block_ends(tmp_path: Path) -> None:
    targets = tmp_path / "a.onnx", tmp_path / "a.onnx.report.json"
    targets[0].write_text("old")
    with atomic_files(*targets) as drafts:
        for draft, text in zip(drafts, ("graph", "report"), strict=True):
            draft.write_text(text)
        assert contents(tmp_path)["a.onnx"] == "old"
    assert contents(tmp_path) == {"a.onnx": "graph", "a.onnx.report.json": "report"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_targets_are_checked_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "old.onnx").write_text("old")
    (tmp_path / "folder").mkdir()
    check_targets(tmp_path / "old.onnx", tmp_path / "new.onnx")
    for targets, part in (
        ([tmp_path / "folder"], "it is a folder"),
        ([tmp_path / "nowhere" / "a.onnx"], "does not exist"),
        ([Path("/proc/a.onnx")], "cannot write /proc/a.onnx"),
        ([tmp_path / "a.onnx", tmp_path / "folder" / ".." / "a.onnx"], "two outputs to one file"),
    ):
        with pytest.raises(OutputError, match=part):
            check_targets(*targets)
    assert contents(tmp_path) == {"old.onnx": "old"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_new_and_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(error), atomic_files(tmp_path / "a.onnx", tmp_path / "b.json") as drafts:  # noqa: PT012
        for draft in drafts:
            draft.write_text("half")
            draft.with_name("beside").write_text("scratch")
        raise error
    assert contents(tmp_path) == {"a.onnx": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_does_not_exist_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "a.onnx"
    with pytest.raises(OutputError, match=r"does not exist$"), atomic_files(tmp_path / "b.onnx", target):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(OutputError, match=r"it is a folder; name a file$"), atomic_files(tmp_path / "a.onnx"):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), atomic_files(tmp_path / "file" / "a.onnx"):
        pytest.fail("the block must not run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with (
        pytest.raises(OutputError, match=r"^cannot write /proc/x\.onnx: "),
        atomic_files(Path("/proc/x.onnx")),
    ):
        pytest.fail("the block must not run")


def test_a_read_only_file_is_refused_before_the_work_even_for_root(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    (tmp_path / "a.onnx").chmod(0o444)
    with pytest.raises(OutputError, match="it is read-only"), atomic_files(tmp_path / "a.onnx"):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"a.onnx": "old"}


def test_nothing_is_renamed_where_a_draft_is_missing(tmp_path: Path) -> None:
    targets = [tmp_path / name for name in "abc"]
    targets[0].write_text("old")
    with pytest.raises(OutputError, match="it was not made"), atomic_files(*targets) as drafts:  # noqa: PT012
        drafts[0].write_text("new")
        drafts[2].write_text("new")
    assert contents(tmp_path) == {"a": "old"}


def test_the_first_target_is_renamed_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = []
    replace = os.replace

    def noted(draft: Path, target: Path) -> None:
        renamed.append(target.name)
        replace(draft, target)

    monkeypatch.setattr(os, "replace", noted)
    with atomic_files(tmp_path / "a.onnx", tmp_path / "b.json") as drafts:
        for draft in drafts:
            draft.write_text("new")
    assert renamed == ["b.json", "a.onnx"]


KILLED = """
import os, signal, sys
from pathlib import Path
from svd2onnx.compute.atomic_output import atomic_files

replace, left = os.replace, [int(sys.argv[1])]

def counted(draft, target):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1
    replace(draft, target)

os.replace = counted
with atomic_files(*map(Path, sys.argv[2:])) as drafts:
    for draft in drafts:
        draft.write_text("new")
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_between_renames_leaves_whole_files_and_the_next_run_does_all(
    tmp_path: Path, renames: int
) -> None:
    targets = [tmp_path / name for name in ("a.onnx", "b.json", "c.json")]
    for target in targets:
        target.write_text("old")
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(renames), *map(str, targets)], env=env, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert [target.read_text() for target in targets] == ["old"] * (3 - renames) + ["new"] * renames
    with atomic_files(*targets) as drafts:
        for draft in drafts:
            draft.write_text("new")
    assert contents(tmp_path) == {"a.onnx": "new", "b.json": "new", "c.json": "new"}
    assert len(list(tmp_path.iterdir())) == 3


def test_one_file_cannot_be_two_outputs(tmp_path: Path) -> None:
    """The second would silently take the place of the first."""
    with pytest.raises(OutputError), atomic_files(tmp_path / "a.onnx", tmp_path / "." / "a.onnx"):
        pytest.fail("the block must not run")


def test_a_draft_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), atomic_files(tmp_path / "a.onnx"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_folder_takes_its_place_when_the_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "new"
    with atomic_folder(target) as draft:
        (draft / "1").mkdir()
        (draft / "1" / "a").write_text("whole")
        assert not target.exists()
    assert contents(tmp_path) == {"new/1/a": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert (
        target.stat().st_mode == (target / "1").stat().st_mode
    )  # that of any new folder, not of a private one


@pytest.mark.skipif(not os.access("/dev/shm", os.W_OK), reason="needs a second file system")
def test_a_draft_may_lie_on_another_file_system(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as other:
        with atomic_folder(tmp_path / "new", Path(other)) as draft:
            (draft / "1").mkdir()
            (draft / "1" / "a").write_text("whole")
            assert list(tmp_path.iterdir()) == []
        assert list(Path(other).iterdir()) == []
    assert contents(tmp_path) == {"new/1/a": "whole"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    with atomic_folder(tmp_path / "new") as draft:
        (draft / "a").write_text("whole")
    assert contents(tmp_path) == {"new/a": "whole"}


def test_a_failure_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "new") as draft:  # noqa: PT012
        (draft / "a").write_text("half")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_no_place_for_a_folder(tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("old")
    (tmp_path / "circle").symlink_to("circle")
    places = {"full": "there already", "full/a": "there already", "full/a/b": "is a file", "x/y": "not exist"}
    for name, line in (places | {"circle": "circle"}).items():
        with pytest.raises(OutputError, match=line), atomic_folder(tmp_path / name):
            pytest.fail("the block must not run")
    assert contents(tmp_path) == {"full/a": "old"}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["circle", "full"]

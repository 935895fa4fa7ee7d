"""Files appear whole or not at all, and whatever was there before a failure is there after it."""

import os
from pathlib import Path

import pytest

from svd2onnx.errors import OutputError
from svd2onnx.outputs import staged


def contents(folder: Path) -> dict[str, str]:
    """Every file of ``folder``, hidden ones too."""
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_drafts_take_their_place_when_the_block_ends(tmp_path: Path) -> None:
    targets = tmp_path / "a.onnx", tmp_path / "a.onnx.report.json"
    targets[0].write_text("old")
    with staged(*targets) as drafts:
        for draft, text in zip(drafts, ("graph", "report"), strict=True):
            draft.write_text(text)
        assert contents(tmp_path)["a.onnx"] == "old"
    assert contents(tmp_path) == {"a.onnx": "graph", "a.onnx.report.json": "report"}
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_nothing_new_and_keeps_what_was_there(
    tmp_path: Path, error: type[BaseException]
) -> None:
    (tmp_path / "a.onnx").write_text("old")
    with pytest.raises(error), staged(tmp_path / "a.onnx", tmp_path / "b.json") as drafts:  # noqa: PT012
        for draft in drafts:
            draft.write_text("half")
            draft.with_name("beside").write_text("scratch")
        raise error
    assert contents(tmp_path) == {"a.onnx": "old"}
    assert len(list(tmp_path.iterdir())) == 1


def test_a_folder_that_does_not_exist_is_refused_before_the_work(tmp_path: Path) -> None:
    target = tmp_path / "nowhere" / "a.onnx"
    with pytest.raises(OutputError, match=r"does not exist$"), staged(tmp_path / "b.onnx", target):
        pytest.fail("the block must not run")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_as_target_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").mkdir()
    with pytest.raises(OutputError, match=r"it is a folder; name a file$"), staged(tmp_path / "a.onnx"):
        pytest.fail("the block must not run")
    assert [path.name for path in tmp_path.iterdir()] == ["a.onnx"]


def test_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), staged(tmp_path / "file" / "a.onnx"):
        pytest.fail("the block must not run")


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_refused() -> None:
    with pytest.raises(OutputError, match=r"^cannot write /proc/x\.onnx: "), staged(Path("/proc/x.onnx")):
        pytest.fail("the block must not run")


def test_a_read_only_file_is_refused_before_the_work_even_for_root(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_text("old")
    (tmp_path / "a.onnx").chmod(0o444)
    with pytest.raises(OutputError, match="it is read-only"), staged(tmp_path / "a.onnx"):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == {"a.onnx": "old"}


def test_nothing_is_renamed_where_a_draft_is_missing(tmp_path: Path) -> None:
    targets = [tmp_path / name for name in "abc"]
    targets[0].write_text("old")
    with pytest.raises(OutputError, match="it was not made"), staged(*targets) as drafts:  # noqa: PT012
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
    with staged(tmp_path / "a.onnx", tmp_path / "b.json") as drafts:
        for draft in drafts:
            draft.write_text("new")
    assert renamed == ["b.json", "a.onnx"]


def test_one_file_cannot_be_two_outputs(tmp_path: Path) -> None:
    """The second would silently take the place of the first."""
    with pytest.raises(OutputError), staged(tmp_path / "a.onnx", tmp_path / "." / "a.onnx"):
        pytest.fail("the block must not run")


def test_a_draft_that_was_not_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"), staged(tmp_path / "a.onnx"):
        pass
    assert list(tmp_path.iterdir()) == []

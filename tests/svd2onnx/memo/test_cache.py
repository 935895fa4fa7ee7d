"""A cache gives back what was put, makes damaged entries anew, bounds itself, and says where it stays."""

import os
import signal
from pathlib import Path

import pytest
import torch

from svd2onnx.cli.interruption import Interrupted
from svd2onnx.memo import cache as caching
from svd2onnx.memo.cache import entries_of, open_cache
from svd2onnx.memo.disk_memo import DiskMemo
from svd2onnx.values.errors import OutputError, PlanError


def filled(folder: Path, *, fresh: bool = False, kept: bool = True, **values: object) -> None:
    with open_cache(folder, fresh=fresh, kept=kept) as cache:
        for name, value in values.items():
            cache.put(name, value)


def ended_by(error: BaseException, folder: Path, **values: object) -> None:
    with open_cache(folder, fresh=True, kept=False) as cache:
        for name, value in values.items():
            cache.put(name, value)
        raise error


def value_of(folder: Path, name: str) -> object:
    with open_cache(folder, fresh=False, kept=True) as cache:
        return cache.get(name)


def test_a_kept_cache_serves_the_next_run(tmp_path: Path) -> None:
    filled(tmp_path / "cache", a=[1, 2], b=torch.ones(3))
    assert value_of(tmp_path / "cache", "a") == [1, 2]
    assert value_of(tmp_path / "cache", "c") is None
    assert sorted(path.name for path in (tmp_path / "cache").iterdir()) == ["a.svd2onnx", "b.svd2onnx"]


def test_one_that_is_not_kept_goes_with_its_run_and_nothing_else_does(tmp_path: Path) -> None:
    filled(tmp_path / "cache", kept=False, a=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "mine.txt").write_text("kept")
    filled(tmp_path / "cache", kept=False, a=1)
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["mine.txt"]


def test_a_failure_does_not_keep_it(tmp_path: Path) -> None:
    with pytest.raises(PlanError):
        ended_by(PlanError("stated"), tmp_path / "cache", a=1)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_keeps_it_and_says_where(tmp_path: Path) -> None:
    stop = Interrupted(signal.SIGTERM)
    with pytest.raises(Interrupted):
        ended_by(stop, tmp_path / "cache", a=1)
    assert stop.line.startswith(f"interrupted by SIGTERM; what was finished is in {tmp_path}")
    assert value_of(tmp_path / "cache", "a") == 1


def test_an_interruption_before_anything_was_finished_leaves_nothing(tmp_path: Path) -> None:
    stop = Interrupted(signal.SIGINT)
    with pytest.raises(Interrupted):
        ended_by(stop, tmp_path / "cache")
    assert stop.line == "interrupted by SIGINT"
    assert list(tmp_path.iterdir()) == []


def test_a_fresh_one_takes_nothing_over(tmp_path: Path) -> None:
    filled(tmp_path / "cache", a=1)
    with open_cache(tmp_path / "cache", fresh=True, kept=False) as cache:
        assert cache.get("a") is None


def test_a_damaged_entry_is_made_anew(tmp_path: Path) -> None:
    made = []

    def work() -> torch.Tensor:
        made.append(1)
        return torch.arange(100.0)

    for damage in (False, True, False):
        if damage:
            (path,) = entries_of(tmp_path / "cache")
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        with open_cache(tmp_path / "cache", fresh=False, kept=True) as cache:
            assert DiskMemo(cache)("numbers", (1, 2), work).sum() == 4950
    assert len(made) == 2


def test_keys_and_what_pieces_are_about_tell_them_apart(tmp_path: Path) -> None:
    with open_cache(tmp_path / "cache", fresh=False, kept=True) as cache:
        memo = DiskMemo(cache, "network")
        pieces = [memo, memo.of("seed 1"), DiskMemo(cache, "other")]
        found = [piece(kind, key, lambda: [1]) for piece in pieces for kind in "ab" for key in (1, "1", (1,))]
    assert len(found) == len(entries_of(tmp_path / "cache")) == 18


def test_what_was_used_longest_ago_goes_first_and_what_this_run_used_stays(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    filled(folder, **{name: torch.zeros(1000) for name in "abcd"})
    for age, name in enumerate("dcba"):
        os.utime(folder / f"{name}.svd2onnx", (1000 - age, 1000 - age))
    size = (folder / "a.svd2onnx").stat().st_size
    with open_cache(folder, fresh=False, kept=True) as cache:
        cache.get("a")  # the oldest
        cache.trim(2 * size)
    assert sorted(path.stem for path in entries_of(folder)) == ["a", "d"]


def test_two_runs_may_share_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with (
        open_cache(folder, fresh=False, kept=True) as first,
        open_cache(folder, fresh=False, kept=True) as second,
    ):
        first.put("a", 1)
        second.put("b", 2)
        assert (first.get("b"), second.get("a")) == (2, 1)
    assert len(list(folder.iterdir())) == 2


def test_a_disk_that_fills_costs_only_the_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, *_: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching, "write_entry", full)
    with open_cache(tmp_path / "cache", fresh=False, kept=False) as cache:
        assert DiskMemo(cache)("a", (), lambda: 7) == 7
        assert cache.problem is not None
        assert "No space left on device" in cache.problem
        assert entries_of(tmp_path / "cache") == []
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_is_asked_for_and_cannot_be_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, match="cannot keep a cache in"),
        open_cache(tmp_path / "file", fresh=False, kept=True),
    ):
        pytest.fail("the block must not run")


def test_without_a_cache_all_is_made_each_time() -> None:
    made: list[int] = []
    for _ in range(2):
        DiskMemo().of("more")("a", (), lambda: made.append(1) or 1)
    assert len(made) == 2

"""Pieces are done once each, and nothing new is begun once the results are no longer asked for."""

import time
from collections.abc import Iterator

import pytest
import torch

from svd2onnx.compute import executors, workers
from svd2onnx.compute.workers import finished, finished_memoized
from svd2onnx.memo.cache import open_cache
from svd2onnx.memo.disk_memo import DiskMemo
from svd2onnx.values.errors import ExecutorError


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def squared(number: int) -> int:
    return number * number


def one(item: int) -> tuple[int]:
    return (item,)


def test_every_item_comes_with_its_result(threads: int) -> None:
    results = dict(finished(squared, range(20), one))
    assert results == {number: number * number for number in range(20)}
    assert torch.get_num_threads() == threads


@pytest.mark.usefixtures("threads")
def test_each_piece_has_one_thread() -> None:
    assert {own for _, own in finished(torch.get_num_threads, range(6), lambda _: ())} == {1}


@pytest.mark.usefixtures("threads")
def test_nothing_is_begun_after_the_end() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    results = finished(work, range(200), one)
    assert next(results)[1] in (0, 1)
    results.close()  # type: ignore[attr-defined]
    assert len(begun) < 100


@pytest.mark.usefixtures("threads")
def test_a_failure_comes_to_the_caller_from_the_work_and_from_its_arguments() -> None:
    with pytest.raises(ZeroDivisionError):
        list(finished(squared, range(9), lambda item: (1 // (5 - item),)))
    with pytest.raises(TypeError):
        list(finished(squared, range(9), lambda item: (item if item < 5 else "five",)))


@pytest.mark.usefixtures("threads")
def test_what_is_known_is_not_done_again(tmp_path) -> None:
    asked: list[int] = []

    def arguments(item: int) -> tuple[int]:
        asked.append(item)
        return (item,)

    def run(items: range) -> dict[int, int]:
        return dict(finished_memoized(memoize, "squares", lambda item: item, squared, items, arguments))

    with open_cache(tmp_path / "cache", fresh=True, kept=True) as cache:
        memoize = DiskMemo(cache, "about")
        run(range(0, 10, 2))
        assert sorted(asked) == [0, 2, 4, 6, 8]
        (tmp_path / "cache" / memoize._name("squares", 4)).with_suffix(".svd2onnx").write_bytes(b"damaged")
        asked.clear()
        assert run(range(10)) == {number: number * number for number in range(10)}
        assert sorted(asked) == [1, 3, 4, 5, 7, 9]


def test_a_worker_that_would_round_otherwise_refuses() -> None:
    here = (workers.own_code(), *workers.kernels())
    assert workers._elsewhere(here, 1, 7, lambda: 4) == (7, 4)
    with pytest.raises(
        ExecutorError, match=r"processor instructions SLOW and .*same versions on every machine"
    ):
        workers._elsewhere((*here[:2], "SLOW"), 1, 7, lambda: 4)


def test_a_worker_without_this_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def work(_item: int) -> None:
        raise RuntimeError("The worker said:\nNo module named 'svd2onnx.compression.realize'")

    with pytest.raises(RuntimeError):
        list(finished(work, [1], one))
    elsewhere = executors.Executor("ray", "threading", lambda: 1)
    monkeypatch.setattr(workers, "current", lambda: elsewhere)
    with pytest.raises(
        ExecutorError, match=r"^a worker cannot import svd2onnx\.compression\.realize: install [^\n]*$"
    ):
        list(finished(work, [1], one))

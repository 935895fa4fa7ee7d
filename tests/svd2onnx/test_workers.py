"""Layers are worked on in order, and nothing new is begun once the results are no longer asked for."""

import time

import pytest
import torch

from svd2onnx.workers import map_layers


@pytest.mark.parametrize("threads", [1, 2])
def test_results_come_in_order(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert list(map_layers(lambda item: item * item, range(20))) == [i * i for i in range(20)]
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("threads", [1, 2])
def test_nothing_is_begun_after_the_end(threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.02)
        return item

    try:
        results = map_layers(work, range(200))
        assert next(iter(results)) == 0
        results.close()  # type: ignore[attr-defined]
        assert len(begun) < 100
    finally:
        torch.set_num_threads(before)

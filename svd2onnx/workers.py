"""Work on several layers at once: threads with one core each, because the layers' steps are small."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

import torch
from joblib import Parallel, delayed

T = TypeVar("T")
R = TypeVar("R")


def map_layers(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``work`` of each item, in order, with as many threads as torch would use within one operation."""
    threads = torch.get_num_threads()
    with _single_threaded():
        results: Iterable[R] = Parallel(n_jobs=threads, prefer="threads", return_as="generator")(
            delayed(_alone)(work, item) for item in items
        )
        yield from results


def _alone(work: Callable[[T], R], item: T) -> R:
    torch.set_num_threads(1)  # new threads start with the process's default
    return work(item)


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

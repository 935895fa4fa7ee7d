"""Work on several layers at once: threads with one core each, because the layers' steps are small."""

from __future__ import annotations

import contextlib
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TypeVar

import torch
from joblib import Parallel, delayed

T = TypeVar("T")
R = TypeVar("R")


def map_layers(work: Callable[[T], R], items: Sequence[T]) -> Iterator[R]:
    """``work`` of each item, in order, with as many threads as torch would use within one operation.

    Where the results are no longer asked for, as when the run is interrupted, no further item is begun.
    """
    threads = torch.get_num_threads()
    ended = threading.Event()

    def alone(item: T) -> R | None:
        torch.set_num_threads(1)  # new threads start with the process's default
        return None if ended.is_set() else work(item)

    with _single_threaded():
        results: Generator[R, None, None] = Parallel(n_jobs=threads, prefer="threads", return_as="generator")(
            delayed(alone)(item) for item in items
        )
        try:
            for result in results:  # noqa: UP028 - it would hand the end on to joblib, which warns of it
                yield result
        finally:
            ended.set()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's, of results that nobody asked for
                results.close()


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

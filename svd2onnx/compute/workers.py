"""Pieces of work on their own, several at once, wherever ``executors`` says that they are done.

A piece is a function of a module and its arguments. Each has one thread, because a layer's steps are small,
or as many as it is told to. The results are the same wherever they were made.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import warnings
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed

from svd2onnx.compute.device import CPU, on
from svd2onnx.compute.environment import kernels, own_code
from svd2onnx.compute.executors import Executor, current, is_loss
from svd2onnx.compute.memoize import Memoize
from svd2onnx.compute.self_contained import self_contained
from svd2onnx.values.errors import ExecutorError, one_line

T = TypeVar("T")
R = TypeVar("R")
_LOSSES = 3
"""So often in a row workers may be lost, with nothing done in between."""
_AHEAD = "1.5*n_jobs"
"""Tasks that are ready at a time: those that are worked on, and a few that are on their way."""

logger = logging.getLogger(__name__)


def finished(
    work: Callable[..., R],
    items: Sequence[T],
    arguments: Callable[[T], tuple[Any, ...]],
    threads: int = 1,
    device: torch.device = CPU,
    weights: int = 0,
) -> Iterator[tuple[T, R]]:
    """Each item with ``work(*arguments(item))``, in the order in which they are done.

    Arguments are asked for when a worker is about to be free. Where the results are no longer asked for, as
    when the run is interrupted, no further item is begun. What a lost worker had in hand is done again.

    Args:
        work: a function of a module, or a ``partial`` of one.
        items: what to work on.
        arguments: of ``work``: all that it needs, because it may run on another machine.
        threads: of torch, for each piece.
        device: where pieces are computed, from and to the CPU. On a GPU they come one after the other: a
            thread that starts kernels as fast as Python can is all that it takes, and its memory then need
            only hold one.
        weights: how many of them are worked on in all.

    Raises:
        ExecutorError: workers are lost one after another, or compute otherwise than this process.
    """
    left = dict(enumerate(items))
    losses = 0
    executor = current().suited(weights, device)
    while left:
        try:
            for number, result in _results(executor, work, left, arguments, threads, device):
                item = left.pop(number)
                losses = 0
                yield item, result
        except Exception as error:
            if not is_loss(error):
                raise _explained(error, executor) from error
            losses += 1
            if losses == _LOSSES:
                raise ExecutorError(
                    f"workers were lost {losses} times in a row: most likely they ran out of memory; let "
                    f"fewer work at a time, or use --executor threads ({one_line(error)})"
                ) from error
            logger.warning("a worker was lost: what it had in hand is done again (%d left)", len(left))


def finished_memoized(
    memoize: Memoize,
    kind: str,
    key: Callable[[T], object],
    work: Callable[..., R],
    items: Sequence[T],
    arguments: Callable[[T], tuple[Any, ...]],
    *,
    device: torch.device = CPU,
    weights: Callable[[T], int] = lambda _: 0,
) -> Iterator[tuple[T, R]]:
    """As ``finished``; items whose results ``memoize`` knows, by ``kind`` and ``key``, come first.

    ``weights`` tells how many of them an item is.
    """
    known = [memoize.knows(kind, key(item)) for item in items]
    for item, is_known in zip(items, known, strict=True):
        if is_known:
            yield item, memoize(kind, key(item), functools.partial(_made, work, arguments, item, device))
    unknown = [item for item, is_known in zip(items, known, strict=True) if not is_known]
    for item, result in finished(work, unknown, arguments, device=device, weights=sum(map(weights, unknown))):
        yield item, memoize(kind, key(item), functools.partial(_same, result))


def _made(
    work: Callable[..., R], arguments: Callable[[T], tuple[Any, ...]], item: T, device: torch.device
) -> R:
    with _threads_kept():
        return _computed(device, work, *self_contained(arguments(item)))


def _computed(device: torch.device, work: Callable[..., R], *arguments: Any) -> R:
    return on(CPU, work(*on(device, arguments)))


def _same(result: R) -> R:
    return result


def _results(
    executor: Executor,
    work: Callable[..., R],
    items: Mapping[int, T],
    arguments: Callable[[T], tuple[Any, ...]],
    threads: int,
    device: torch.device,
) -> Iterator[tuple[int, R]]:
    """The number of each item, with its result."""
    workers = max(1, executor.cores() // threads) if device == CPU else 1
    ended = threading.Event()
    here = (own_code(), *kernels())

    def tasks() -> Iterator[Any]:
        for number, item in list(items.items()):
            # joblib may ask from a thread of its own, which has the process's default.
            torch.set_num_threads(1)
            piece = functools.partial(_computed, device, work, *self_contained(arguments(item)))
            if executor.in_process:
                yield delayed(functools.partial(_here, ended, number, piece))()
            else:
                yield delayed(functools.partial(_elsewhere, here, threads, number, piece))()

    with _threads_kept():
        results: Generator[tuple[int, R], None, None] = Parallel(
            n_jobs=workers,
            backend=executor.backend,
            return_as="generator_unordered",
            batch_size=1,
            pre_dispatch=_AHEAD,
            **executor.options,
        )(tasks())
        try:
            for result in results:  # noqa: UP028 - it would hand the end on to joblib, which warns of it
                yield result
        finally:
            ended.set()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # joblib's, of results that nobody asked for
                results.close()


def _here(ended: threading.Event, number: int, piece: Callable[[], R]) -> tuple[int, R | None]:
    torch.set_num_threads(1)  # new threads start with the process's default
    return number, None if ended.is_set() else self_contained(piece())


def _elsewhere(sender: tuple[str, ...], threads: int, number: int, piece: Callable[[], R]) -> tuple[int, R]:
    """In a worker: the piece is done only if it gives there what it would give here."""
    own = (own_code(), *kernels())
    if own != sender:
        names = ("code of svd2onnx", "torch", "processor instructions")
        differ = (f"{n} {a[:12]} and {b[:12]}" for n, a, b in zip(names, sender, own, strict=True) if a != b)
        raise ExecutorError(
            f"a worker would round otherwise than this process ({', '.join(differ)}): install the same "
            "versions on every machine, and set ATEN_CPU_CAPABILITY=avx2 on all where processors differ"
        )
    torch.set_num_threads(threads)
    return number, self_contained(piece())


def _explained(error: Exception, executor: Executor) -> Exception:
    """``error``, or what it means where a worker on another machine cannot import what it needs."""
    missing = re.search(r"No module named '([\w.]+)'", str(error))
    if missing is None or executor.in_process:
        return error
    return ExecutorError(
        f"a worker cannot import {missing[1]}: install svd2onnx, of the same version, on every machine "
        "of the cluster"
    )


@contextlib.contextmanager
def _threads_kept() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)

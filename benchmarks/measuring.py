"""One row of the results: what a contender's file weighs and what it lost, or why there is none."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.contenders import Contender
from benchmarks.graphs import float_shapes, tidy
from benchmarks.judging import Judge
from benchmarks.task import Task
from benchmarks.worker import PeerError, Worker


@dataclass(frozen=True)
class Row:
    """Errors are means over the evaluation samples, as the task's objective counts them.

    ``strict``, with its ``standard_error``, is the graph as written, in float32: the weights alone.
    ``deployed`` is a default session on the CPU, and ``metric`` the model file's own in that session.
    ``seconds`` are those of compressing, on a machine that did other things too, and without the
    moments that ``benchmarks.moments`` keeps. ``failure`` says why the numbers are missing. ``predicted`` is
    the strict error that svd2onnx's planner expected, before any retraining.
    """

    contender: str
    setting: str
    bits_per_weight: float | None = None
    file_bytes: int | None = None
    strict: float | None = None
    standard_error: float | None = None
    deployed: float | None = None
    metric: float | None = None
    seconds: float | None = None
    failure: str = ""
    predicted: float | None = None

    @property
    def key(self) -> tuple[str, str]:
        return self.contender, self.setting


def measure(task: Task, contender: Contender, worker: Worker, judge: Judge, folder: Path) -> Row:
    """Let ``contender`` write its file into ``folder`` and judge it; whatever it raises becomes a row."""
    path = folder / "contender.onnx"
    for old in (path, path.with_suffix(".predicted")):
        old.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        worker.compress(task, contender, path)
        seconds = time.perf_counter() - started
        tidy(path)
        check(task, path)
        return _judged(task, contender, judge, path, seconds)
    except PeerError as error:
        reason = str(error)
    except Exception as error:  # a file that cannot be read or run, for any reason: the others compete
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
    return Row(contender.name, contender.label, failure=reason)


def check(task: Task, path: Path) -> None:
    """A contender must have compressed something, and not the embeddings.

    Raises:
        PeerError: it did not keep to that.
    """
    if task.bits_per_weight(path.stat().st_size) > 31.5:
        raise PeerError("it left every Linear in float32, without an error")
    if missing := task.table_shapes - float_shapes(path):
        raise PeerError(f"the embedding tables {sorted(missing)} are no longer float32")


def _judged(task: Task, contender: Contender, judge: Judge, path: Path, seconds: float) -> Row:
    strict, _ = judge.errors(path, strict=True)
    deployed, metric = judge.errors(path, strict=False)
    file_bytes = path.stat().st_size
    expectation = path.with_suffix(".predicted")
    return Row(
        contender.name,
        contender.label,
        bits_per_weight=task.bits_per_weight(file_bytes),
        file_bytes=file_bytes,
        strict=float(strict.mean()),
        standard_error=float(strict.std(ddof=1)) / math.sqrt(strict.size) if strict.size > 1 else None,
        deployed=float(deployed.mean()),
        metric=metric,
        seconds=seconds,
        predicted=json.loads(expectation.read_text()) if expectation.exists() else None,
    )

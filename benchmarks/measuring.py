"""One row of the results: what a contender's file weighs and what it lost, or why there is none."""

from __future__ import annotations

import contextlib
import io
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.contenders import Contender
from benchmarks.graphs import float_shapes, tidy
from benchmarks.task import Task
from svd2onnx.loading import as_arrays
from svd2onnx_runtime import evaluate, open_session, run, sample_errors, token_mask


@dataclass(frozen=True)
class Row:
    """Errors are means over the evaluation samples, as the task's objective counts them.

    ``strict`` is the graph as written, in float32; ``deployed`` a default session on the CPU, with
    ``standard_error``. ``seconds`` are those of compressing, on a machine that did other things too.
    ``failure`` says why the numbers are missing.
    """

    contender: str
    setting: str
    bits_per_weight: float | None = None
    file_bytes: int | None = None
    strict: float | None = None
    deployed: float | None = None
    standard_error: float | None = None
    metric: float | None = None
    seconds: float | None = None
    failure: str = ""

    @property
    def key(self) -> tuple[str, str]:
        return self.contender, self.setting


def measure(task: Task, contender: Contender, folder: Path) -> Row:
    """Let ``contender`` write its file into ``folder`` and judge it; whatever it raises becomes a row."""
    path = folder / "contender.onnx"
    path.unlink(missing_ok=True)
    started = time.perf_counter()
    try:
        with _quiet():
            contender.run(task, path)
            seconds = time.perf_counter() - started
            tidy(path)
        _check(task, path)
        return _judge(task, contender, path, seconds)
    except Exception as error:  # any library, any reason: the others still compete
        line = " ".join(f"{type(error).__name__}: {error}".split())
        return Row(contender.name, contender.label, failure=line[:300])


def _judge(task: Task, contender: Contender, path: Path, seconds: float) -> Row:
    source = task.model_file
    deployed = evaluate(
        path,
        task.graph,
        (as_arrays(batch) for batch in source.inputs("evaluation")),
        source.metric,
        source.objective,
        "cpu",
        source.summary,
    )
    file_bytes = path.stat().st_size
    return Row(
        contender.name,
        contender.label,
        bits_per_weight=task.bits_per_weight(file_bytes),
        file_bytes=file_bytes,
        strict=_strict_error(task, path),
        deployed=deployed.mean_error,
        standard_error=deployed.standard_error,
        metric=next(iter(deployed.metric.values()), None),
        seconds=seconds,
    )


def _strict_error(task: Task, path: Path) -> float:
    """The mean error with onnxruntime's optimizations off: the weights alone, in float32."""
    session, original = open_session(path, "cpu", strict=True), open_session(task.graph, "cpu")
    errors, objective = [], task.model_file.objective
    for batch in task.model_file.inputs("evaluation"):
        feed = as_arrays(batch)
        output, expected = (next(iter(run(graph, feed).values())) for graph in (session, original))
        mask = token_mask(objective, expected, feed)
        errors.append(sample_errors(objective, expected, output, mask))
    return float(np.concatenate(errors).mean())


def _check(task: Task, path: Path) -> None:
    """A contender must have compressed something, and not the embeddings.

    Raises:
        ValueError: it did not keep to that.
    """
    if task.bits_per_weight(path.stat().st_size) > 31.5:
        raise ValueError("it left every Linear in float32, without an error")
    if missing := task.table_shapes - float_shapes(path):
        raise ValueError(f"the embedding tables {sorted(missing)} are no longer float32")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The libraries' progress bars and logs would bury the table."""
    logging.disable()
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(logging.NOTSET)

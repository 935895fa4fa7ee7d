"""Accuracy of a graph against the float32 original: fidelity of every output, and the task's metric.

Both graphs run over the same batches in default sessions, so the numbers are what a user gets. One that
takes keys and values of a past gets an empty one, and those that it gives are no results.
A model file judges outputs by a function of numpy arrays::

    metric(outputs: dict[str, ndarray], batch: dict[str, ndarray])
        -> float | dict[str, float | ndarray]

A bare float is named "metric". Floats are averaged over the batches, weighted by rows; arrays are
columns, concatenated over the batches and then averaged, unless ``summary(columns)`` reduces them
(a rank correlation needs the whole column).
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from svd2onnx_runtime.errors import naming
from svd2onnx_runtime.objectives import fidelity
from svd2onnx_runtime.outputs import OutputErrors, OutputFidelity
from svd2onnx_runtime.past import results_of
from svd2onnx_runtime.session import Array, Session, open_reference, open_session, provider_of, run

MetricValue: TypeAlias = float | dict[str, Any]
Metric: TypeAlias = Callable[[dict[str, Array], dict[str, Array]], MetricValue]
Summary: TypeAlias = Callable[[dict[str, Array]], dict[str, float]]


@dataclass(frozen=True)
class EvaluationResult:
    """Fidelity and metric of a graph, and the metric of its reference, on ``provider``.

    Fidelity and errors are of the one output ``output`` that the objective judges; ``outputs`` has what each
    lost, that one too, in the graph's order. Errors are per sample, as the objective counts them (rows,
    tokens or batch entries). ``standard_error`` is that of ``mean_error``; it takes samples as independent,
    which tokens of one text are not. It is None for one sample. ``worst_sample`` counts from 0 over all
    batches (masked tokens left out).
    """

    provider: str
    objective: str
    samples: int
    fidelity: float
    mean_error: float
    standard_error: float | None
    worst_error: float
    worst_sample: int
    metric: dict[str, float]
    reference_metric: dict[str, float]
    output: str | None = None
    outputs: tuple[OutputFidelity, ...] = ()


def evaluate(
    path: str | os.PathLike[str],
    reference: str | os.PathLike[str],
    batches: Iterable[Mapping[str, Array]],
    metric: Metric | None,
    objective: str,
    provider: str = "auto",
    *,
    summary: Summary | None = None,
    output: str | None = None,
) -> EvaluationResult:
    """Run ``path`` and ``reference`` over ``batches`` and compare them.

    Fidelity is that of ``output``, or of the first of floating-point numbers; "kl" counts only the tokens of
    a batch's "attention_mask" if that has the shape of the logits without their last axis. Raises InputsError
    for no batches and for an output that there is not, ProviderError and GraphError.
    """
    session, original = open_session(path, provider), open_reference(reference, provider)
    errors = OutputErrors(results_of(original), objective, output)
    scores, original_scores = _Scores(summary), _Scores(summary)
    for batch in batches:
        with naming(path):
            outputs = run(session, batch, results_of(session))
        with naming(reference):
            expected = run(original, batch, results_of(original))
        with naming(path):
            errors.add(list(expected.values()), list(outputs.values()), batch)
        if metric is not None:
            rows = _rows(session, batch)
            scores.add(metric(outputs, dict(batch)), rows)
            original_scores.add(metric(expected, dict(batch)), rows)
    judged, every = errors.judged()
    mean = float(every.mean())
    worst = int(every.argmax())
    return EvaluationResult(
        provider=provider_of(session),
        objective=objective,
        samples=every.size,
        fidelity=fidelity(objective, mean),
        mean_error=mean,
        standard_error=(float(every.std(ddof=1)) / math.sqrt(every.size) if every.size > 1 else None),
        worst_error=float(every[worst]),
        worst_sample=worst,
        metric=scores.result(),
        reference_metric=original_scores.result(),
        output=judged,
        outputs=errors.every(),
    )


class _Scores:
    """Collects a metric's values over the batches: weighted means of floats, and columns."""

    def __init__(self, summary: Summary | None) -> None:
        self._summary = summary
        self._sums: dict[str, tuple[float, int]] = {}  # name -> (value x rows, rows)
        self._columns: dict[str, list[Array]] = {}

    def add(self, value: MetricValue, rows: int) -> None:
        named = value if isinstance(value, dict) else {"metric": value}
        for name, item in named.items():
            if isinstance(item, np.ndarray) and item.ndim:
                self._columns.setdefault(name, []).append(item)
            else:
                total, seen = self._sums.get(name, (0.0, 0))
                self._sums[name] = total + float(item) * rows, seen + rows

    def result(self) -> dict[str, float]:
        means = {name: total / rows for name, (total, rows) in self._sums.items()}
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        if self._summary is not None and columns:
            return means | self._summary(columns)
        return means | {name: float(column.mean()) for name, column in columns.items()}


def _rows(session: Session, batch: Mapping[str, Array]) -> int:
    """The batch size: the first axis of the graph's first input."""
    return int(np.shape(batch[session.get_inputs()[0].name])[0])

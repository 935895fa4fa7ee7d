"""The judge: a graph's errors against the float32 one, on the evaluation batches.

What the float32 graph answers is computed once and kept in files, because logits over a vocabulary do
not fit the memory, and because half of all the computing would be that graph's.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.task import Feed, Task
from svd2onnx.sources.model_file import ModelFile, as_arrays
from svd2onnx_runtime import open_session, run, sample_errors, token_mask

Errors = NDArray[np.float64]


@dataclass(frozen=True)
class Judge:
    """``answers`` are files of the float32 graph's first output, one a batch; ``metric`` is its own."""

    model_file: ModelFile
    batches: Sequence[Feed]
    answers: Sequence[Path]
    threads: int | None
    metric: float | None = None

    def errors(self, graph: Path, *, strict: bool) -> tuple[Errors, float | None]:
        """The error of every sample, as the objective counts it, and the model file's metric.

        ``strict`` is the graph as written, in float32, whose metric nobody asks for; otherwise it is a
        default session on the CPU.
        """
        errors, judged = [], _Metric(self.model_file)
        outputs = _outputs(graph, self.batches, self.threads, strict=strict)
        for output, batch, answer in zip(outputs, self.batches, self.answers, strict=True):
            expected = np.load(answer)
            mask = token_mask(self.model_file.objective, expected, batch)
            first = next(iter(output.values()))
            errors.append(sample_errors(self.model_file.objective, expected, first, mask))
            if not strict:
                judged.add(output, batch)
        return np.concatenate(errors), judged.result()


def judge_of(task: Task, folder: Path, threads: int | None = None) -> Judge:
    """Run the float32 graph of ``task`` and keep its answers in ``folder``."""
    source = task.model_file
    batches = [as_arrays(batch) for batch in source.inputs("evaluation")]
    answers, judged = [], _Metric(source)
    for index, output in enumerate(_outputs(task.graph, batches, threads, strict=False)):
        answers.append(folder / f"answer-{index}.npy")
        np.save(answers[-1], next(iter(output.values())))
        judged.add(output, batches[index])
    return Judge(source, batches, answers, threads, judged.result())


def _outputs(
    graph: Path, batches: Sequence[Feed], threads: int | None, *, strict: bool
) -> Iterator[dict[str, Any]]:
    session = open_session(graph, "cpu", threads=threads, strict=strict)
    for batch in batches:
        yield run(session, batch)


class _Metric:
    """The first number of the model file's metric over all batches."""

    def __init__(self, source: ModelFile) -> None:
        self._metric, self._summary = source.metric, source.summary
        self._columns: dict[str, list[Any]] = {}

    def add(self, output: dict[str, Any], batch: Feed) -> None:
        value = self._metric(output, dict(batch)) if self._metric is not None else {}
        for name, item in (value if isinstance(value, dict) else {"metric": value}).items():
            # A number counts for every row of its batch, as in svd2onnx_runtime.evaluate.
            column = item if np.ndim(item) else np.full(len(next(iter(batch.values()))), item)
            self._columns.setdefault(name, []).append(column)

    def result(self) -> float | None:
        if not self._columns:
            return None
        columns = {name: np.concatenate(parts) for name, parts in self._columns.items()}
        numbers = self._summary(columns) if self._summary is not None else {}
        numbers |= {name: float(column.mean()) for name, column in columns.items() if name not in numbers}
        return next(iter(numbers.values()), None)

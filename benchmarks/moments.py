"""The second moments of what enters each Linear: H, the sum of x x^T over the tokens."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from benchmarks.graphs import input_name, linear_nodes
from benchmarks.task import Task
from svd2onnx_runtime import open_session, run

Moment = NDArray[np.float64]


def input_moments(task: Task) -> dict[str, Moment]:
    """One [in, in] matrix for each tensor of the graph that a Linear takes, by its name.

    Linears that share their input share its matrix; it counts every token of the calibration inputs. A
    file beside the graph keeps them for the next contender.
    """
    kept = task.graph.with_suffix(".moments.npz")
    if not kept.exists():
        moments = _computed(task)
        np.savez(kept, **moments)  # type: ignore[arg-type]
        return moments
    with np.load(kept) as file:
        return dict(file)


def _computed(task: Task) -> dict[str, Moment]:
    model = ir.load(task.graph)
    names = list(dict.fromkeys(input_name(node) for node, _ in linear_nodes(model.graph)))
    values = {value.name: value for node in model.graph for value in (*node.inputs, *node.outputs) if value}
    known = {value.name for value in model.graph.outputs}
    model.graph.outputs.extend(values[name] for name in names if name not in known)
    moments: dict[str, Moment] = {}
    with TemporaryDirectory() as folder:
        path = Path(folder) / "inputs.onnx"
        ir.save(model, path)
        session = open_session(path, "cpu", threads=torch.get_num_threads())  # OMP_NUM_THREADS, if set
        for feed in task.calibration:
            outputs: dict[str, Any] = run(session, feed)
            for name in names:
                rows = outputs[name].reshape(-1, outputs[name].shape[-1])
                moments[name] = moments.get(name, 0.0) + (rows.T @ rows).astype(np.float64)
    return moments

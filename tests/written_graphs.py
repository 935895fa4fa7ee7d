"""Looks at every ONNX file that svd2onnx writes while the tests run.

onnx.checker sees each of them. With SVD2ONNX_TEST_GRAPHS=1 (``make test-graphs``) each small one also goes
through onnxsim, and must give the same numbers with all optimizations, with none, and simplified. The
optimizations may round as they are meant to: a default session computes quantized MatMuls in int8.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from svd2onnx_runtime import synthetic_inputs
from svd2onnx_runtime.errors import InputsError

THOROUGH = os.environ.get("SVD2ONNX_TEST_GRAPHS") == "1"
ROUNDING = 1e-4
"""Relative to the norm of an output: how much the order of float32 sums may change it."""
HALF_ROUNDING = 1e-2
INT8_ROUNDING = 0.1
"""Of activations that are rounded to int8, in layer after layer."""
LARGEST_CHECKED, LARGEST_RUN = 64 << 20, 4 << 20
SIZES = (2, 9, 32)
"""Tried in turn for dynamic dimensions; a convolution may need more than a few pixels."""

Numbers = list[np.ndarray]


@dataclass
class WrittenGraphs:
    """What was written and not looked at yet, and the digests of what was."""

    pending: dict[str, bytes] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    run: int = 0
    without_sizes: int = 0

    def note(self, path: Path) -> None:
        data = path.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        if digest not in self.seen and len(data) <= LARGEST_CHECKED:
            self.seen.add(digest)
            # A draft is gone when the test ends; onnx.load also reads weights beside it.
            whole = data if not path.with_name(f"{path.name}.data").exists() else _with_weights(path)
            self.pending[digest] = whole

    def problems(self) -> Iterator[str]:
        """What is wrong with the files that were written since the last call."""
        while self.pending:
            _, data = self.pending.popitem()
            yield from invalid(data)
            if THOROUGH and len(data) <= LARGEST_RUN:
                try:
                    yield from differences(data)
                    self.run += 1
                except InputsError:
                    self.without_sizes += 1

    def forget(self) -> None:
        """What a test let svd2onnx write broken, on purpose."""
        self.pending.clear()

    def summary(self) -> str:
        return (
            f"{len(self.seen)} graphs of svd2onnx: {self.run} in onnxsim and at both levels of optimization, "
            f"{self.without_sizes} whose inputs have sizes of their own"
        )


def watch(patch: pytest.MonkeyPatch) -> WrittenGraphs:
    """Note what the package writes from now on; the files of tests themselves may be broken on purpose."""
    written, save = WrittenGraphs(), ir.save

    def noting(model: ir.Model, path: Any, *args: Any, **options: Any) -> None:
        save(model, path, *args, **options)
        if sys._getframe(1).f_globals["__name__"].startswith("svd2onnx."):
            written.note(Path(path))

    patch.setattr(ir, "save", noting)
    return written


def invalid(data: bytes) -> Iterator[str]:
    """What onnx.checker says; operators of other domains than onnx's own have no schema there."""
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        yield f"onnx.checker: {error}"


def differences(data: bytes) -> Iterator[str]:
    """Where sessions of the graph, as it is and as onnxsim makes it, give other numbers than as written.

    Raises:
        InputsError: none of SIZES suits its inputs.
    """
    from onnxsim import simplify  # seconds to import

    model = onnx.load_from_string(data)
    plain, feed, expected = _as_written(data)
    exact = HALF_ROUNDING if _has_half(model) else ROUNDING
    rounded = max(exact, INT8_ROUNDING) if _rounds_activations(model) else exact
    # With the accuracy level of float activations a fused DequantizeLinear and MatMul round nothing.
    fused = rounded if _rounds_as_written(model) else exact
    yield from _compared("all optimizations", _run(data, feed), expected, rounded)
    yield from _compared("all optimizations, exact", _run(data, feed, accuracy_level=0), expected, fused)
    small = simplify(model)[0]
    simplified = small.SerializeToString()
    # With all optimizations off onnxruntime 1.31 computes simplified float16 MatMulNBits wrongly on the CPU,
    # but rightly where each node's output is an output of the graph; the file as we write it is right.
    if not (_has_half(model) and _has(model, "MatMulNBits")):
        yield from _compared("onnxsim", _run(simplified, feed, optimized=False), expected, fused)
    yield from _compared("onnxsim, all optimizations", _run(simplified, feed), expected, rounded)
    if [value.name for value in small.graph.output] != [value.name for value in plain.get_outputs()]:
        yield "onnxsim: other outputs"


def _with_weights(path: Path) -> bytes:
    whole: bytes = onnx.load(path).SerializeToString()
    return whole


def _session(data: bytes, *, optimized: bool, accuracy_level: int | None = None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if accuracy_level is not None:
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])


def _run(
    data: bytes, feed: dict[str, np.ndarray], *, optimized: bool = True, accuracy_level: int | None = None
) -> Numbers:
    session = _session(data, optimized=optimized, accuracy_level=accuracy_level)
    outputs: Numbers = session.run(None, feed)
    return outputs


def _as_written(data: bytes) -> tuple[ort.InferenceSession, dict[str, np.ndarray], Numbers]:
    session, failure = _session(data, optimized=False), ""
    for size in SIZES:
        feed = _inputs(session, size)
        try:
            return session, feed, session.run(None, feed)
        except Exception as error:  # of the many kinds that onnxruntime has
            failure = str(error)
    raise InputsError(failure)


def _inputs(session: ort.InferenceSession, size: int) -> dict[str, np.ndarray]:
    """Normal numbers; ids of 0 and 1; masks of ones."""
    named = (dim for wanted in session.get_inputs() for dim in wanted.shape if isinstance(dim, str))
    parts = {part.strip() for dim in named for part in dim.split("+")}
    feed = dict(synthetic_inputs(session, dict.fromkeys(parts, size)))
    rng = np.random.default_rng(0)
    for name, array in feed.items():
        if array.dtype.kind == "i" and "mask" not in name:
            feed[name] = rng.integers(0, 2, array.shape).astype(array.dtype)
    return feed


def _compared(what: str, outputs: Numbers, expected: Numbers, tolerance: float) -> Iterator[str]:
    for i, (ours, theirs) in enumerate(zip(outputs, expected, strict=True)):
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            yield f"{what}: output {i} is {ours.dtype} {ours.shape}, as written {theirs.dtype} {theirs.shape}"
        elif theirs.dtype.kind == "f":  # what is chosen by numbers may change with their rounding
            both = np.isfinite(theirs)
            size = float(np.linalg.norm(theirs[both].astype(np.float64)))
            difference = float(np.linalg.norm(ours[both].astype(np.float64) - theirs[both]))
            if not difference <= tolerance * size:
                yield f"{what}: output {i} differs by {difference:.1e} of {size:.1e}, allowed {tolerance:.0e}"


def _has_half(model: onnx.ModelProto) -> bool:
    casts = (node for node in model.graph.node if node.op_type == "Cast")
    return any(a.i == onnx.TensorProto.FLOAT16 for node in casts for a in node.attribute if a.name == "to")


def _rounds_as_written(model: onnx.ModelProto) -> bool:
    return _has(model, "MatMulNBits", "DynamicQuantizeLinear", "QuantizeLinear")


def _rounds_activations(model: onnx.ModelProto) -> bool:
    return _rounds_as_written(model) or _has(model, "DequantizeLinear")


def _has(model: onnx.ModelProto, *operators: str) -> bool:
    return any(node.op_type in operators for node in model.graph.node)

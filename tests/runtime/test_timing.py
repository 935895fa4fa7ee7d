"""Timed runs: the order of turns, and calls that compute into fixed buffers."""

import time
from pathlib import Path

import numpy as np

from svd2onnx_runtime import open_session, run
from svd2onnx_runtime.timing import BoundCall, _interleaved
from tests.runtime.quantized_graphs import float_matmul


def test_graphs_take_turns_and_the_order_turns_around() -> None:
    calls: list[str] = []
    seconds = _interleaved([lambda: calls.append("a"), lambda: calls.append("b")], 3, 1)
    # A warm-up, then three rounds in which each timed run follows one that is not timed.
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb"
    assert seconds.shape == (3, 2)
    assert (seconds > 0).all()


def test_a_bound_call_computes_into_fixed_buffers(tmp_path: Path) -> None:
    float_matmul(tmp_path / "float.onnx", np.random.default_rng(1).standard_normal((512, 8)))
    session = open_session(tmp_path / "float.onnx", "cpu")
    x = np.random.default_rng(0).standard_normal((2, 512)).astype(np.float32)
    binding = session.io_binding()
    session.io_binding = lambda: binding  # keep hold of the one that the call uses
    BoundCall(session, {"x": x}, "cpu")()
    (output,) = binding.get_outputs()
    np.testing.assert_array_equal(output.numpy(), run(session, {"x": x})["y"])


def test_after_the_time_allowed_no_further_round_begins() -> None:
    """Three are made in any case, and warming up takes about half of it at most."""
    calls = []

    def slow() -> None:
        calls.append(None)
        time.sleep(0.01)

    seconds = _interleaved([slow], repeats=50, warmup=5, most_s=0.0)
    assert seconds.shape == (3, 1)
    assert len(calls) == 2 * 3
    assert _interleaved([slow], repeats=4, warmup=0).shape == (4, 1)

"""What loading costs, measured in processes of their own."""

from pathlib import Path

import numpy as np
import pytest

from svd2onnx_runtime import GraphError, measure_footprint
from tests.runtime.quantized_graphs import float_matmul

_WIDTHS = (64, 4096)


def test_memory_is_that_of_the_graph(tmp_path: Path) -> None:
    """A weight of 64 MB adds at least itself, and at its peak a little more; a small graph adds much less."""
    resident, peak = {}, {}
    for width in _WIDTHS:
        path = tmp_path / f"{width}.onnx"
        float_matmul(path, np.ones((width, width)))
        own = measure_footprint(path, {"x": np.ones((1, width), np.float32)}, "cpu", 1)
        assert own.resident_mb is not None
        assert own.load_peak_mb is not None
        assert own.run_peak_mb is not None
        assert own.run_peak_mb >= max(own.load_peak_mb, own.resident_mb)
        assert (own.gpu_load_mb, own.gpu_run_mb) == (None, None)
        resident[width], peak[width] = own.resident_mb, own.load_peak_mb
    small, large = _WIDTHS
    assert resident[large] - resident[small] > 60
    assert peak[large] - peak[small] > 60


def test_a_graph_that_fails_in_its_own_process_is_a_graph_error(tmp_path: Path) -> None:
    with pytest.raises(GraphError, match="found nothing") as caught:
        measure_footprint(tmp_path / "absent.onnx", {}, "cpu")
    assert "\n" not in str(caught.value)

"""Files whose weights are made floats at load: what tests of them share."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor

from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import open_session, run
from tests.svd2onnx.networks import Compressed

EVERY_FORM = pytest.mark.parametrize(
    "form", [FileFormat("folded"), FileFormat("matmulnbits"), FileFormat("dequantize", "float16")], ids=str
)


def difference(path: Path, compressed: Compressed, *further: dict[str, Tensor], strict: bool = True) -> float:
    """The largest relative one between file and network, over its batches and ``further`` ones."""
    session = open_session(path, "cpu", strict=strict)
    worst = 0.0
    for batch in (*compressed.batches, *further):
        with torch.inference_mode():
            expected = compressed.network(**batch).numpy()
        (output,) = run(session, as_arrays(batch)).values()
        worst = max(worst, float(np.linalg.norm(output - expected) / np.linalg.norm(expected)))
    return worst


def unfolded(path: Path, folder: Path, *names: str) -> Path:
    """The file with the first tensor that has one of ``names`` an input: what follows cannot be folded."""
    proto = onnx.load(path)
    codes = next(tensor for tensor in proto.graph.initializer if tensor.name in names)
    proto.graph.input.append(onnx.helper.make_tensor_value_info(codes.name, codes.data_type, codes.dims))
    changed = folder / "unfolded.onnx"
    onnx.save(proto, changed)
    return changed

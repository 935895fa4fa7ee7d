"""What lies along the first axis of batches in memory: samples as a rule, or else steps in time, or nodes.

Samples are independent: what forward gives for some rows of a batch is what it gives for them in the whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svd2onnx.network.outputs import tensors_of
from svd2onnx.sources.model_file import Batch

SAMPLES, WHOLE, MIXED = "samples", "whole", "mixed"
"""Rows are samples; or forward takes whole batches alone; or it takes fewer rows, and mixes them."""
_CLOSE = 1e-3
"""Of the largest number of an output: kernels for other sizes add up in other orders."""


def first_axis(network: nn.Module, batches: Sequence[Batch]) -> str:
    """SAMPLES, WHOLE or MIXED; ``network`` may be run, and is a copy if its forward changes it."""
    if any(len({tensor.shape[:1] for tensor in batch.values()}) > 1 for batch in batches):
        return WHOLE  # such as ids of nodes, and edges between them
    largest = max(batches, key=lambda batch: len(next(iter(batch.values()))))
    rows = len(next(iter(largest.values())))
    few = rows // 2 if rows > 3 else rows - 1  # some networks take no single row
    whole = _outputs(network, largest) if few else None
    if whole is None:
        return SAMPLES  # there is but one, or forward fails, which is told elsewhere
    # From the middle: the first steps in time may be free of those behind them, and the last of those before.
    first = (rows - few + 1) // 2
    part = _outputs(network, {name: tensor[first : first + few] for name, tensor in largest.items()})
    if part is None:
        return WHOLE
    # What has one length for any number of rows says nothing: a loss, or states [layers, rows, width].
    pairs = [(a, b) for a, b in zip(whole, part, strict=False) if a.shape[:1] != b.shape[:1]]
    same = [len(a) % rows == 0 and _agree(_rows(a, rows, first, few), b) for a, b in pairs]
    return SAMPLES if same and all(same) else MIXED


def _outputs(network: nn.Module, batch: Batch) -> list[Tensor] | None:
    try:
        with torch.no_grad():
            return tensors_of(network(**{name: tensor.clone() for name, tensor in batch.items()}))
    except Exception:
        return None


def _rows(output: Tensor, rows: int, first: int, few: int) -> Tensor:
    """What ``output``, which may have several entries for a row, has for ``few`` of them."""
    each = len(output) // rows
    return output[first * each : (first + few) * each]


def _agree(expected: Tensor, found: Tensor) -> bool:
    if expected.shape != found.shape:
        return False
    if not (found.is_floating_point() or found.is_complex()):
        return torch.equal(expected, found)
    finite = expected[expected.isfinite()]
    most = float(finite.abs().max()) if finite.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=_CLOSE * most, equal_nan=True)

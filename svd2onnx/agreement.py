"""How far a compressed network is from the float one, measured in PyTorch on batches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from svd2onnx.loading import Batch, arguments_of
from svd2onnx.probes import batch_errors


def first_output(model: nn.Module, batch: Batch) -> Tensor:
    """The tensor that an objective compares: the network's first."""
    leaves = torch.utils._pytree.tree_leaves(model(**arguments_of(model, batch)))
    return next(leaf for leaf in leaves if isinstance(leaf, Tensor))


def mean_error(original: nn.Module, compressed: nn.Module, batches: Sequence[Batch], objective: str) -> float:
    """The mean error over all samples of ``batches``, in the units of the objective."""
    errors = []
    with torch.inference_mode():
        for batch in batches:
            reference, output = (first_output(model, batch) for model in (original, compressed))
            errors.append(batch_errors(objective, reference, output, batch).double())
    return float(torch.cat(errors).mean())

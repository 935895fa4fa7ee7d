"""Batches in parts, so that what one pass keeps for its gradients fits in memory, however wide inputs are.

A few million weights that see large images keep gigabytes of activations for each batch, and what goes
beyond the store's limit goes through files: slower than the pass itself.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

from svd2onnx.sources.model_file import Batch, arguments_of
from svd2onnx.sources.rows import RowAxes, first_rows, row_count, slices

MOST_PASS_BYTES = 1 << 30
"""Kept at a time for the gradients of a pass."""
FEW_NUMBERS = 512
"""Numbers of an input that are one pass in any case, such as tokens of a text: each pass reads and writes the
sums of all layers, so fewer would take longer."""


def in_passes(
    model: nn.Module, layers: Collection[nn.Module], batches: Sequence[Batch], axes: RowAxes
) -> list[Batch]:
    """``batches`` in parts of as many rows as may be passed at once; as they are where that is all of them.

    ``axes`` tell where the rows are: without any, a batch cannot be parted. ``layers`` are those whose inputs
    are kept. The first rows of the first batch tell how many bytes a row keeps.
    """
    if not batches or all(axis is None for axis in axes.values()):
        return list(batches)
    first = first_rows(batches[0], 2, axes)  # some networks take no single row
    rows = row_count(first, axes)
    numbers = max(tensor.numel() for tensor in first.values())
    by_bytes = rows * MOST_PASS_BYTES // max(1, kept_bytes(model, layers, first))
    most = max(by_bytes, rows * FEW_NUMBERS // max(1, numbers), 1)
    return [
        part
        for batch in batches
        for part in (slices(batch, most, axes) if row_count(batch, axes) > most else [batch])
    ]


def kept_bytes(model: nn.Module, layers: Collection[nn.Module], batch: Batch) -> int:
    """What a pass of ``batch`` keeps for gradients at ``layers``: their inputs and activations."""
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    known: dict[int, StorageWeakRef] = {}
    saved = inputs = 0
    nothing = torch.empty(0)

    def count(tensor: Tensor) -> Tensor:
        # Nothing is held here: a row of a large network may itself be more than memory has room for.
        nonlocal saved
        storage = tensor.untyped_storage()
        place = storage.data_ptr()
        if place not in weights and (place not in known or known[place].expired()):  # type: ignore[no-untyped-call]
            known[place] = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
            saved += storage.nbytes()
        return nothing

    def seen(_module: nn.Module, args: tuple[Tensor, ...], kwargs: Any, output: Tensor) -> Tensor:
        nonlocal inputs
        x = args[0] if args else kwargs.get("input")  # a stored weight has none
        inputs += 0 if x is None else x.nbytes
        return output if output.requires_grad else output.detach().requires_grad_().clone()

    handles = [module.register_forward_hook(seen, with_kwargs=True) for module in layers]
    try:
        with torch.enable_grad(), saved_tensors_hooks(count, lambda own: own):
            model(**arguments_of(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    return inputs + saved

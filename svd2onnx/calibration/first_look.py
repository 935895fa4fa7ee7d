"""What is usual of a layer's inputs: seen in a first pass over the samples that calibration holds out.

Errors are relative: a sample of large values counts no more than another. But in a sum of squares one whose
inputs are a thousand times larger counts a million times more, and mean and covariance would be of such
samples alone. So a sample s of mean square m_s gets the weight

    w_s = min(1, limit / m_s),      limit = 4 median m_s

Samples of usual size all keep the weight 1, and their moments stay as they are.

Source: the weights are those of Huber's estimator ("Robust Estimation of a Location Parameter", 1964), of
the energy in place of the residual.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.calibration.accumulation import Rows, patch_rows
from svd2onnx.calibration.moments import WIDEST
from svd2onnx.compute.device_store import DeviceStore
from svd2onnx.network.convolution import CONVOLUTIONS
from svd2onnx.sources.model_file import Batch, arguments_of

_USUAL = 4.0
"""Times the median: what is smaller is as usual."""
_OF_EACH_BATCH, _KEPT = 128, 512
"""Rows kept to judge a rounding with: errors of many outputs tell it well from few."""


class FirstLook:
    """Of one layer. Until something is ``add``-ed all sizes are usual, and no rows are kept."""

    def __init__(self) -> None:
        self._sizes: list[Tensor] = []
        self._rows: list[tuple[Tensor, Tensor]] = []

    def add(self, rows: Rows) -> None:
        sizes = rows.sizes
        self._sizes.append(sizes.cpu()[torch.tensor(rows.lengths) > 0])
        if rows.x.shape[1] <= WIDEST:  # a wider weight is rounded to nearest
            some = slice(None, None, max(1, len(rows.x) // _OF_EACH_BATCH))
            each = torch.repeat_interleave(sizes, torch.tensor(rows.lengths).to(sizes.device))
            kept = (tensor[some][:_OF_EACH_BATCH].cpu() for tensor in (rows.x, each))
            self._rows.append((next(kept), next(kept)))

    @property
    def limit(self) -> float:
        """The mean square from which on samples count less."""
        sizes = torch.cat(self._sizes) if self._sizes else torch.empty(0)
        median = float(sizes.median()) if sizes.numel() else 0.0
        return _USUAL * median if median > 0 else float("inf")

    def held_out(self, mean: Tensor | None) -> Tensor | None:
        """Rows [n, in] less ``mean``, float32 and weighed so that their squares count as the moments' do."""
        if not self._rows or mean is None:
            return None
        x, sizes = (torch.cat(parts) for parts in zip(*self._rows, strict=True))
        some = slice(None, None, -(-len(x) // _KEPT) or 1)
        weights = (self.limit / sizes[some]).clamp_max(1.0)
        return (x[some] - mean.cpu().float()) * weights.sqrt().float().unsqueeze(1)


def look(
    model: nn.Module,
    layers: Mapping[nn.Module, FirstLook],
    batches: Iterable[Batch],
    store: DeviceStore,
) -> None:
    """Run ``model`` over ``batches``, without gradients, and show each layer its inputs."""
    for batch in batches:
        arguments = arguments_of(model, batch)
        size, mask = next(iter(arguments.values())).shape[0], batch.get("attention_mask")
        with contextlib.ExitStack() as hooks, torch.no_grad():
            for module, own in layers.items():
                seen = functools.partial(_show, own, store, mask, size)
                handle = module.register_forward_pre_hook(seen, with_kwargs=True)
                hooks.callback(handle.remove)
            model(**arguments)


def _show(
    own: FirstLook, store: DeviceStore, mask: Tensor | None, size: int, module: nn.Module, *inputs: Any
) -> None:
    args, kwargs = inputs
    x = args[0] if args else kwargs["input"]
    if isinstance(module, CONVOLUTIONS):
        own.add(patch_rows(module, x, store))
    else:
        own.add(Rows(x, mask, size, is_table=False, store=store))

"""What a layer sees on real data: moments and samples of its inputs, gathered in one streaming pass.

For each linear site, in float64 and masked of padding: the mean mu = E[x] and the centred second
moment A = E[(x - mu)(x - mu)^T]; and a few thousand inputs themselves, evenly thinned.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.errors import SourceError
from svd2onnx.loading import Batch, arguments_of
from svd2onnx.schema import LayerSite

SAMPLES = 2048
"""Inputs kept of each layer."""


@dataclass(frozen=True)
class LayerStatistics:
    """Of a layer's inputs x: ``mean`` [in], ``covariance`` [in, in] (float64), ``samples`` [n, in]."""

    count: int
    mean: Tensor
    covariance: Tensor
    samples: Tensor

    @property
    def second_moment(self) -> Tensor:
        """E[x^2] of each input, float64 [in]."""
        return self.covariance.diagonal() + self.mean.square()


class _Gatherer:
    """Accumulates one layer's inputs; moments are merged batch by batch (Chan et al., 1979)."""

    def __init__(self, width: int) -> None:
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)
        self.kept: list[Tensor] = []

    def add(self, rows: Tensor, keep: int) -> None:
        if rows.shape[0] == 0:
            return
        values = rows.double()
        count, mean = values.shape[0], values.mean(dim=0)
        centred = values - mean
        total = self.count + count
        shift = mean - self.mean
        self.scatter += centred.T @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total
        step = max(1, count // keep)
        self.kept.append(rows[::step][:keep].clone())

    def finish(self) -> LayerStatistics:
        samples = torch.cat(self.kept)
        step = -(-samples.shape[0] // SAMPLES)
        return LayerStatistics(
            self.count, self.mean, self.scatter / max(1, self.count), samples[::step].clone()
        )


def calibrate(
    model: nn.Module, sites: Sequence[LayerSite], batches: Iterable[Batch]
) -> dict[str, LayerStatistics]:
    """Run ``model`` over ``batches`` and gather the statistics of each linear site, by site name.

    A batch's ``attention_mask`` [batch, positions] marks padding: those positions are left out of
    every layer whose inputs are laid out the same way.

    Raises:
        SourceError: a layer's inputs are missing or not finite.
    """
    linear = [site for site in sites if site.kind == "linear" and site.skip_reason is None]
    gatherers = {site.name: _Gatherer(site.shape[1]) for site in linear}
    mask: Tensor | None = None

    def gather(name: str) -> Any:
        def hook(_module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            x = args[0] if args else kwargs["input"]
            gatherers[name].add(_valid_rows(x, mask), keep=128)

        return hook

    # One module may have several names: its inputs count once.
    owners = {model.get_submodule(name): site.name for site in linear for name in site.names}
    handles = [
        module.register_forward_pre_hook(gather(name), with_kwargs=True) for module, name in owners.items()
    ]
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch.get("attention_mask")
                model(**arguments_of(model, batch))
    finally:
        for handle in handles:
            handle.remove()
    statistics = {}
    for name, gatherer in gatherers.items():
        if not gatherer.count or not bool(torch.isfinite(gatherer.mean).all()):
            raise SourceError(
                f"the inputs of layer {name!r} are missing or not finite on the calibration data; "
                "check the network and inputs('calibration')"
            )
        statistics[name] = gatherer.finish()
    return statistics


def _valid_rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """[..., in] -> [rows, in], padding left out."""
    if mask is not None and x.shape[:-1] == mask.shape:
        return x[mask.bool()]
    return x.reshape(-1, x.shape[-1])

"""Put compressed layers in the place of the float ones: plan + network -> new network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import nn

from svd2onnx.convolution import convolution_at
from svd2onnx.layers import bias_of
from svd2onnx.modules import CompressedConvolution, CompressedEmbedding, CompressedLinear
from svd2onnx.schema import CompressedLayer, LayerSite
from svd2onnx.spill import Shelf


def rewrite(
    model: nn.Module,
    sites: Sequence[LayerSite],
    layers: Mapping[str, CompressedLayer],
    shelf: Shelf | None = None,
) -> nn.Module:
    """A copy of ``model`` with each site in ``layers`` (by site name) compressed; ``model`` is kept.

    Modules that share a weight share its compressed form; each keeps its own bias. All other
    tensors are those of ``model``. What is new lies on ``shelf``.
    """
    shelf = shelf or Shelf()
    compressed = [site for site in sites if site.name in layers]
    result = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for site in compressed:
        layer = layers[site.name]
        for name in site.names:
            replacement: nn.Module
            if site.kind == "embedding":
                replacement = CompressedEmbedding(layer)
            elif site.kind == "convolution":
                replacement = CompressedConvolution(layer, convolution_at(model, name))
            else:
                replacement = CompressedLinear(layer, bias_of(model, name))
            shelf.keep_module(replacement)
            parent, _, child = name.rpartition(".")
            setattr(result.get_submodule(parent), child, replacement)
    return result.eval()

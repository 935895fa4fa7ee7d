"""Put compressed layers in the place of the float ones: plan + network -> new network."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from torch import fx, nn

from svd2onnx.compute.tensor_store import TensorStore
from svd2onnx.network.attributes import find, put
from svd2onnx.network.convolution import convolution_at
from svd2onnx.network.int8 import Int8Convolution
from svd2onnx.network.layers import bias_of
from svd2onnx.network.modules import (
    CompressedConvolution,
    CompressedEmbedding,
    CompressedLinear,
    CompressedStored,
    stored_at,
)
from svd2onnx.values.activation_range import Int8Inputs
from svd2onnx.values.schema import CompressedLayer, LayerSite


def rewrite(
    model: nn.Module,
    sites: Sequence[LayerSite],
    layers: Mapping[str, CompressedLayer],
    store: TensorStore | None = None,
    integer: Mapping[str, Int8Inputs] | None = None,
) -> nn.Module:
    """A copy of ``model`` with each site in ``layers`` (by site name) compressed; ``model`` is kept.

    Convolutions in ``integer``, by the name of their module, compute in int8; their inputs are to be rounded.

    Modules that share a weight share its compressed form; each keeps its own bias. All other
    tensors are those of ``model``. What is new lies on ``store``.
    """
    store = store or TensorStore()
    compressed = [site for site in sites if site.name in layers]
    result = copy.deepcopy(model, {id(t): t for t in (*model.parameters(), *model.buffers())})
    for site in compressed:
        layer = layers[site.name]
        for name in site.names:
            replacement: nn.Module
            if site.kind == "embedding":
                replacement = CompressedEmbedding(layer)
            elif site.kind == "convolution":
                original, inputs = convolution_at(model, name), (integer or {}).get(name)
                replacement = (
                    CompressedConvolution(layer, original)
                    if inputs is None
                    else Int8Convolution(layer, original, inputs)
                )
            elif site.kind == "stored":
                replacement = CompressedStored(layer, stored_at(model, name).weight.shape)
            else:
                replacement = CompressedLinear(layer, bias_of(model, name))
            store.keep_module(replacement)
            put(result, name, replacement)
    return result.eval()


def with_parts_of(graph: nn.Module, network: nn.Module) -> fx.GraphModule:
    """``graph`` with the modules and tensors of ``network``, by their names, in the place of its own."""
    assert isinstance(graph, fx.GraphModule)
    parts = {}
    for node in graph.graph.nodes:
        if node.op in ("call_module", "get_attr"):
            known = find(network, node.target)
            parts[node.target] = find(graph, node.target) if known is None else known
    return fx.GraphModule(parts, copy.deepcopy(graph.graph)).eval()

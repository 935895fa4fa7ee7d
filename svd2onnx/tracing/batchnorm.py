"""Fold batch normalization into the convolution or linear layer before it.

    g (W x + b - mu) / s + beta   =   (g / s) W x + (b - mu) g / s + beta,     s = sqrt(var + eps)

The exporter folds it anyway, after planning, and would change the weights that were planned. Only a layer
that nothing else reads, and that is called once, can take it in.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (arXiv 1712.05877), section 3.2.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from svd2onnx.network.attributes import put

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(network: fx.GraphModule) -> int:
    """Fold what can be folded in ``network``, see ``trace``, in place; how many there were."""
    pairs = list(_pairs(network))
    for layer_node, norm_node in pairs:
        layer, norm = (network.get_submodule(str(node.target)) for node in (layer_node, norm_node))
        assert isinstance(norm, _NORMS)
        _complete(norm)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        fused = fuse(layer, norm)  # type: ignore[type-var]
        put(network, str(layer_node.target), fused.requires_grad_(False))
        norm_node.replace_all_uses_with(layer_node)
        network.graph.erase_node(norm_node)
    network.delete_all_unused_submodules()
    network.recompile()
    return len(pairs)


def _complete(norm: _BatchNorm) -> None:
    """Give it the scale 1 and the shift 0 that it does without: torch's folding asks for both."""
    assert norm.running_mean is not None
    for name, make in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if getattr(norm, name) is None:
            setattr(norm, name, nn.Parameter(make(norm.running_mean), requires_grad=False))


def _pairs(network: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """The calls of a layer and of the normalization that alone reads it."""
    calls = [node for node in network.graph.nodes if node.op == "call_module"]
    modules = {node: network.get_submodule(str(node.target)) for node in calls}
    times = Counter(node.target for node in calls)
    owners = Counter(id(getattr(module, "weight", None)) for module in set(modules.values()))
    for node, norm in modules.items():
        before = next(iter(node.args), None)
        if type(norm) not in _NORMS or not isinstance(before, fx.Node):
            continue
        layer = modules.get(before)
        if layer is None or type(layer) not in _LAYERS:
            continue
        if len(before.users) != 1 or times[before.target] != 1:
            continue
        # The channels of a norm are axis 1, and a linear layer's outputs are its last axis.
        value = before.meta.get("val")
        if isinstance(layer, nn.Linear) and (not isinstance(value, Tensor) or value.ndim != 2):
            continue
        if owners[id(layer.weight)] == 1:
            yield before, node

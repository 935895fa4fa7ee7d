"""Fold batch normalization into the convolution or linear layer before it.

    g (W x + b - mu) / s + beta   =   (g / s) W x + (b - mu) g / s + beta,     s = sqrt(var + eps)

The exporter folds it anyway, after planning, and would change the weights that were planned. Which layer
feeds which normalization is read from the graph that torch.export traces: only a layer that nothing else
reads, and that is called once, can take it in.

Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference" (arXiv 1712.05877), section 3.2.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from svd2onnx.values.errors import ExportError, one_line

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def fold_batchnorm(model: nn.Module, example: Mapping[str, Tensor]) -> int:
    """Fold what can be folded in ``model``, in eval mode, in place; how many there were.

    Args:
        model: its normalizations become nn.Identity.
        example: the forward's arguments by name.

    Raises:
        ExportError: torch.export cannot trace the network.
    """
    if not any(type(module) in _NORMS for module in model.modules()):
        return 0
    pairs = list(_pairs(model, example))
    for layer_name, norm_name in pairs:
        layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
        fuse = fuse_linear_bn_eval if isinstance(layer, nn.Linear) else fuse_conv_bn_eval
        _put(model, layer_name, fuse(layer, norm))  # type: ignore[arg-type, type-var]
        _put(model, norm_name, nn.Identity())
    return len(pairs)


def _pairs(model: nn.Module, example: Mapping[str, Tensor]) -> Iterator[tuple[str, str]]:
    """Names of a layer and of the normalization that alone reads it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(model, (), dict(example))
    except Exception as error:
        raise ExportError(
            f"torch.export cannot trace the network: {type(error).__name__}: {one_line(error)}"
        ) from error
    signature = program.graph_signature
    targets = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    owners = {name: target.rpartition(".")[0] for name, target in targets.items()}
    for node in program.graph.nodes:
        if str(node.target) != "aten.batch_norm.default":
            continue
        product, mean = node.args[0], node.args[3]
        if mean is None:  # without running statistics, each batch has its own
            continue
        if len(product.users) != 1 or len(mean.users) != 1 or len(product.args) < 2:
            continue
        # The channels of a norm are axis 1, and a linear layer's outputs are its last axis.
        if str(product.target) == "aten.linear.default" and product.meta["val"].ndim != 2:
            continue
        weight = product.args[1]
        layer, norm = owners.get(getattr(weight, "name", "")), owners.get(mean.name)
        if layer and norm and len(weight.users) == 1 and _foldable(model, layer, norm):
            yield layer, norm


def _foldable(model: nn.Module, layer_name: str, norm_name: str) -> bool:
    layer, norm = model.get_submodule(layer_name), model.get_submodule(norm_name)
    return type(layer) in _LAYERS and type(norm) in _NORMS and not parametrize.is_parametrized(layer)


def _put(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module.eval())

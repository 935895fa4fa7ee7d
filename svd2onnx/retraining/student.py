"""A network in training: compressed layers, norms and biases are trained, all else is shared and fixed."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svd2onnx.network.attributes import put
from svd2onnx.network.convolution import convolution_at
from svd2onnx.network.layers import weight_of
from svd2onnx.network.modules import CompressedEmbedding, stored_at
from svd2onnx.retraining.straight_through import TrainedLayer, TrainedModule, TrainedStored, TrainedTensor
from svd2onnx.values.schema import CompressedLayer, LayerSite


@dataclass(frozen=True)
class Snapshot:
    """A state of a ``Student``: the layers to store, and the trained floats by parameter name."""

    layers: Mapping[str, CompressedLayer]
    floats: Mapping[str, Tensor]

    def model_of(self, original: nn.Module) -> nn.Module:
        """A copy of the float network with the trained floats."""
        model = copy.deepcopy(original)
        with torch.no_grad():
            for name, values in self.floats.items():
                model.get_parameter(name).copy_(values)
        return model


class Student:
    """``network`` computes what ``rewrite`` would, and can be trained.

    Trained are the linear layers, convolutions and stored weights in ``layers``, and every float parameter of
    at most one dimension that the network has: biases and norms. Other tensors are those of ``model``, tables
    keep their codes. Modules that share a weight share what is trained of it. A layer's ``bias_shift`` goes
    into the biases of its modules where all have one; otherwise it is trained itself.
    """

    def __init__(
        self, model: nn.Module, sites: Sequence[LayerSite], layers: Mapping[str, CompressedLayer]
    ) -> None:
        self._model, self._layers = model, dict(layers)
        # New parameters on the same storage: no memory, and the caller's stay without gradients.
        shared: dict[int, object] = {
            id(p): nn.Parameter(p.detach(), requires_grad=False) for p in model.parameters() if p.ndim > 1
        }
        shared |= {id(buffer): buffer for buffer in model.buffers()}
        self.network = copy.deepcopy(model, shared).eval()
        for parameter in self.network.parameters():
            parameter.requires_grad_(parameter.ndim <= 1 and parameter.is_floating_point())
        self._floats = {name: p for name, p in self.network.named_parameters() if p.requires_grad}
        self._trained: dict[str, TrainedLayer] = {}
        for site in sites:
            if site.name in layers:
                self._replace(site, layers[site.name])
        self.tensors = [module for module in self.network.modules() if isinstance(module, TrainedTensor)]

    @property
    def floats(self) -> list[nn.Parameter]:
        """Biases, norms and shifts."""
        shifts = [layer.shift for layer in self._trained.values() if layer.shift is not None]
        return [*self._floats.values(), *shifts]

    def push(self) -> None:
        """After an update: bring the weights of the forward pass up to date."""
        for tensor in self.tensors:
            tensor.push()

    def pull(self) -> None:
        """After the backward passes: hand the gradients of the weights on to what is trained."""
        for tensor in self.tensors:
            tensor.pull()

    def snapshot(self) -> Snapshot:
        """A copy of what has been trained."""
        layers = {name: layer.stored() for name, layer in self._trained.items()}
        floats = {name: parameter.detach().clone() for name, parameter in self._floats.items()}
        return Snapshot({**self._layers, **layers}, floats)

    def _replace(self, site: LayerSite, layer: CompressedLayer) -> None:
        modules: list[nn.Module] = []
        if site.kind == "embedding":
            modules = [CompressedEmbedding(layer)] * len(site.names)
        elif site.kind == "stored":
            weight = TrainedLayer(layer, weight_of(self._model, site), trains_shift=False)
            self._trained[site.name] = weight
            modules = [TrainedStored(weight, stored_at(self._model, n).weight.shape) for n in site.names]
        else:
            biases = [getattr(self.network.get_submodule(name), "bias", None) for name in site.names]
            own = {id(bias): bias for bias in biases if bias is not None}
            folds = None not in biases
            if folds and layer.bias_shift is not None:
                for bias in own.values():
                    bias.data.add_(layer.bias_shift)
            trained = TrainedLayer(layer, weight_of(self._model, site), trains_shift=not folds)
            self._trained[site.name] = trained
            shapes = [
                convolution_at(self._model, name) if site.kind == "convolution" else None
                for name in site.names
            ]
            modules = [TrainedModule(trained, b, shape) for b, shape in zip(biases, shapes, strict=True)]
        for name, module in zip(site.names, modules, strict=True):
            put(self.network, name, module)

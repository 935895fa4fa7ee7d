"""Brief retraining: distil the compressed network to the float one, end to end, on unlabelled data.

    minimise  E_batch  error(float network(x), compressed network(x; v, r, b, norms))

over the latent codes v and step ratios r of every compressed layer (``straight_through``), the biases, and
the small float parameters of the rest (norms), by Adam with a warm-up and a cosine decay. The error is the
objective's own. Some batches are held out: the state that does best on them is kept, training ends early
when nothing gets better, and where nothing ever did the network is handed back as it was.

What trains is what is stored: every forward pass sees rounded codes and steps, so the result is exactly
representable, in the very bytes it had.

Source: knowledge distillation (Hinton et al., arXiv 1503.02531) of a network with straight-through rounding,
as in LLM-QAT (Liu et al., arXiv 2305.17888).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from svd2onnx.agreement import first_output, mean_error
from svd2onnx.layers import weight_of
from svd2onnx.loading import Batch
from svd2onnx.modules import CompressedEmbedding
from svd2onnx.probes import batch_errors
from svd2onnx.progress import Track, silent
from svd2onnx.schema import CompressedLayer, LayerSite
from svd2onnx.straight_through import TrainedLayer, TrainedLinear, TrainedTensor

_RATES = {"codes": 0.003, "ratios": 0.0005, "small": 3e-4}
"""Learning rates: of codes in units of a code, of ratios of steps, and of biases and norms."""
_WARM_UP = 0.05
_HOLD_OUT = 6
_MOST_HELD_OUT = 6
_CHECKS = 8
_PATIENCE = 3
_CACHED = 1 << 16
"""Outputs of so few elements are computed once for each batch."""


@dataclass(frozen=True)
class Recovered:
    """The retrained network is ``rewrite(model, sites, layers)``.

    ``model`` is the float network with the trained biases and norms. ``before`` and ``after`` are mean
    errors on held-out batches; ``steps`` is how many were run.
    """

    model: nn.Module
    layers: Mapping[str, CompressedLayer]
    before: float
    after: float
    steps: int


def recover(
    model: nn.Module,
    sites: Sequence[LayerSite],
    layers: Mapping[str, CompressedLayer],
    batches: Sequence[Batch],
    objective: str,
    steps: int,
    *,
    seed: int = 0,
    track: Track = silent,
) -> Recovered:
    """Retrain the network that ``layers`` make of ``model`` for at most ``steps`` batches.

    Args:
        model: the float network; it is not changed.
        sites: the layers found in it.
        layers: the compressed ones, by site name.
        batches: unlabelled inputs; every sixth is held out.
        objective: "cosine", "kl" or "mse".
        steps: the most batches to train on.
        seed: of the order of the batches.
        track: shows the progress.
    """
    student = _Student(model, sites, layers)
    training = (
        [batch for i, batch in enumerate(batches) if i % _HOLD_OUT != 1] if len(batches) > 1 else batches
    )
    held_out = batches[1::_HOLD_OUT] if len(batches) > 1 else batches
    held_out = held_out[:: -(-len(held_out) // _MOST_HELD_OUT)]
    before = best = mean_error(model, student.network, held_out, objective)
    kept, stale, done = student.state(), 0, 0
    interval = max(10, steps // _CHECKS)
    targets: dict[int, Tensor] = {}
    order = _shuffled(len(training), seed)
    optimizer = torch.optim.Adam(student.groups(), betas=(0.9, 0.98))
    for step in track(range(steps), "Retraining", steps):
        for group in optimizer.param_groups:
            group["lr"] = group["rate"] * _schedule(step / steps)
        index = next(order)
        student.train_on(model, training[index], objective, optimizer, targets, index)
        done = step + 1
        if done % interval == 0 or done == steps:
            error = mean_error(model, student.network, held_out, objective)
            if error < best:
                best, kept, stale = error, student.state(), 0
            else:
                stale += 1
            if stale >= _PATIENCE:
                break
    if best == before:
        return Recovered(model, layers, before, before, done)
    student.load(kept)
    return Recovered(student.trained_model(model), student.stored(), before, best, done)


class _Student:
    """The network in training: Linears with latent codes, tables as they are, small parameters free."""

    def __init__(
        self, model: nn.Module, sites: Sequence[LayerSite], layers: Mapping[str, CompressedLayer]
    ) -> None:
        self.network = copy.deepcopy(model).requires_grad_(False)
        self._layers = layers
        self._trained: dict[str, TrainedLayer] = {}
        for site in sites:
            if site.name not in layers:
                continue
            if site.kind == "embedding":
                for name in site.names:
                    self._put(name, CompressedEmbedding(layers[site.name]))
            else:
                self._put_linear(model, site, layers[site.name])
        small: list[Tensor] = [p for p in self.network.parameters() if p.ndim <= 1 and p.is_floating_point()]
        tensors = [
            t for layer in self._trained.values() for t in layer.modules() if isinstance(t, TrainedTensor)
        ]
        self._tensors = tensors
        self._parameters: dict[str, list[Tensor]] = {
            "codes": [tensor.codes for tensor in tensors],
            "ratios": [tensor.ratios for tensor in tensors],
            "small": [parameter.requires_grad_() for parameter in small],
        }

    def groups(self) -> list[dict[str, object]]:
        """Adam's parameter groups."""
        groups = self._parameters.items()
        return [{"params": p, "rate": _RATES[name], "lr": 0.0} for name, p in groups if p]

    def train_on(
        self,
        model: nn.Module,
        batch: Batch,
        objective: str,
        optimizer: torch.optim.Optimizer,
        targets: dict[int, Tensor],
        index: int,
    ) -> None:
        """One step on ``batch``, the training batch of number ``index``."""
        target = targets.get(index)
        if target is None:
            with torch.no_grad():
                target = first_output(model, batch)
            if target.numel() <= _CACHED:
                targets[index] = target
        optimizer.zero_grad()
        loss = batch_errors(objective, target, first_output(self.network, batch), batch).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        for tensor in self._tensors:
            tensor.pull()
        optimizer.step()
        for tensor in self._tensors:
            tensor.push()

    def state(self) -> list[Tensor]:
        return [p.detach().clone() for parameters in self._parameters.values() for p in parameters]

    @torch.no_grad()
    def load(self, state: list[Tensor]) -> None:
        for parameter, value in zip(
            (p for parameters in self._parameters.values() for p in parameters), state, strict=True
        ):
            parameter.copy_(value)
        for tensor in self._tensors:
            tensor.push()

    def stored(self) -> dict[str, CompressedLayer]:
        """The layers with what they have learnt."""
        return {
            name: self._trained[name].stored() if name in self._trained else layer
            for name, layer in self._layers.items()
        }

    def trained_model(self, model: nn.Module) -> nn.Module:
        """``model`` with the small parameters of the network in training."""
        result = copy.deepcopy(model)
        wanted = dict(result.named_parameters())
        with torch.no_grad():
            for name, parameter in self.network.named_parameters():
                if parameter.ndim <= 1 and name in wanted:
                    wanted[name].copy_(parameter)
        return result

    def _put_linear(self, model: nn.Module, site: LayerSite, layer: CompressedLayer) -> None:
        modules = [model.get_submodule(name) for name in site.names]
        # Biases take the layer's shift up where every module has one.
        takes_up = all(isinstance(getattr(module, "bias", None), Tensor) for module in modules)
        trained = TrainedLayer(layer, weight_of(model, site), trains_shift=not takes_up)
        self._trained[site.name] = trained
        for name, module in zip(site.names, modules, strict=True):
            bias = getattr(module, "bias", None)
            own = None
            if isinstance(bias, Tensor):
                shift = layer.bias_shift if takes_up and layer.bias_shift is not None else 0.0
                own = nn.Parameter(bias.detach() + shift)
            self._put(name, TrainedLinear(trained, own))

    def _put(self, name: str, module: nn.Module) -> None:
        parent, _, child = name.rpartition(".")
        setattr(self.network.get_submodule(parent), child, module)


def _schedule(share: float) -> float:
    """Of the learning rate, at this share of all steps: up for a moment, then down to 0 on a cosine."""
    return min(1.0, (share + 1e-3) / _WARM_UP) * (0.5 + 0.5 * math.cos(math.pi * share))


def _shuffled(count: int, seed: int) -> Iterator[int]:
    """All indices in a random order, and again in another."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()

"""Which range each activation is rounded in: calibrated, and judged by what it costs the network.

A range that reaches from the least to the largest value seen cuts nothing off, and its steps are coarse; a
narrower one has finer steps. Which is better depends on what reads the values. So a few ranges are tried on
held-out samples: with Q(x) the rounded values and g the gradients of a probe, one costs

    1/2 E_sample ( g^T ( Q(x) - x ) )^2

Sources: percentiles as in Wu et al., "Integer Quantization for Deep Learning Inference" (arXiv 2004.09602);
the judgement is that of ``planning.prediction``.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, fx, nn

from svd2onnx.calibration.network_error import judged_output
from svd2onnx.calibration.probes import probe
from svd2onnx.network.convolution import convolve
from svd2onnx.network.modules import CompressedConvolution
from svd2onnx.sources.model_file import Batch, arguments_of
from svd2onnx.tracing.int8_network import with_modules
from svd2onnx.values.activation_range import STEPS, ActivationRange
from svd2onnx.values.errors import SourceError

_SHRUNK = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Shares of the widest range."""
_PERCENTILES = (99.999, 99.99, 99.9)
_SAMPLE = 1 << 14
"""Values of an activation that are kept of each batch."""
_TRIED = 4
_MOST_SORTED = 1 << 23


@dataclass(frozen=True)
class JudgedRange:
    """A range, and the predicted error of the network when values are rounded in it."""

    range: ActivationRange
    error: float


def judged_ranges(
    model: fx.GraphModule,
    nodes: Collection[str],
    fit: Iterable[Batch],
    judging: Iterable[Batch],
    objective: str,
    *,
    place: int | None = None,
    draws: int = 1,
    seed: int = 0,
) -> dict[str, JudgedRange]:
    """The best range of each of ``nodes``, by name.

    Args:
        model: the float network, in eval mode.
        nodes: of its graph; their values are floats.
        fit: batches that ranges are taken from.
        judging: batches they are compared on.
        objective: "cosine", "kl" or "mse", of the output at ``place``, see ``judged_output``.
        place: of the output that is judged.
        draws: probes of each sample.
        seed: of probes, and of which values are looked at.

    Raises:
        SourceError: a value is not finite, or no gradient reaches one.
    """
    seen = _seen(model, nodes, fit, torch.Generator().manual_seed(seed))
    tried = {name: own.candidates() for name, own in seen.items()}
    generator = torch.Generator().manual_seed(seed)
    errors = _errors(model, tried, judging, objective, generator, place=place, draws=draws)
    return {
        name: min((JudgedRange(*pair) for pair in zip(own, errors[name], strict=True)), key=lambda r: r.error)
        for name, own in tried.items()
    }


def inner_ranges(
    network: nn.Module, names: Collection[str], batches: Iterable[Batch], seed: int = 0
) -> dict[str, ActivationRange]:
    """The range of the values between the two convolutions of each pair in ``names``, by squared error."""
    seen, generator = {name: _Seen() for name in names}, torch.Generator().manual_seed(seed)
    handles = []
    for name in names:
        module = network.get_submodule(name)
        assert isinstance(module, CompressedConvolution)

        def note(own: CompressedConvolution, args: tuple[Tensor, ...], seen: _Seen = seen[name]) -> None:
            assert own.right is not None
            seen.add(convolve(own.geometry, args[0], own.right), generator)

        handles.append(module.register_forward_pre_hook(note))
    try:
        with torch.inference_mode():
            for batch in batches if names else ():
                network(**arguments_of(network, batch))
    finally:
        for handle in handles:
            handle.remove()
    return {name: own.best() for name, own in seen.items()}


class _Seen:
    """The least and the largest of some values, and a sample of them."""

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self._samples: list[Tensor] = []

    def add(self, x: Tensor, generator: torch.Generator) -> None:
        flat = x.detach().flatten()
        self.low = min(self.low, float(flat.min()))
        self.high = max(self.high, float(flat.max()))
        chosen = torch.randint(flat.numel(), (min(_SAMPLE, flat.numel()),), generator=generator)
        self._samples.append(flat[chosen.to(flat.device)].cpu())

    def candidates(self) -> list[ActivationRange]:
        """The widest range, and those of the least squared errors."""
        widest, *others = dict.fromkeys(self._ranges())
        return [widest, *sorted(others, key=self._squared_error)[: _TRIED - 1]]

    def best(self) -> ActivationRange:
        """The range of the least squared errors."""
        return min(self._ranges(), key=self._squared_error)

    def _ranges(self) -> list[ActivationRange]:
        ranges = [ActivationRange(share * self.low, share * self.high) for share in _SHRUNK]
        for percentile in _PERCENTILES:
            ends = torch.tensor([1 - percentile / 100, percentile / 100])
            low, high = torch.quantile(self._values[:_MOST_SORTED], ends).tolist()
            ranges.append(ActivationRange(min(low, 0.0), max(high, 0.0)))
        return ranges

    def _squared_error(self, own: ActivationRange) -> float:
        return float((rounded(self._values, own) - self._values).square().mean())

    @cached_property
    def _values(self) -> Tensor:
        return torch.cat(self._samples)


def rounded(x: Tensor, own: ActivationRange) -> Tensor:
    """``x`` rounded in its range, as ``network.int8.RoundedActivation`` does it."""
    return (x / own.scale).round_().clamp_(-own.zero, STEPS - own.zero).mul_(own.scale)


def _seen(
    model: fx.GraphModule, nodes: Collection[str], batches: Iterable[Batch], generator: torch.Generator
) -> dict[str, _Seen]:
    seen = {name: _Seen() for name in nodes}

    def see(name: str, x: Tensor) -> None:
        if not bool(torch.isfinite(x).all()):
            raise SourceError(
                f"the values of {name!r} are not finite on the calibration data, and int8 needs a range of "
                "them: check the network, or use --activations float"
            )
        seen[name].add(x, generator)

    watched = with_modules(model, {name: _Watch(name, see) for name in nodes})
    with torch.inference_mode():
        for batch in batches:
            watched(**arguments_of(watched, batch))
    return seen


class _Watch(nn.Module):
    """Shows what passes to ``see``, which may put something in its place."""

    def __init__(self, name: str, see: Callable[[str, Tensor], Tensor | None]) -> None:
        super().__init__()
        self._name, self._see = name, see

    def forward(self, x: Tensor) -> Tensor:
        other = self._see(self._name, x)
        return x if other is None else other


def _errors(
    model: fx.GraphModule,
    tried: Mapping[str, list[ActivationRange]],
    batches: Iterable[Batch],
    objective: str,
    generator: torch.Generator,
    *,
    place: int | None,
    draws: int,
) -> dict[str, list[float]]:
    totals = {name: [0.0] * len(own) for name, own in tried.items()}
    counted = 0

    def see(name: str, x: Tensor) -> Tensor:
        # A leaf cannot be changed in place by what follows.
        own = x if x.requires_grad else x.detach().requires_grad_().clone()

        def arrived(gradient: Tensor) -> None:
            for i, candidate in enumerate(tried[name]):
                change = rounded(x.detach(), candidate) - x.detach()
                costs = (gradient * change).reshape(len(x), -1).sum(1)
                totals[name][i] += float(costs.double().square().sum())

        own.register_hook(arrived)  # type: ignore[no-untyped-call]
        return own

    watched = with_modules(model, {name: _Watch(name, see) for name in tried})
    for batch in batches:
        with torch.enable_grad():
            output = judged_output(watched, batch, place)
            for left in range(draws, 0, -1):
                loss, count = probe(objective, output, batch, generator)
                loss.backward(retain_graph=left > 1)  # type: ignore[no-untyped-call]
                counted += count
    return {name: [total / (2 * max(1, counted)) for total in own] for name, own in totals.items()}

"""What a layer sees on real data, gathered in one streaming pass over the calibration batches.

For each linear site, with x its inputs and g the gradients of a random probe (``probes``) at its outputs:

    mean, covariance    mu = E[x],  A = E[(x - mu)(x - mu)^T]        what outputs depend on
    output_moment       G = E[g g^T]                                 which outputs the network listens to
    gradient_moment     B = E_sample[Gamma^T Gamma],   Gamma = sum_t g_t (x_t - mu)^T of one sample
    probes              x and g themselves, of samples held out      what ``score`` predicts errors from

The moments are what weights are fitted to; held-out samples judge the fit, because a fit looks better on
its own data than it is. Moments are summed over the batches in float64; padding is left out.

Source: A and G are the Kronecker factors of K-FAC (Martens and Grosse, arXiv 1503.05671); the
gradient-weighted moment follows GuidedQuant (arXiv 2505.07004).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from svd2onnx.agreement import first_output
from svd2onnx.errors import SourceError
from svd2onnx.loading import Batch, arguments_of
from svd2onnx.memory import release_freed
from svd2onnx.probes import probe
from svd2onnx.schema import LayerSite

SAMPLES = 2048
"""Inputs kept of each layer for the article's rank rule."""
LARGEST_OUTPUTS = 8192
"""Layers with more outputs (a vocabulary) get no output moment, which would be larger than their weight."""
HELD_OUT = 6
PROBES = 512
"""Draws of probes that make scores steady, over all held-out samples; at most MOST_DRAWS of each."""
MOST_DRAWS = 2
_NO_GRADIENTS = (
    "no gradients reach the layers from the network's first output, which calibration needs: forward must "
    "not use torch.no_grad, detach or argmax on the way; --calibration-samples 0 does without"
)


@dataclass(frozen=True)
class ProbedRows:
    """Held-out inputs x [rows, in] (ids [rows] of a table) and gradients g [rows, out] of one batch.

    ``lengths`` are the numbers of rows of each sample, in order; ``count`` is how many errors the samples
    stand for.
    """

    x: Tensor
    g: Tensor
    lengths: tuple[int, ...]
    count: int


@dataclass(frozen=True)
class LayerStatistics:
    """See the module's docstring. Shapes: ``mean`` [in], ``samples`` [n, in], A and B [in, in], G [out, out].

    A table has ``probes`` and ``output_moment`` only. Without gradients there are no G, B and probes, and
    with them no ``samples``.
    """

    count: int
    mean: Tensor | None = None
    covariance: Tensor | None = None
    samples: Tensor | None = None
    output_moment: Tensor | None = None
    gradient_moment: Tensor | None = None
    probes: tuple[ProbedRows, ...] = ()


def calibrate(
    model: nn.Module,
    sites: Sequence[LayerSite],
    batches: Iterable[Batch],
    objective: str | None = None,
    held_out: Iterable[Batch] = (),
    draws: int = 1,
    seed: int = 0,
) -> dict[str, LayerStatistics]:
    """Run ``model`` over ``batches`` and gather the statistics of each usable site, by site name.

    With ``objective`` ("cosine", "kl" or "mse") there are gradients too, and probes of the batches
    ``held_out``, ``draws`` of each; without it, only mean, covariance and samples of the linear sites.

    A batch's ``attention_mask`` [batch, positions] marks padding: those positions are left out of
    every layer whose inputs are laid out the same way.

    Raises:
        SourceError: a layer's inputs are missing or not finite, or no gradient reaches any layer.
    """
    usable = [site for site in sites if site.skip_reason is None]
    if objective is None:
        usable = [site for site in usable if site.kind == "linear"]
    if not usable:
        return {}
    gatherers = {site.name: _Gatherer(site, keeps_samples=objective is None) for site in usable}
    # One module may have several names: its inputs count once.
    owners = {model.get_submodule(name): gatherers[site.name] for site in usable for name in site.names}
    generator = torch.Generator().manual_seed(seed)
    for batch in batches:
        _observe(model, owners, batch, objective, 0, generator)
    for batch in held_out:
        _observe(model, owners, batch, objective, draws, generator)
    for name, gatherer in gatherers.items():
        if not gatherer.sound:
            raise SourceError(
                f"the inputs of layer {name!r} are missing or not finite on the calibration data; "
                "check the network and inputs('calibration')"
            )
    return {name: gatherer.finish() for name, gatherer in gatherers.items()}


def without_probes(statistics: Mapping[str, LayerStatistics]) -> dict[str, LayerStatistics]:
    """What is still needed once candidates are priced; probes take most of the memory."""
    return {name: replace(own, probes=()) for name, own in statistics.items()}


def hold_out(batches: Sequence[Batch]) -> tuple[list[Batch], list[Batch]]:
    """Split ``batches`` into those to fit and those to judge with: every sixth, from the second on.

    A single batch is split by its rows; one of a single row serves for both.
    """
    if len(batches) > 1:
        judging = list(batches[1::HELD_OUT])
        return [batch for i, batch in enumerate(batches) if i % HELD_OUT != 1], judging
    (batch,) = batches
    rows = next(iter(batch.values())).shape[0]
    cut = rows - max(1, rows // HELD_OUT)
    if cut == 0 or any(tensor.shape[:1] != (rows,) for tensor in batch.values()):
        return [batch], [batch]
    parts = slice(None, cut), slice(cut, None)
    fit, judge = ({name: tensor[part] for name, tensor in batch.items()} for part in parts)
    return [fit], [judge]


def probe_draws(judging: Sequence[Batch]) -> int:
    """How often each held-out sample is probed: more often where they are few."""
    samples = sum(next(iter(batch.values())).shape[0] for batch in judging)
    return min(MOST_DRAWS, -(-PROBES // samples))


def first_rows(batch: Batch, rows: int) -> Batch:
    """The first rows of every tensor that has as many as the batch."""
    size = next(iter(batch.values())).shape[0]
    return {name: t[:rows] if t.shape[:1] == (size,) else t for name, t in batch.items()}


def _observe(
    model: nn.Module,
    owners: dict[nn.Module, _Gatherer],
    batch: Batch,
    objective: str | None,
    draws: int,
    generator: torch.Generator,
) -> None:
    """One forward pass and, for an objective, backward passes of probes: one to fit, or ``draws`` to keep."""
    arguments = arguments_of(model, batch)
    size = next(iter(arguments.values())).shape[0]
    mask = batch.get("attention_mask")
    seen: dict[tuple[int, int], _Rows] = {}
    count = 0

    def hook(gatherer: _Gatherer) -> Callable[..., Any]:
        def forward(
            _module: nn.Module, args: tuple[Tensor, ...], kwargs: Any, output: Tensor
        ) -> Tensor | None:
            x = args[0] if args else kwargs["input"]
            # Query, key and value see one tensor: its moments are computed once.
            # A change in place, as of a residual stream, gives it another version.
            key = id(x), 0 if x.is_inference() else x._version
            rows = seen.get(key) or seen.setdefault(key, _Rows(x, mask, size, gatherer.is_table))
            if not draws and gatherer.moments is not None:
                gatherer.moments.add(rows)
            if objective is None:
                return None
            if not torch.is_grad_enabled():
                raise SourceError(_NO_GRADIENTS)
            # A leaf cannot be changed in place by what follows.
            result = output if output.requires_grad else output.detach().requires_grad_().clone()
            # Taken one by one, as they come: together they are as large as the activations.
            result.register_hook(lambda g: gatherer.add_gradients(rows, g, count, draws > 0))  # type: ignore[no-untyped-call]
            return result

        return forward

    handles = [
        module.register_forward_hook(hook(gatherer), with_kwargs=True) for module, gatherer in owners.items()
    ]
    try:
        with torch.set_grad_enabled(objective is not None):
            output = first_output(model, batch)
            if objective is not None:
                if not output.requires_grad:
                    raise SourceError(_NO_GRADIENTS)
                for left in range(max(1, draws), 0, -1):
                    loss, count = probe(objective, output, batch, generator)
                    loss.backward(retain_graph=left > 1)  # type: ignore[no-untyped-call]
    finally:
        for handle in handles:
            handle.remove()
        # Break the cycle of tensors, hooks and rows, which would keep the whole graph alive.
        for rows in seen.values():
            rows.release()
        release_freed()


class _Rows:
    """One layer's inputs in one pass: ``x`` [rows, in] without padding, sorted by sample.

    Where the first axis is not the batch's, the whole batch is one sample: probes of different samples
    are independent, so their cross terms vanish in expectation.
    """

    def __init__(self, x: Tensor, mask: Tensor | None, batch: int, is_table: bool) -> None:
        self.key: Tensor | None = x  # keeps the tensor, and so its id, alive
        leading = x.shape if is_table else x.shape[:-1]
        width = () if is_table else x.shape[-1:]
        samples = batch if len(leading) > 0 and leading[0] == batch else 1
        self.real = None if mask is None or mask.shape != leading else mask.bool().flatten()
        rows = self.flatten(x.detach(), width)
        # A copy: what follows may change the tensor in place before its gradients come.
        self.x = rows.clone() if self.real is None else rows
        if self.real is None:
            self.lengths = (len(self.x) // samples,) * samples
        else:
            self.lengths = tuple(self.real.reshape(samples, -1).sum(1).tolist())

    def flatten(self, tensor: Tensor, width: tuple[int, ...]) -> Tensor:
        """The rows of a tensor laid out as the inputs are, without padding."""
        rows = tensor.reshape(-1, *width)
        return rows if self.real is None else rows[self.real]

    def release(self) -> None:
        self.key = None

    @functools.cached_property
    def moments(self) -> tuple[int, Tensor, Tensor]:
        """Count, mean and centred scatter, float64."""
        mean = self.x.double().mean(dim=0) if len(self.x) else torch.zeros(self.x.shape[1]).double()
        centred = self.x - mean.float()
        scatter = (centred.T @ centred).double()
        rest = centred.double().sum(dim=0)  # of rounding the mean
        return len(self.x), mean, scatter - torch.outer(rest, rest) / max(1, len(self.x))

    @functools.cached_property
    def kept(self) -> Tensor:
        """The rows as probes keep them."""
        return self.x.bfloat16() if self.x.is_floating_point() else self.x.clone()


class _Moments:
    """Mean and scatter of inputs, merged batch by batch (Chan et al., 1979), and some of the inputs."""

    def __init__(self, width: int, keeps_samples: bool) -> None:
        self.keeps_samples = keeps_samples
        self.count = 0
        self.mean = torch.zeros(width, dtype=torch.float64)
        self.scatter = torch.zeros(width, width, dtype=torch.float64)
        self.kept: list[Tensor] = []

    def add(self, rows: _Rows) -> None:
        count, mean, scatter = rows.moments
        if not count:
            return
        total = self.count + count
        shift = mean - self.mean
        self.scatter += scatter
        self.scatter += torch.outer(shift, shift) * (self.count * count / total)
        self.mean += shift * (count / total)
        self.count = total
        if self.keeps_samples:
            keep = 128
            self.kept.append(rows.x[:: max(1, count // keep)][:keep].clone())

    @property
    def samples(self) -> Tensor | None:
        if not self.kept:
            return None
        samples = torch.cat(self.kept)
        return samples[:: -(-samples.shape[0] // SAMPLES)].clone()


class _Gatherer:
    """Accumulates one site's statistics."""

    def __init__(self, site: LayerSite, keeps_samples: bool) -> None:
        rows, width = site.shape
        moments = _Moments(width, keeps_samples) if site.kind == "linear" else None
        self.moments = moments
        self.outputs = width if moments is None else rows
        self.errors = 0
        self.probes: list[ProbedRows] = []
        self.outer = torch.zeros(self.outputs, self.outputs) if self.outputs <= LARGEST_OUTPUTS else None
        self.guided = torch.zeros(width, width) if moments else None

    @property
    def is_table(self) -> bool:
        return self.moments is None

    @property
    def sound(self) -> bool:
        if self.moments is None:
            return True
        return self.moments.count > 0 and bool(torch.isfinite(self.moments.mean).all())

    def add_gradients(self, rows: _Rows, gradient: Tensor, count: int, held_out: bool) -> None:
        g = rows.flatten(gradient.detach(), (self.outputs,))
        if held_out:
            self.probes.append(ProbedRows(rows.kept, g.bfloat16(), rows.lengths, count))
            return
        if self.outer is not None:
            self.outer += g.T @ g
        self.errors += count
        if self.moments is None or self.guided is None:
            return
        x = rows.x - self.moments.mean.float()
        # Gamma^T Gamma = X^T (g g^T) X, by way of the rows: cheaper than Gamma, which is [out, in].
        parts = zip(torch.split(x, list(rows.lengths)), torch.split(g, list(rows.lengths)), strict=True)
        guided = torch.cat([(g_sample @ g_sample.T) @ x_sample for x_sample, g_sample in parts])
        self.guided += x.T @ guided

    def finish(self) -> LayerStatistics:
        """The statistics; what was summed is divided in place, as all sites' sums are large."""
        observed = self.errors > 0
        outer = self.outer.div_(self.errors) if observed and self.outer is not None else None
        moments = self.moments
        if moments is None or self.guided is None:
            return LayerStatistics(0, output_moment=outer, probes=tuple(self.probes))
        guided = self.guided.add_(self.guided.T.clone()).div_(2 * self.errors) if observed else None
        return LayerStatistics(
            moments.count,
            moments.mean,
            moments.scatter.div_(max(1, moments.count)),
            moments.samples,
            outer,
            guided,
            tuple(self.probes),
        )

"""Sums over calibration batches, layer by layer: moments of inputs, and of the gradients at outputs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics, ProbedGammas, ProbedRows
from svd2onnx.calibration.moments import WIDEST, add_outer_sum, add_square, outer_sum
from svd2onnx.compute.device_store import DeviceStore
from svd2onnx.network.convolution import Convolution, patches, weight_gradients
from svd2onnx.values.schema import LayerSite

TakeGradient = Callable[[Tensor, int], None]
"""Takes the gradient at a layer's outputs, and the number of errors that its probe stands for."""
SAMPLES = 2048
"""Inputs kept of each layer for the article's rank rule."""
LARGEST_OUTPUTS = 8192
"""Layers with more outputs (a vocabulary) get no output moment, which would be larger than their weight."""
_WIDE = 2048
"""Inputs from which on products are summed in float32, in which they were made: float64 takes much memory."""
MOST_GAMMA_BYTES = 1 << 28
"""Of one stored weight, whose Gammas are as large as itself: it is judged on fewer batches than others."""
PATCHES = 256
"""Of each sample, that go into the moments of a convolution: neighbours are much alike."""


def is_finite(tensor: Tensor) -> bool:
    """Whether all of it is: a sum would show one that is not."""
    return bool(torch.isfinite(tensor.detach().sum()))


class Rows:
    """One layer's inputs in one pass: ``x`` [rows, in] without padding, sorted by sample.

    Rows that are not finite are left out too: what attention makes of padding alone, and no one reads.

    Where the first axis is not the batch's, the whole batch is one sample: probes of different samples
    are independent, so their cross terms vanish in expectation. They lie in ``store`` for the pass.
    """

    def __init__(
        self, x: Tensor, mask: Tensor | None, batch: int, is_table: bool, store: DeviceStore
    ) -> None:
        self.key: Tensor | None = x  # keeps the tensor, and so its id, alive
        leading = x.shape if is_table else x.shape[:-1]
        width = () if is_table else x.shape[-1:]
        samples = batch if len(leading) > 0 and leading[0] == batch else 1
        self.real = None if mask is None or mask.shape != leading else mask.bool().flatten().to(x.device)
        if not is_table and not is_finite(x):
            sound = torch.isfinite(x.detach()).all(-1).flatten()
            self.real = sound if self.real is None else self.real & sound
        rows = self.flatten(x.detach(), width)
        # A copy: what follows may change the tensor in place before its gradients come.
        self.x = store.hold(rows.clone() if self.real is None else rows)
        self._store = store
        self._moments: dict[float, tuple[float, Tensor, Tensor]] = {}
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
    def sizes(self) -> Tensor:
        """The mean square of each sample, [samples] float64; 0 where all of it is padding."""
        squares = self.x.square().mean(dim=1, dtype=torch.float64)
        lengths = torch.tensor(self.lengths).to(squares.device)
        samples = torch.repeat_interleave(torch.arange(len(lengths), device=squares.device), lengths)
        sums = squares.new_zeros(len(lengths)).index_add_(0, samples, squares)
        return sums / lengths.clamp_min(1)

    def weights(self, limit: float) -> Tensor | None:
        """min(1, limit / size of the sample) of each row, float64; None where all are 1."""
        sizes = self.sizes
        if not bool((sizes > limit).any()):
            return None
        lengths = torch.tensor(self.lengths).to(sizes.device)
        return torch.repeat_interleave((limit / sizes).clamp_max(1.0), lengths)

    def moments(self, limit: float) -> tuple[float, Tensor, Tensor]:
        """Sum of ``weights``, mean float64, centred scatter; of very wide inputs the scatter's diagonal."""
        if limit not in self._moments:
            self._moments[limit] = self._weighed(self.weights(limit))
        return self._moments[limit]

    def _weighed(self, weights: Tensor | None) -> tuple[float, Tensor, Tensor]:
        count, width = self.x.shape
        if weights is None:
            total = float(count)
            mean = self.x.double().mean(dim=0) if count else self.x.new_zeros(width, dtype=torch.float64)
            centred = self.x - mean.float()
            rest = centred.double().sum(dim=0)
        else:
            total = float(weights.sum())
            mean = weights @ self.x.double() / total
            centred = self.x - mean.float()
            rest = weights @ centred.double()
            centred *= weights.sqrt().float().unsqueeze(1)
        scatter = outer_sum(centred, centred, whole=width <= WIDEST).to(_dtype(width))
        add_square(scatter, rest, -1 / (total or 1.0))  # of rounding the mean
        return total, mean, scatter

    @functools.cached_property
    def kept(self) -> Tensor:
        """The rows as probes keep them, on the CPU."""
        return self._store.keep(self.x.bfloat16() if self.x.is_floating_point() else self.x.clone())


def patch_rows(module: Convolution, x: Tensor, store: DeviceStore) -> Rows:
    """The rows that a convolution multiplies: patches of its input ``x`` [samples, in, *space]."""
    inputs = patches(module, x, PATCHES)
    return Rows(inputs.reshape(len(x), -1, inputs.shape[1]), None, len(x), is_table=False, store=store)


class _Moments:
    """Mean and scatter of inputs, merged batch by batch (Chan et al., 1979), and some of the inputs.

    Samples of a mean square above ``limit`` count less (``first_look``).
    """

    def __init__(self, width: int, keeps_samples: bool, limit: float, store: DeviceStore) -> None:
        self.keeps_samples, self._limit, self._store = keeps_samples, limit, store
        self.count, self.weight = 0, 0.0
        self.mean = store.zeros((width,), torch.float64)
        self.scatter = _zeros(width, store, _dtype(width))
        self.kept: list[Tensor] = []

    def add(self, rows: Rows) -> None:
        count = len(rows.x)
        if not count:
            return
        weight, mean, scatter = rows.moments(self._limit)
        total = self.weight + weight
        shift = mean - self.mean.to(mean.device)
        _add(self.scatter, scatter)
        add_square(self.scatter, shift, self.weight * weight / total)
        _add(self.mean, shift * (weight / total))
        self.count, self.weight = self.count + count, total
        if self.keeps_samples:
            keep = 128
            self.kept.append(rows.x[:: max(1, count // keep)][:keep].clone().cpu())

    @property
    def samples(self) -> Tensor | None:
        if not self.kept:
            return None
        samples = torch.cat(self.kept)
        return self._store.keep(samples[:: -(-samples.shape[0] // SAMPLES)].clone())


class Gatherer:
    """Accumulates the statistics of one site, that of a linear layer or a table."""

    def __init__(self, site: LayerSite, keeps_samples: bool, limit: float, store: DeviceStore) -> None:
        rows, width = site.shape
        self.moments = _Moments(width, keeps_samples, limit, store) if site.kind == "linear" else None
        self.outputs = width if self.moments is None else rows
        self._sums = _Sums(self.outputs, width if self.moments else None, store)
        self._store = store
        self.probes: list[ProbedRows] = []

    @property
    def is_table(self) -> bool:
        return self.moments is None

    def seen(self, rows: Rows, fits: bool) -> TakeGradient:
        """Take inputs of one call; what is returned takes the gradient of a probe at its outputs.

        Those that the layer ``fits`` are summed up; others are kept as they are, to judge the fit.
        """
        if fits and self.moments is not None:
            self.moments.add(rows)
        return lambda gradient, count: self._add(rows, gradient, count, fits)

    def _add(self, rows: Rows, gradient: Tensor, count: int, fits: bool) -> None:
        g = rows.flatten(gradient.detach(), (self.outputs,))
        if not fits:
            kept = self._store.keep(g.bfloat16())
            self.probes.append(ProbedRows(rows.kept, kept, rows.lengths, count))
            return
        self._sums.add_outputs(g, count)
        if self.moments is None:
            return
        x = rows.x - self.moments.mean.float().to(g.device)
        # Gamma^T Gamma = X^T (g g^T) X, by way of the rows: cheaper than Gamma, which is [out, in].
        parts = zip(torch.split(x, list(rows.lengths)), torch.split(g, list(rows.lengths)), strict=True)
        guided = torch.cat([(g_sample @ g_sample.T) @ x_sample for x_sample, g_sample in parts])
        self._sums.add_guided(x, guided)

    def finish(self) -> LayerStatistics:
        """The statistics; what was summed is divided in place, as all sites' sums are large."""
        return _finished(self.moments, self._sums, self.probes)


class ConvolutionGatherer:
    """Accumulates the statistics of one convolution; a grouped one has no moments of inputs."""

    def __init__(
        self, site: LayerSite, module: Convolution, keeps_samples: bool, limit: float, store: DeviceStore
    ) -> None:
        rows, width = site.shape
        self._module, self._store = module, store
        self.moments = _Moments(width, keeps_samples, limit, store) if site.groups == 1 else None
        self._sums = _Sums(rows, width if self.moments else None, store)
        self.probes: list[ProbedGammas] = []

    def seen(self, x: Tensor, fits: bool) -> TakeGradient:
        """As of ``Gatherer``, of inputs [samples, in, *space]."""
        if fits and self.moments is not None:
            self.moments.add(patch_rows(self._module, x, self._store))
        # A copy: what follows may change the tensor in place before its gradients come.
        kept = self._store.hold(x.clone())
        return lambda gradient, count: self._add(kept, gradient.detach(), count, fits)

    def _add(self, x: Tensor, g: Tensor, count: int, fits: bool) -> None:
        gammas = weight_gradients(self._module, x, g)
        if self.moments is not None:
            mean = self.moments.mean.float().to(g.device)
            sums = g.flatten(2).sum(2)
            gammas = (gamma - torch.outer(own, mean) for gamma, own in zip(gammas, sums, strict=True))
        if not fits:
            kept = self._store.keep(torch.stack([gamma.bfloat16() for gamma in gammas]))
            self.probes.append(ProbedGammas(kept, count))
            return
        self._sums.add_outputs(g.transpose(0, 1).flatten(1).T, count)
        if self.moments is not None:
            for gamma in gammas:
                self._sums.add_guided(gamma, gamma)

    def finish(self) -> LayerStatistics:
        """The statistics."""
        return _finished(self.moments, self._sums, self.probes)


class StoredGatherer:
    """Keeps the probes of one stored weight, whose inputs are not known: it has no moments."""

    moments = None

    def __init__(self, site: LayerSite, store: DeviceStore) -> None:
        self._shape, self._store = site.shape, store
        self.probes: list[ProbedGammas] = []

    def seen(self, fits: bool) -> TakeGradient:
        """As of ``Gatherer``; the gradient is that at the weight itself."""

        def take(gradient: Tensor, count: int) -> None:
            held = sum(probes.nbytes for probes in self.probes)
            if not fits and held < MOST_GAMMA_BYTES:
                gamma = gradient.detach().reshape(1, *self._shape).bfloat16()
                self.probes.append(ProbedGammas(self._store.keep(gamma), count))

        return take

    def finish(self) -> LayerStatistics:
        """The statistics."""
        return LayerStatistics(0, probes=tuple(self.probes))


AnyGatherer = Gatherer | ConvolutionGatherer | StoredGatherer


def _add(total: Tensor, part: Tensor) -> None:
    total += part.to(total.device)


def _dtype(width: int) -> torch.dtype:
    """Of a scatter of so many inputs."""
    return torch.float32 if width >= _WIDE else torch.float64


def _zeros(width: int, store: DeviceStore, dtype: torch.dtype = torch.float32) -> Tensor:
    """[width, width], or [width] where that would be too large."""
    return store.zeros((width, width) if width <= WIDEST else (width,), dtype)


class _Sums:
    """Sums of products of gradients, over all errors so far: G [outputs, outputs] and B [width, width]."""

    def __init__(self, outputs: int, width: int | None, store: DeviceStore) -> None:
        self.errors = 0
        self.outer = store.zeros((outputs, outputs)) if outputs <= LARGEST_OUTPUTS else None
        self.guided = None if width is None else _zeros(width, store)

    def add_outputs(self, g: Tensor, count: int) -> None:
        if self.outer is not None:
            add_outer_sum(self.outer, g, g)
        self.errors += count

    def add_guided(self, rows: Tensor, others: Tensor) -> None:
        assert self.guided is not None
        add_outer_sum(self.guided, rows, others)


def is_sound(gatherer: AnyGatherer) -> bool:
    """Whether the inputs came, and were numbers."""
    moments = gatherer.moments
    return moments is None or (moments.count > 0 and bool(torch.isfinite(moments.mean).all()))


def _finished(
    moments: _Moments | None, sums: _Sums, probes: Sequence[ProbedRows | ProbedGammas]
) -> LayerStatistics:
    observed = sums.errors > 0
    outer = sums.outer.div_(sums.errors) if observed and sums.outer is not None else None
    if moments is None or sums.guided is None:
        return LayerStatistics(0, output_moment=outer, probes=tuple(probes))
    guided = None
    if observed and sums.guided.ndim == 2:
        guided = sums.guided.add_(sums.guided.T.clone()).div_(2 * sums.errors)
    elif observed:
        guided = sums.guided.div_(sums.errors)
    return LayerStatistics(
        moments.count,
        moments.mean,
        moments.scatter.div_(moments.weight or 1.0),
        moments.samples,
        outer,
        guided,
        tuple(probes),
    )

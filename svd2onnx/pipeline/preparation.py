"""What every command starts from: the network, its layers, and the batches it is calibrated on."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from torch import nn

from svd2onnx.calibration.calibrate import hold_out
from svd2onnx.compute.device import CPU, placed, resolve_device
from svd2onnx.compute.memory import release_at_once
from svd2onnx.compute.progress import Track, silent
from svd2onnx.compute.tensor_store import CreatedIn, TensorStore
from svd2onnx.graph.export import export_float
from svd2onnx.network import layers as layer_sites
from svd2onnx.network.decoder import Traced
from svd2onnx.pipeline.front_end import TracedSource, trace_source
from svd2onnx.sources.calibration import limited
from svd2onnx.sources.load import load_source
from svd2onnx.sources.model_file import Batch, DynamicShapes, arguments_of
from svd2onnx.sources.rows import RowAxes, exact_rows, named_axes, row_axes
from svd2onnx.sources.source import Source
from svd2onnx.tracing.int8_places import fit_for_int8
from svd2onnx.values.errors import ExportError, SourceError, one_line
from svd2onnx.values.objective import parse_objective
from svd2onnx.values.schema import LayerSite
from svd2onnx.values.settings import AnyPath, Settings
from svd2onnx_runtime.session import resolve_provider


def _not_loaded() -> nn.Module:
    raise AssertionError("this network was not loaded from a source")


@dataclass(frozen=True)
class Prepared:
    """A loaded network with its layers found, the calibration batches (one at least), and what is asked for.

    What belongs to the network and is large lies in ``store``: its weights do. Work on a layer is done on
    ``device``, and passes of the network are too, unless ``obstacle`` says what hinders them. ``track`` shows
    the progress of whatever is done with it.
    """

    source: Source
    traced_source: TracedSource
    sites: Sequence[LayerSite]
    batches: Sequence[Batch]
    settings: Settings = field(default_factory=Settings)
    track: Track = silent
    store: TensorStore = field(default_factory=TensorStore)
    is_large: bool = False
    """Whether its weights alone are more than is kept in memory."""
    device: torch.device = CPU
    obstacle: str | None = None
    load_again: Callable[[], nn.Module] = _not_loaded
    """The network as the user handed it in, loaded anew."""
    judged: int | None = None
    """The place of the output that is judged, see ``judged_output``; None for the first of floats."""

    @cached_property
    def provider(self) -> str:
        """The execution provider that files are measured on."""
        return resolve_provider(self.settings.provider)

    @property
    def passes(self) -> torch.device:
        """Where passes of the network are computed."""
        return self.device if self.obstacle is None else CPU

    def placed(self, *networks: nn.Module) -> tuple[nn.Module, ...]:
        """``networks`` as they are to be run, see ``svd2onnx.compute.device``."""
        return placed(self.passes, *networks)

    @property
    def objective(self) -> str:
        """Its kind: "cosine", "kl" or "mse"."""
        return parse_objective(self.source.objective).kind

    @property
    def output(self) -> str | None:
        """The name of the output that is judged, where the source or the settings say it."""
        return parse_objective(self.source.objective).output

    @property
    def calibrates(self) -> bool:
        """Whether there are data to calibrate on, and they are asked for."""
        return self.settings.calibration_samples > 0 and self.source.calibrated

    @property
    def gradients_of(self) -> str | None:
        """The objective that gradients are taken of; the article's method does without them."""
        return None if self.settings.method == "svd" else self.objective

    @cached_property
    def _split(self) -> tuple[list[Batch], list[Batch]]:
        return hold_out(self.batches)

    @property
    def fit(self) -> list[Batch]:
        """The calibration batches that layers are fitted to."""
        return self._split[0]

    @property
    def judging(self) -> list[Batch]:
        """The calibration batches that are held out, to judge with."""
        return self._split[1]

    @cached_property
    def evaluation(self) -> list[Batch]:
        return list(self.source.inputs("evaluation"))

    @property
    def dynamic_shapes(self) -> DynamicShapes:
        """The axes that may have any size."""
        return self.traced_source.dynamic_shapes

    @property
    def example(self) -> Batch:
        """Forward's arguments for the exporter."""
        return self.traced_source.example

    @property
    def model(self) -> nn.Module:
        """The float network, traced."""
        return self.traced_source.model

    def traced(self, network: nn.Module) -> Traced:
        """What is exported of ``network``, this one or its like: with keys and values of a past if asked.

        All that is measured in PyTorch does without them.
        """
        return self.traced_source.exported(network, self.source.outputs)

    def export_float(self, path: Path) -> None:
        """Write the network as it is, in float32; errors as of ``graph.export.export_float``."""
        for _ in self.track([path], "Exporting float32", 1):
            traced = self.traced(self.model)
            export_float(self.model, self.example, self.dynamic_shapes, path, traced=traced)

    @cached_property
    def row_axes(self) -> RowAxes:
        """Where the samples of a batch lie.

        Where nobody named the axes and only some inputs seem to have samples, they may as well be the nodes
        of a graph: then none has.
        """
        arguments = arguments_of(self.model, self.batches[0])
        axes = row_axes(arguments, self.dynamic_shapes)
        is_guess = self.source.dynamic_shapes is None
        is_partial = any(axes[name] is None and tensor.ndim for name, tensor in arguments.items())
        return dict.fromkeys(axes) if is_guess and is_partial else axes

    @property
    def few_rows(self) -> Iterator[Batch]:
        """Of evaluation: two small batches of other sizes than the example's, as far as these may differ."""
        axes = self.row_axes
        if self.source.dynamic_shapes is not None and not any(axis is not None for axis in axes.values()):
            axes = self._first_axes
        ends = self.evaluation[0], self.evaluation[-1]
        return (exact_rows(own, rows, axes) for own, rows in zip(ends, (2, 3), strict=True))

    @property
    def _first_axes(self) -> RowAxes:
        """The first ones, where all inputs have one name there and nowhere else: samples by another name."""
        arguments = arguments_of(self.model, self.batches[0])
        axes = {n: named_axes(self.dynamic_shapes, n) for n, tensor in arguments.items() if tensor.ndim}
        first = {own.get(0) for own in axes.values()}
        elsewhere = {called for own in axes.values() for axis, called in own.items() if axis}
        if len(first) == 1 and first.isdisjoint({None, *elsewhere}):
            return row_axes(arguments, self.dynamic_shapes, str(first.pop()))
        return dict.fromkeys(arguments)


RANDOM = "; its inputs are random, as no --calibration was given: give some, if random ones do not fit it"


def prepare(
    source: AnyPath | Source, settings: Settings, data: AnyPath | None = None, track: Track = silent
) -> Prepared:
    """Load the source, take its calibration batches, and find the layers of its network.

    A ``Source`` in place of a path makes its network anew whenever ``build`` is called; ``data`` is for
    model files.

    Raises:
        SourceError: see ``load_source`` and ``discover``.
        PlanError: a pattern matches no layer.
        DeviceError: there is no GPU, and ``settings`` ask for one.
    """
    device = resolve_device(settings.device)
    store = TensorStore()

    def load() -> tuple[Source, nn.Module]:
        torch.manual_seed(settings.seed)  # model files may draw weights or inputs
        with CreatedIn(store):
            loaded = (
                source
                if isinstance(source, Source)
                else load_source(Path(source), settings, Path(data) if data else None)
            )
            return loaded, loaded.build()

    def load_again() -> nn.Module:
        with torch.random.fork_rng(devices=()):
            _, untouched = load()
        store.keep_module(untouched)
        return untouched.eval()

    loaded, live = load()
    if settings.with_past and loaded.with_past is None:
        raise SourceError(
            f"--with-past was given, and {loaded.name} does not say how it takes a past: leave it out, or "
            "define with_past(network) in a model file (svd2onnx.sources.model_file says what it is)"
        )
    store.keep_module(live)
    is_large = store.overflows
    if is_large:
        release_at_once()
    inputs = limited(loaded.inputs("calibration"), settings.calibration_samples)
    batches = list(track(inputs, "Reading calibration data"))
    if settings.with_past:
        _check_text(loaded.name, arguments_of(live, batches[0]))
    try:
        traced = trace_source(loaded, live.eval(), batches, settings.with_past)
        store.keep_module(traced.model)
        sites = layer_sites.discover(traced.model, arguments_of(live, batches[0]))
    except (SourceError, ExportError) as error:
        random = "" if loaded.calibrated else RANDOM
        raise type(error)(f"{loaded.name}: {error}{random}") from error
    fit = set() if settings.with_past else fit_for_int8(traced.model.graph, sites)
    shares = settings.file_format.shares_weights
    sites = [replace(site, shared=shares, fits_int8=site.name in fit) for site in sites]
    chosen = layer_sites.select(sites, settings.include, settings.exclude, settings.only)
    obstacle = None if device == CPU else _obstacle(traced.model, batches[0], device)
    return Prepared(
        loaded,
        traced,
        chosen,
        batches,
        settings,
        track,
        store,
        is_large,
        device,
        obstacle,
        load_again,
    )


def _obstacle(model: nn.Module, batch: Batch, device: torch.device) -> str | None:
    """Why ``model``, which runs on the CPU, does not on ``device``: it is too large, or names the CPU."""
    try:
        (network,) = placed(device, model)
        with torch.inference_mode():
            network(**arguments_of(network, batch))
    except Exception as error:
        return f"{type(error).__name__}: {one_line(error)}"
    return None


def _check_text(name: str, arguments: Batch) -> None:
    """A graph with a cache takes texts, and is judged on those of the network without one."""
    sizes = {argument: tuple(tensor.shape) for argument, tensor in arguments.items()}
    if set(sizes) != {"input_ids", "attention_mask"} or len(set(sizes.values())) > 1:
        raise SourceError(
            "--with-past is for networks of input_ids and attention_mask, both [batch, sequence], and "
            f"{name} gives {sizes}: leave it out, or let forward take these two"
        )

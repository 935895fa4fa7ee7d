"""What a layer sees on real data, gathered in one streaming pass over the calibration batches.

The moments are what weights are fitted to; held-out samples judge the fit, because a fit looks better on
its own data than it is. Moments are summed over the batches in float64; padding is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from svd2onnx.calibration.accumulation import (
    AnyGatherer,
    ConvolutionGatherer,
    Gatherer,
    Rows,
    StoredGatherer,
    is_finite,
    is_sound,
)
from svd2onnx.calibration.first_look import FirstLook, look
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import judged_output
from svd2onnx.calibration.probes import probe
from svd2onnx.compute.device import device_of
from svd2onnx.compute.device_store import DeviceStore
from svd2onnx.compute.memory import release_freed
from svd2onnx.compute.tensor_store import TensorStore
from svd2onnx.network.convolution import convolution_at
from svd2onnx.sources.model_file import Batch, arguments_of
from svd2onnx.values.errors import SourceError
from svd2onnx.values.schema import LayerSite

HELD_OUT = 6
PROBES = 512
"""Draws of probes that make scores steady, over all held-out samples; at most MOST_DRAWS of each."""
MOST_DRAWS = 2
MOST_PROBE_BYTES = 3 << 30
"""Of probes together: large networks are judged on fewer samples."""
_NO_GRADIENTS = (
    "no gradients reach the layers from the output that is judged, which calibration needs: name another one "
    "with --objective OUTPUT=KIND; or let forward not use torch.no_grad, detach, argmax or round on the way; "
    "--calibration-samples 0 does without"
)

_NOT_FINITE = (
    "the network gives NaN or infinity on the calibration data; expected finite outputs: check the network "
    "and inputs('calibration')"
)


def calibrate(
    model: nn.Module,
    sites: Sequence[LayerSite],
    batches: Iterable[Batch],
    objective: str | None = None,
    held_out: Iterable[Batch] = (),
    *,
    place: int | None = None,
    usual: Iterable[Batch] = (),
    draws: int = 1,
    seed: int = 0,
    store: TensorStore | None = None,
) -> dict[str, LayerStatistics]:
    """Run ``model`` over ``batches`` and gather the statistics of each usable site, by site name.

    With ``objective`` ("cosine", "kl" or "mse") there are gradients too, and probes of the batches
    ``held_out``, ``draws`` of each; they are of the output at ``place``, see ``judged_output``. Without it,
    only mean, covariance and samples of what multiplies.

    Batches that are ``usual``, and not among ``batches``, tell which inputs are outliers, and roundings are
    compared on them: see ``first_look``. Without them all inputs count alike.

    A batch's ``attention_mask`` [batch, positions] marks padding: those positions are left out of
    every layer whose inputs are laid out the same way. What is kept, to the end or for gradients, lies in
    ``store``, wherever the network is, and passes are computed.

    Raises:
        SourceError: a layer's inputs are missing or not finite, or no gradient reaches any layer.
    """
    usable = [site for site in sites if site.skip_reason is None]
    if objective is None:
        usable = [site for site in usable if site.multiplies]
    if not usable:
        return {}
    keeps_samples, sums = objective is None, DeviceStore(device_of(model), store or TensorStore())
    looks = {site.name: FirstLook() for site in usable if site.multiplies}
    seeing = [site for site in usable if site.name in looks]
    look(
        model, {model.get_submodule(n): looks[site.name] for site in seeing for n in site.names}, usual, sums
    )
    gatherers = {
        site.name: _gatherer(model, site, keeps_samples, looks.get(site.name, FirstLook()).limit, sums)
        for site in usable
    }
    # One module may have several names: its inputs count once.
    owners = {model.get_submodule(name): gatherers[site.name] for site in usable for name in site.names}
    generator = torch.Generator().manual_seed(seed)
    reached: set[AnyGatherer] = set()
    for batch in batches:
        _observe(
            model, owners, batch, objective, place, draws=0, generator=generator, store=sums, reached=reached
        )
    for batch in held_out:
        if sum(probes.nbytes for own in gatherers.values() for probes in own.probes) > MOST_PROBE_BYTES:
            break
        _observe(
            model,
            owners,
            batch,
            objective,
            place,
            draws=draws,
            generator=generator,
            store=sums,
            reached=reached,
        )
    if objective is not None and not reached:
        raise SourceError(_NO_GRADIENTS)
    for name, gatherer in gatherers.items():
        if not is_sound(gatherer):
            raise SourceError(
                f"the inputs of layer {name!r} are missing or not finite on the calibration data; "
                "check the network and inputs('calibration')"
            )
    return {name: sums.kept(_finished(own, looks.get(name))) for name, own in gatherers.items()}


def _finished(gatherer: AnyGatherer, seen: FirstLook | None) -> LayerStatistics:
    statistics = gatherer.finish()
    return statistics if seen is None else replace(statistics, held_out=seen.held_out(statistics.mean))


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


def _gatherer(
    model: nn.Module, site: LayerSite, keeps_samples: bool, limit: float, store: DeviceStore
) -> AnyGatherer:
    if site.kind == "stored":
        return StoredGatherer(site, store)
    if site.kind == "convolution":
        return ConvolutionGatherer(site, convolution_at(model, site.name), keeps_samples, limit, store)
    return Gatherer(site, keeps_samples, limit, store)


def _is_masked(output: Tensor, arguments: Batch, objective: str | None) -> bool:
    """Whether what is plus infinity in ``output``, if anything, can be a mask: it comes of no input.

    A class of plus infinity leaves no distribution, so that with "kl" there is none.
    """
    if not bool(output.isposinf().any()):
        return True
    floats = (tensor for tensor in arguments.values() if tensor.is_floating_point())
    return objective != "kl" and all(bool(tensor.isfinite().all()) for tensor in floats)


def _observe(
    model: nn.Module,
    owners: dict[nn.Module, AnyGatherer],
    batch: Batch,
    objective: str | None,
    place: int | None,
    *,
    draws: int,
    generator: torch.Generator,
    store: DeviceStore,
    reached: set[AnyGatherer],
) -> None:
    """One forward pass and, for an objective, backward passes of probes: one to fit, or ``draws`` to keep.

    What it keeps for these lies in ``store``. Those whose gradients are not all 0 come into ``reached``.
    """
    arguments = arguments_of(model, batch)
    size = next(iter(arguments.values())).shape[0]
    mask = batch.get("attention_mask")
    seen: dict[tuple[int, int], Rows] = {}
    count = 0

    def rows_of(gatherer: Gatherer, x: Tensor) -> Rows:
        # Query, key and value see one tensor: its moments are computed once.
        # A change in place, as of a residual stream, gives it another version.
        key = id(x), 0 if x.is_inference() else x._version
        return seen.get(key) or seen.setdefault(key, Rows(x, mask, size, gatherer.is_table, store))

    leaves: dict[StoredGatherer, Tensor] = {}

    def weight_hook(gatherer: StoredGatherer) -> Callable[..., Any]:
        take = gatherer.seen(fits=not draws)

        def arrived(gradient: Tensor) -> None:
            if bool(gradient.any()):
                reached.add(gatherer)
            take(gradient, count)

        def forward(_module: nn.Module, _args: Any, _kwargs: Any, weight: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise SourceError(_NO_GRADIENTS)
            # One for all calls, so that its gradient is the sum of theirs.
            if gatherer not in leaves:
                leaves[gatherer] = weight.detach().requires_grad_()
                leaves[gatherer].register_hook(arrived)  # type: ignore[no-untyped-call]
            return leaves[gatherer]

        return forward

    def hook(gatherer: AnyGatherer) -> Callable[..., Any]:
        if isinstance(gatherer, StoredGatherer):
            return weight_hook(gatherer)

        def forward(
            _module: nn.Module, args: tuple[Tensor, ...], kwargs: Any, output: Tensor
        ) -> Tensor | None:
            x = args[0] if args else kwargs["input"]
            take: Callable[[Tensor, int], None]
            if isinstance(gatherer, Gatherer):
                take = gatherer.seen(rows_of(gatherer, x), fits=not draws)
            else:
                take = gatherer.seen(x.detach(), fits=not draws)
            if objective is None:
                return None
            if not torch.is_grad_enabled():
                raise SourceError(_NO_GRADIENTS)
            # A leaf cannot be changed in place by what follows.
            result = output if output.requires_grad else output.detach().requires_grad_().clone()

            def arrived(gradient: Tensor) -> Tensor:
                # What no one reads may be NaN, and then its gradient is 0 times that.
                gradient = gradient if is_finite(gradient) else gradient.nan_to_num(0.0, 0.0, 0.0)
                if bool(gradient.any()):
                    reached.add(gatherer)
                take(gradient, count)
                return gradient

            # Taken one by one, as they come: together they are as large as the activations.
            result.register_hook(arrived)  # type: ignore[no-untyped-call]
            return result

        return forward

    handles = [
        module.register_forward_hook(hook(gatherer), with_kwargs=True) for module, gatherer in owners.items()
    ]
    try:
        # What is packed must be no node of the graph itself, or it would never be freed.
        in_store = saved_tensors_hooks(lambda tensor: store.hold(tensor.detach()), lambda held: held)
        with torch.set_grad_enabled(objective is not None), in_store:
            output = judged_output(model, batch, place)
            # Masked values are infinite; what is not finite on the way there may be thrown away.
            if bool(output.isnan().any()) or not _is_masked(output, arguments, objective):
                raise SourceError(_NOT_FINITE)
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

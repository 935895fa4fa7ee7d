"""What the layers see on the calibration data, in one act: moments, and probes where forms are priced."""

from __future__ import annotations

import functools
from dataclasses import replace

from svd2onnx.calibration.calibrate import calibrate, probe_draws, without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.passes import in_passes
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.pipeline.preparation import Prepared


def gather_statistics(prepared: Prepared, memoize: Memoize = no_memo) -> dict[str, LayerStatistics]:
    """Of every usable layer, by its name; none at all where no calibration is asked for."""
    settings = prepared.settings
    if not prepared.calibrates:
        return {}
    priced = settings.method == "auto" and settings.plan is None

    @functools.cache
    def gathered() -> dict[str, LayerStatistics]:
        (network,) = prepared.placed(prepared.model)
        usable = [site for site in prepared.sites if site.skip_reason is None]
        layers = {network.get_submodule(name) for site in usable for name in site.names}
        fit, judging = (
            in_passes(network, layers, own, prepared.row_axes) for own in (prepared.fit, prepared.judging)
        )
        return calibrate(
            network,
            prepared.sites,
            prepared.track(fit, "Calibrating", len(fit)),
            prepared.gradients_of,
            prepared.track(judging, "Probing", len(judging)) if priced else (),
            place=prepared.judged,
            usual=prepared.track(judging, "Looking at inputs", len(judging)),
            draws=probe_draws(judging),
            seed=settings.seed,
            store=prepared.store,
        )

    # Apart, because a given plan needs no probes, and may be of a run that had some.
    moments = memoize("moments", (), lambda: without_probes(gathered()))
    if not priced:
        return moments
    probes = memoize("probes", (), lambda: {name: own.probes for name, own in gathered().items()})
    return {name: replace(own, probes=probes[name]) for name, own in moments.items()}

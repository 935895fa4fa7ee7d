"""What a network is made of, before anything is done to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from svd2onnx.layers import weight_of
from svd2onnx.planner import uniform_plan
from svd2onnx.preparation import prepare
from svd2onnx.progress import Track, silent
from svd2onnx.settings import Settings


@dataclass(frozen=True)
class LayerInspection:
    """One layer; ``energy_ranks`` hold 90% and 99% of the squared singular values of its weight.

    ``stored_bytes`` is its size under the plain quantization asked for, None where it stays float.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    float_bytes: int
    stored_bytes: int | None
    energy_ranks: tuple[int, ...]
    note: str | None


def inspect_layers(
    source: Path, settings: Settings, data: Path | None, track: Track = silent
) -> list[LayerInspection]:
    """Every layer of the model file ``source`` that has parameters.

    Raises:
        Svd2OnnxError: the source cannot be loaded or a pattern matches nothing.
    """
    return list(_inspections(source, settings, data, track))


def _inspections(
    source: Path, settings: Settings, data: Path | None, track: Track
) -> Iterator[LayerInspection]:
    prepared = prepare(source, settings, data, track)
    plan = uniform_plan(prepared.sites, settings.spec)
    for site in track(prepared.sites, "Decomposing", len(prepared.sites)):
        form = plan.forms.get(site.name)
        ranks: tuple[int, ...] = ()
        if site.kind != "embedding" and site.shape and site.skip_reason is None:
            energy = torch.linalg.svdvals(weight_of(prepared.model, site)).square()
            share = energy.cumsum(0) / energy.sum()
            ranks = tuple(int((share < part).sum()) + 1 for part in (0.9, 0.99))
        yield LayerInspection(
            name=site.name,
            kind=site.kind,
            shape=site.shape,
            float_bytes=site.float_bytes,
            stored_bytes=form.stored_bytes(site.shape) * site.copies if form else None,
            energy_ranks=ranks,
            note=site.skip_reason or plan.notes.get(site.name),
        )

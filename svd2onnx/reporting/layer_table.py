"""The layers in the order in which a reader wants them: those that cost the most first, floats in groups."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from svd2onnx.reporting.report import LayerReport

_SHOWN = 20
"""Rows of a long table that are seen at once; the rest unfolds."""
_LONG = 30


@dataclass(frozen=True)
class FloatLayers:
    """Layers of one kind that stay float for the same reason, if one is given."""

    kind: str
    reason: str | None
    names: tuple[str, ...]
    stored_bytes: int


@dataclass(frozen=True)
class LayerTable:
    """``first`` and ``rest`` are the compressed layers, by predicted error; a short table has no ``rest``.

    ``predicted_error`` is the sum of theirs, None where none was predicted. ``most_bytes`` and
    ``most_error`` are the largest of one layer; ``float_bytes`` and ``stored_bytes`` are sums.
    """

    first: tuple[LayerReport, ...]
    rest: tuple[LayerReport, ...]
    kept: tuple[FloatLayers, ...]
    predicted_error: float | None
    most_error: float
    most_bytes: int
    float_bytes: int
    stored_bytes: int


def layer_table(layers: Iterable[LayerReport]) -> LayerTable:
    """The table of ``layers``; those of equal predicted error, or of none, keep their order."""
    compressed: list[LayerReport] = []
    kept: dict[tuple[str, str | None], list[LayerReport]] = defaultdict(list)
    for layer in layers:
        if layer.form == "float":
            kept[layer.kind, layer.note].append(layer)
        else:
            compressed.append(layer)
    compressed.sort(key=_loss, reverse=True)
    errors = [layer.predicted_error for layer in compressed if layer.predicted_error is not None]
    shown = len(compressed) if len(compressed) <= _LONG else _SHOWN
    return LayerTable(
        first=tuple(compressed[:shown]),
        rest=tuple(compressed[shown:]),
        kept=tuple(
            FloatLayers(
                kind,
                reason,
                tuple(layer.name for layer in group),
                sum(layer.stored_bytes for layer in group),
            )
            for (kind, reason), group in kept.items()
        ),
        predicted_error=math.fsum(errors) if errors else None,
        most_error=max(errors, default=0.0),
        most_bytes=max((layer.stored_bytes for layer in compressed), default=0),
        float_bytes=sum(layer.float_bytes for layer in compressed),
        stored_bytes=sum(layer.stored_bytes for layer in compressed),
    )


def _loss(layer: LayerReport) -> float:
    """What layers are sorted by: one whose error is no number comes first, one without an error last."""
    if layer.predicted_error is None:
        return -math.inf
    return math.inf if math.isnan(layer.predicted_error) else layer.predicted_error

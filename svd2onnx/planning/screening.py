"""Which low-rank forms of a layer are worth the time that it takes to round them.

No pair of rank r is better than the truncated decomposition, so its loss is known to be at least the sum of
the squared singular values that are dropped (Eckart and Young), and of a higher rank rounding costs no less
than it did of a lower one. A form that cannot come below the hull of those known so far is left out: the
dense forms, the layer left out, and the pairs of fewer bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.realize import Realizer
from svd2onnx.planning.convex_hull import ConvexHull
from svd2onnx.values.schema import CompressedLayer, LayerForm

_CLOSE = 8
"""Bits so fine that no pair is near them."""


def realize_promising(
    weight: Tensor, forms: Sequence[LayerForm], statistics: LayerStatistics | None, sweeps: int
) -> Iterator[CompressedLayer]:
    """As ``realize_forms``, less low-rank forms that are not promising; those that are by rising bytes."""
    realizer = Realizer(weight, forms, statistics, sweeps)
    lowrank = sorted((f for f in forms if f.factors), key=lambda form: form.stored_bytes(realizer.shape))
    plain = [realizer.layer(form) for form in forms if not form.factors]
    yield from (layer for layer in plain if layer.dense)
    hull = ConvexHull()
    for layer in plain if lowrank else ():
        if not layer.dense or layer.dense.spec.bits < _CLOSE:
            hull.add(layer.stored_bytes, realizer.loss(layer))
    rounding: dict[object, float] = {}
    for form in lowrank:
        least, kind = realizer.least_loss(form), (form.dense, form.factors)
        size = form.stored_bytes(realizer.shape)
        if hull.is_below(size, least + rounding.get(kind, 0.0)):
            continue
        layer = realizer.layer(form)
        loss = realizer.loss(layer)
        rounding[kind] = loss - least
        hull.add(size, loss)
        yield layer
    yield from (layer for layer in plain if not layer.dense)

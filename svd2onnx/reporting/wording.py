"""Numbers and forms as documents for people have them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

from svd2onnx.reporting.report import LayerReport


def size(count: float) -> str:
    """Bytes in units of 10^3 or 10^6, as file managers show them."""
    return f"{count / 1e6:,.2f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"


def number(value: float, digits: int) -> str:
    """With so many digits behind the point, as long as that is a short number."""
    return f"{value:.{digits}f}" if abs(value) < 1e5 else f"{value:.{digits}g}"


def counted_forms(layers: Iterable[LayerReport]) -> Counter[tuple[str, str]]:
    """How many layers have each (kind, form); pairs of all ranks count together."""
    return Counter((layer.kind, re.sub(r"rank [1-9]\d*", "low-rank pair", layer.form)) for layer in layers)

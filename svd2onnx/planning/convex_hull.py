"""The lower convex hull of ways to store a layer, in bytes and loss: what a plan can choose from them.

Over the many layers of a network, a point between two others on the line that joins them is had without it:
some layers take the one and some the other. So a form above the hull is in no good plan, but where the layers
are too few to share a budget out.

Source: Shoham and Gersho, "Efficient bit allocation for an arbitrary set of quantizers" (IEEE Transactions on
Acoustics, Speech and Signal Processing 36, 1988).
"""

from __future__ import annotations

import numpy as np

_Point = tuple[float, float]


class ConvexHull:
    """Of the points that were added, each bytes and loss; beyond the last it goes on level."""

    def __init__(self) -> None:
        self._corners: list[_Point] = []

    def add(self, size: float, loss: float) -> None:
        corners: list[_Point] = []
        for corner in sorted([*self._corners, (size, loss)]):
            if corners and corners[-1][0] == corner[0]:
                continue
            while len(corners) > 1 and _bend(corners[-2], corners[-1], corner) <= 0:
                corners.pop()
            corners.append(corner)
        self._corners = corners

    def is_below(self, size: float, loss: float) -> bool:
        """Whether ``size`` bytes with ``loss`` are no better a deal than what the hull is of."""
        sizes, losses = zip(*self._corners, strict=True)
        return bool(np.interp(size, sizes, losses) <= loss)


def _bend(first: _Point, second: _Point, third: _Point) -> float:
    """Positive where the line through the three turns upwards at the second."""
    (x, y), (x2, y2), (x3, y3) = first, second, third
    return (y3 - y2) * (x2 - x) - (y2 - y) * (x3 - x2)

"""One option for each item: the least total loss within a budget of bytes, or the fewest bytes within a loss.

The efficient choices of all items, those that no other beats in both bytes and loss, are built up item by
item. Thinned to some ten thousand they stay exact sums of real choices, so close together that an answer
misses the best one by about a thousandth. The greedy walk along the items' convex hulls, which is common,
errs by one step of one item, and where an embedding is half of the network that step is too long.

Source: Nemhauser and Ullmann, "Discrete dynamic programming and capital allocation" (Management Science 15,
1969); thinning after Ibarra and Kim, "Fast approximation algorithms for the knapsack and sum of subset
problems" (Journal of the ACM 22, 1975).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

STATES = 1 << 15
_ROUNDING = 1e-12
"""Relative; sums of the same losses in another order differ so much."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Option:
    """One way to store an item: ``size`` in bytes, ``loss`` in any unit that adds up."""

    size: int
    loss: float


class Frontier:
    """The efficient ways to choose one option for each of ``items``, by rising size and falling loss.

    Not many more than ``states`` of them are kept.
    """

    def __init__(self, items: Sequence[Sequence[Option]], states: int = STATES) -> None:
        self._size = np.array([sum(min(o.size for o in options) for options in items)])
        self._loss = np.zeros(1)
        self._steps: list[tuple[Array, Array]] = []
        for options in items:
            size = np.array([option.size for option in options])
            loss = np.array([option.loss for option in options])
            useful = _efficient(size, loss)
            # States count the smallest option of each item to come, so that their sizes are of one scale.
            sizes = (self._size[:, None] + (size[useful] - size.min())).ravel()
            losses = (self._loss[:, None] + loss[useful]).ravel()
            kept = _thinned(sizes, _efficient(sizes, losses), states)
            self._size, self._loss = sizes[kept], losses[kept]
            self._steps.append(
                ((kept // useful.size).astype(np.int32), useful[kept % useful.size].astype(np.int32))
            )

    def least_loss(self, budget: int) -> list[int] | None:
        """The index of each item's option; None where even the smallest options exceed ``budget`` bytes."""
        fitting = int(np.searchsorted(self._size, budget, side="right"))
        return self._choice(fitting - 1) if fitting else None

    def least_size(self, loss: float) -> list[int] | None:
        """Likewise with a total loss of at most ``loss``; None where the best options exceed it."""
        allowed = loss + _ROUNDING * abs(loss)
        too_lossy = int(np.searchsorted(-self._loss, -allowed, side="left"))
        return self._choice(too_lossy) if too_lossy < self._loss.size else None

    def curve(self, count: int) -> list[tuple[int, float]]:
        """Bytes and loss of at most ``count`` of the choices, the smallest and the best among them.

        Sizes grow by about equal ratios.
        """
        scale = np.log(np.maximum(self._size, 1))
        wanted = np.linspace(scale[0], scale[-1], count)
        kept = np.unique(np.searchsorted(scale, wanted).clip(0, scale.size - 1))
        return list(zip(self._size[kept].tolist(), self._loss[kept].tolist(), strict=True))

    def _choice(self, state: int) -> list[int]:
        chosen = []
        for before, option in reversed(self._steps):
            chosen.append(int(option[state]))
            state = int(before[state])
        return chosen[::-1]


def _efficient(size: Array, loss: Array) -> Array:
    """Indices by rising size of those with less loss than every smaller one."""
    order = np.lexsort((loss, size))
    ordered = loss[order]
    before = np.concatenate(([np.inf], np.minimum.accumulate(ordered)[:-1]))
    better = ordered < before
    better[0] = True  # an infinite loss is still the smallest choice
    return order[better]


def _thinned(size: Array, efficient: Array, states: int) -> Array:
    """At most ``states`` and one of ``efficient``: the least loss in each of as many equal ratios of size."""
    if efficient.size <= states:
        return efficient
    scale = np.log(np.maximum(size[efficient], 1))
    cells = np.floor((scale - scale[0]) * ((states - 1) / (scale[-1] - scale[0]))).astype(int)
    last = np.append(cells[1:] != cells[:-1], True)
    last[0] = True  # the smallest of all decides whether a budget can be met
    thinned: Array = efficient[last]
    return thinned

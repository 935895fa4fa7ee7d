"""One option for each item: the least total loss within a budget of bytes, or the fewest bytes within a loss.

Each item's lower convex hull of (bytes, loss) is walked by falling gain per byte, which solves the Lagrangian
relaxation; what the last, unaffordable step leaves of the budget is then filled greedily with any option that
still fits. The result is at most one hull step from the optimum.

Source: Sinha and Zoltners, "The multiple-choice knapsack problem" (Operations Research 27, 1979).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Option:
    """One way to store an item: ``size`` in bytes, ``loss`` in any unit that adds up."""

    size: int
    loss: float


def least_loss(items: Sequence[Sequence[Option]], budget: int) -> list[int] | None:
    """The index of each item's option; None where even the smallest options exceed ``budget``."""
    chosen = [_smallest(options) for options in items]
    left = budget - sum(options[i].size for options, i in zip(items, chosen, strict=True))
    if left < 0:
        return None
    for item, option in _steps(items):
        cost = items[item][option].size - items[item][chosen[item]].size
        if cost <= left and items[item][option].loss < items[item][chosen[item]].loss:
            chosen[item], left = option, left - cost
    return _filled(items, chosen, left)


def least_size(items: Sequence[Sequence[Option]], loss: float) -> list[int] | None:
    """Likewise with a total loss of at most ``loss``; None where the best options exceed it."""
    chosen = [_smallest(options) for options in items]
    total = sum(options[i].loss for options, i in zip(items, chosen, strict=True))
    for item, option in _steps(items):
        if total <= loss:
            break
        total += items[item][option].loss - items[item][chosen[item]].loss
        chosen[item] = option
    if total > loss:
        return None
    return _slimmed(items, chosen, loss - total)


def hull(options: Sequence[Option]) -> list[int]:
    """Indices of the lower convex hull, from the smallest size on, losses falling."""
    order = sorted(range(len(options)), key=lambda i: (options[i].size, options[i].loss))
    corners: list[int] = []
    for i in order:
        if corners and options[i].loss >= options[corners[-1]].loss:
            continue
        while len(corners) > 1 and _gain(options, corners[-2], corners[-1]) <= _gain(options, corners[-1], i):
            corners.pop()
        corners.append(i)
    return corners


def _steps(items: Sequence[Sequence[Option]]) -> list[tuple[int, int]]:
    """All hull steps (item, option reached) by falling gain per byte; those of one item stay in order."""
    steps = []
    for item, options in enumerate(items):
        corners = hull(options)
        for before, after in itertools.pairwise(corners):
            steps.append((-_gain(options, before, after), item, after))
    # Gains fall along a hull, so sorting keeps each item's order.
    return [(item, option) for _, item, option in sorted(steps, key=lambda step: step[0])]


def _filled(items: Sequence[Sequence[Option]], chosen: list[int], left: int) -> list[int]:
    """Spend what is left on the single changes that gain most for each byte."""
    while True:
        best: tuple[float, int, int] | None = None
        for item, options in enumerate(items):
            now = options[chosen[item]]
            for i, option in enumerate(options):
                cost, gain = option.size - now.size, now.loss - option.loss
                if cost <= left and gain > 0 and (best is None or gain / max(cost, 1) > best[0]):
                    best = gain / max(cost, 1), item, i
        if best is None:
            return chosen
        _, item, i = best
        left -= items[item][i].size - items[item][chosen[item]].size
        chosen[item] = i


def _slimmed(items: Sequence[Sequence[Option]], chosen: list[int], slack: float) -> list[int]:
    """Save bytes by the single changes that lose least for each byte, as far as ``slack`` goes."""
    while True:
        best: tuple[float, int, int] | None = None
        for item, options in enumerate(items):
            now = options[chosen[item]]
            for i, option in enumerate(options):
                saved, lost = now.size - option.size, option.loss - now.loss
                if saved > 0 and lost <= slack and (best is None or saved / max(lost, 1e-300) > best[0]):
                    best = saved / max(lost, 1e-300), item, i
        if best is None:
            return chosen
        _, item, i = best
        slack -= items[item][i].loss - items[item][chosen[item]].loss
        chosen[item] = i


def _smallest(options: Sequence[Option]) -> int:
    return min(range(len(options)), key=lambda i: (options[i].size, options[i].loss))


def _gain(options: Sequence[Option], before: int, after: int) -> float:
    return (options[before].loss - options[after].loss) / (options[after].size - options[before].size)

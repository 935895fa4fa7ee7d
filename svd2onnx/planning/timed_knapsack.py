"""A knapsack with a limit of time beside that of bytes or loss: time gets a price, the lowest that will do.

    least loss + price * time  within the bytes        or        least bytes + price * time  within the loss

At a price of 0 time does not matter; the higher the price, the faster the choice. The lowest price whose
choice keeps the limit is found by bisection. With many items the choices lie so close together that little is
lost against the best one.

Source: Everett, "Generalized Lagrange multiplier method for solving problems of optimum allocation of
resources" (Operations Research 11, 1963).
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from svd2onnx.planning.knapsack import Frontier, Option

_STATES = 1 << 12
_RISES = 24
_HALVINGS = 10


@dataclass(frozen=True)
class TimedOption:
    """One way to store an item: an ``Option`` that takes ``time``, in any unit."""

    size: int
    loss: float
    time: float


class TimedFrontier:
    """Chooses as ``knapsack.Frontier`` does, among the choices that take at most ``allowed`` time in all."""

    def __init__(self, items: Sequence[Sequence[TimedOption]], allowed: float) -> None:
        self._items, self._allowed = items, allowed
        self._lossy = functools.cache(self._priced_in_loss)
        self._large = functools.cache(self._priced_in_bytes)

    def least_loss(self, budget: int) -> list[int] | None:
        """The index of each item's option; None where no choice is both fast and small enough."""
        scale = _span([[o.loss for o in options] for options in self._items])
        return self._cheapest(
            lambda price: self._lossy(price * scale).least_loss(budget),
            lambda chosen: self._total(chosen).size <= budget,
            lambda option: option.loss,
        )

    def least_size(self, loss: float) -> list[int] | None:
        """Likewise, of a total loss of at most ``loss``."""
        scale = _span([[o.size for o in options] for options in self._items])
        return self._cheapest(
            lambda price: self._large(price * scale).least_size(loss),
            lambda chosen: self._total(chosen).loss <= loss,
            lambda option: option.size,
        )

    def _cheapest(
        self,
        choose: Callable[[float], list[int] | None],
        fits: Callable[[list[int]], bool],
        cost: Callable[[TimedOption], float],
    ) -> list[int] | None:
        """The choice at the lowest price that keeps the limit of time, bettered where there is time left."""
        slow = choose(0.0)
        if slow is None or self._in_time(slow):
            return slow
        low, high = 0.0, 2.0**-20
        fast = choose(high)
        for _ in range(_RISES):
            if fast is None or self._in_time(fast):
                break
            slow, low, high = fast, high, 4 * high
            fast = choose(high)
        if fast is None or not self._in_time(fast):
            return None
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            chosen = choose(middle)
            if chosen is not None and self._in_time(chosen):
                high, fast = middle, chosen
            elif chosen is not None:
                low, slow = middle, chosen
        return self._filled(fast, slow, fits, cost)

    def _filled(
        self,
        fast: list[int],
        slow: list[int],
        fits: Callable[[list[int]], bool],
        cost: Callable[[TimedOption], float],
    ) -> list[int]:
        """``fast`` with as many of the better options of ``slow`` as the limits allow, best gains first.

        Where many items give up the same for time, all of them change at one price.
        """
        chosen = list(fast)

        def gain(i: int) -> float:
            options = self._items[i]
            time = options[slow[i]].time - options[fast[i]].time
            return (cost(options[fast[i]]) - cost(options[slow[i]])) / max(time, 1e-12)

        for i in sorted((i for i in range(len(fast)) if fast[i] != slow[i]), key=gain, reverse=True):
            better = [*chosen[:i], slow[i], *chosen[i + 1 :]]
            if gain(i) > 0 and self._in_time(better) and fits(better):
                chosen = better
        return chosen

    def _in_time(self, chosen: Sequence[int]) -> bool:
        return self._total(chosen).time <= self._allowed

    def _total(self, chosen: Sequence[int]) -> TimedOption:
        picked = [options[i] for options, i in zip(self._items, chosen, strict=True)]
        return TimedOption(
            sum(o.size for o in picked), sum(o.loss for o in picked), sum(o.time for o in picked)
        )

    def _priced_in_loss(self, price: float) -> Frontier:
        return Frontier(
            [[Option(o.size, o.loss + price * o.time) for o in options] for options in self._items], _STATES
        )

    def _priced_in_bytes(self, price: float) -> Frontier:
        return Frontier(
            [[Option(o.size + round(price * o.time), o.loss) for o in options] for options in self._items],
            _STATES,
        )


def _span(items: Sequence[Sequence[float]]) -> float:
    """From the best to the worst choice of all items."""
    return sum(max(values) - min(values) for values in items) or 1.0

"""The knapsack finds the best choice there is, and on many items one that is hardly worse."""

import itertools
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.planning.knapsack import Frontier, Option

# Whole numbers, so that sums are exact.
options = st.builds(Option, st.integers(0, 60), st.integers(0, 60).map(float))
menus = st.lists(st.lists(options, min_size=1, max_size=5), min_size=1, max_size=4)
Menu = Sequence[Sequence[Option]]


def totals(items: Menu, chosen: Sequence[int]) -> tuple[int, float]:
    picked = [choices[i] for choices, i in zip(items, chosen, strict=True)]
    return sum(option.size for option in picked), sum(option.loss for option in picked)


def everything(items: Menu) -> list[tuple[int, float]]:
    """(size, loss) of every way to choose."""
    return [totals(items, chosen) for chosen in itertools.product(*(range(len(o)) for o in items))]


@settings(deadline=None, max_examples=300)
@given(menus, st.integers(0, 200))
def test_the_least_loss_within_a_budget(items: Menu, budget: int) -> None:
    affordable = [loss for size, loss in everything(items) if size <= budget]
    chosen = Frontier(items).least_loss(budget)
    if chosen is None:
        assert not affordable
        return
    size, loss = totals(items, chosen)
    assert size <= budget
    assert loss == min(affordable)


@settings(deadline=None, max_examples=300)
@given(menus, st.integers(0, 200))
def test_the_least_size_within_a_loss(items: Menu, allowed: int) -> None:
    good = [size for size, loss in everything(items) if loss <= allowed]
    chosen = Frontier(items).least_size(float(allowed))
    if chosen is None:
        assert not good
        return
    size, loss = totals(items, chosen)
    assert loss <= allowed
    assert size == min(good)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32 - 1), st.floats(0.05, 0.95))
def test_thinned_to_thousands_it_is_near_the_relaxation(seed: int, share: float) -> None:
    """60 layers of some hundred thousand weights and one that is half of the whole."""
    generator = np.random.default_rng(seed)
    weights = [*generator.integers(50_000, 150_000, 60), 6_000_000]
    items = []
    for weight in weights:
        scale, bits = generator.uniform(0.1, 10), np.sort(generator.uniform(2, 16, 12))
        items.append([Option(int(weight * b / 8), float(scale * weight * 4.0**-b)) for b in bits])
    smallest, largest = (sum(f(o.size for o in i) for i in items) for f in (min, max))
    budget = int(smallest + share * (largest - smallest))
    frontier = Frontier(items)
    chosen = frontier.least_loss(budget)
    assert chosen is not None
    size, loss = totals(items, chosen)
    assert size <= budget
    assert loss <= 1.01 * relaxed(items, budget, large=60)
    again = frontier.least_size(loss)
    assert again is not None
    assert totals(items, again)[0] <= size


def relaxed(items: Menu, budget: int, large: int) -> float:
    """A bound from below by Lagrange: exact in the item ``large``, relaxed in all others."""
    others = [choices for i, choices in enumerate(items) if i != large]
    bounds = []
    for option in items[large]:
        left = budget - option.size
        if left >= sum(min(o.size for o in choices) for choices in others):
            dual = (
                sum(min(o.loss + price * o.size for o in choices) for choices in others) - price * left
                for price in np.geomspace(1e-9, 1e3, 400)
            )
            bounds.append(option.loss + max(dual))
    return min(bounds)


def test_the_smallest_choice_is_found_at_its_very_size() -> None:
    generator = np.random.default_rng(0)
    items = [
        [Option(int(s), float(loss)) for s, loss in zip(*generator.integers(1, 10**6, (2, 30)), strict=True)]
        for _ in range(40)
    ]
    smallest = sum(min(option.size for option in choices) for choices in items)
    chosen = Frontier(items).least_loss(smallest)
    assert chosen is not None
    assert totals(items, chosen)[0] == smallest
    assert Frontier(items).least_loss(smallest - 1) is None


def test_one_large_item_is_worth_going_without_many_small_ones() -> None:
    """A greedy walk would spend the budget on the small ones before it meets the large one."""
    small = [[Option(0, 1.2), Option(10, 0.0)] for _ in range(10)]
    items = [*small, [Option(0, 100.0), Option(1000, 0.0)]]
    assert Frontier(items).least_loss(1000) == [0] * 10 + [1]


def test_floats_within_rounding_are_met() -> None:
    """Ten losses of 0.1 do not add up to 1 in floating point."""
    items = [[Option(0, 3.0), Option(1, 0.1)] for _ in range(10)]
    assert Frontier(items).least_size(1.0) == [1] * 10
    assert Frontier(items).least_size(0.9) is None


@given(menus, st.integers(2, 40))
def test_the_curve_is_of_real_choices_that_none_beats(items: Menu, count: int) -> None:
    curve = Frontier(items).curve(count)
    real = everything(items)
    assert 1 <= len(curve) <= count
    assert curve[0][0] == min(size for size, _ in real)
    assert curve[-1][1] == min(loss for _, loss in real)
    for size, loss in curve:
        assert (size, loss) in real
        assert loss == min(other for own, other in real if own <= size)

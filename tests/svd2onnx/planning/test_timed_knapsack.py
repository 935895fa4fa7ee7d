"""A choice within a limit of time keeps both limits, is found where there is one, and is nearly the best."""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.planning.knapsack import Frontier, Option
from svd2onnx.planning.timed_knapsack import TimedFrontier, TimedOption

numbers = st.integers(0, 40)
options = st.builds(TimedOption, numbers, numbers.map(float), numbers.map(float))
menus = st.lists(st.lists(options, min_size=1, max_size=4), min_size=1, max_size=4)
Menu = Sequence[Sequence[TimedOption]]


def picked(items: Menu, chosen: Sequence[int]) -> tuple[int, float, float]:
    """(size, loss, time) of a choice."""
    own = [choices[i] for choices, i in zip(items, chosen, strict=True)]
    return sum(o.size for o in own), sum(o.loss for o in own), sum(o.time for o in own)


def everything(items: Menu) -> list[tuple[int, float, float]]:
    return [picked(items, chosen) for chosen in itertools.product(*(range(len(o)) for o in items))]


@settings(deadline=None, max_examples=200)
@given(menus, st.integers(0, 120), st.integers(0, 120))
def test_a_choice_of_least_loss_keeps_both_limits(items: Menu, budget: int, allowed: int) -> None:
    possible = [loss for size, loss, time in everything(items) if size <= budget and time <= allowed]
    chosen = TimedFrontier(items, allowed).least_loss(budget)
    assert (chosen is None) == (not possible)
    if chosen is not None:
        size, loss, time = picked(items, chosen)
        assert size <= budget
        assert time <= allowed
        assert loss >= min(possible)


@settings(deadline=None, max_examples=200)
@given(menus, st.integers(0, 120), st.integers(0, 120))
def test_a_choice_of_least_size_keeps_both_limits(items: Menu, largest: int, allowed: int) -> None:
    possible = [size for size, loss, time in everything(items) if loss <= largest and time <= allowed]
    chosen = TimedFrontier(items, allowed).least_size(float(largest))
    assert (chosen is None) == (not possible)
    if chosen is not None:
        size, loss, time = picked(items, chosen)
        assert loss <= largest
        assert time <= allowed
        assert size >= min(possible)


@settings(deadline=None, max_examples=50)
@given(menus, st.integers(0, 120))
def test_a_limit_that_does_not_bind_changes_nothing(items: Menu, budget: int) -> None:
    free = Frontier([[Option(o.size, o.loss) for o in choices] for choices in items]).least_loss(budget)
    assert TimedFrontier(items, math.inf).least_loss(budget) == free


def layers_of(seed: int, count: int) -> Menu:
    """Losses fall with bytes; every size comes in a slow and a fast variant, which loses a little more."""
    generator = np.random.default_rng(seed)
    items = []
    for weight in generator.uniform(1, 10, count):
        choices = []
        for bits in (2, 3, 4, 5, 8):
            loss = weight * 4.0**-bits * generator.uniform(0.5, 2)
            choices.append(TimedOption(int(bits * 1000 * weight), loss, weight))
            choices.append(TimedOption(int(bits * 1000 * weight), loss + 0.003 * weight, 0.4 * weight))
        items.append(choices)
    return items


def test_with_many_layers_it_is_hardly_worse_than_the_relaxation() -> None:
    """No choice beats, for any price, the least loss + price * time less the price of what is allowed."""
    for seed in range(3):
        items = layers_of(seed, 40)
        slowest = sum(max(o.time for o in choices) for choices in items)
        budget, allowed = 4 * sum(choices[0].size // 2 for choices in items), 0.7 * slowest
        chosen = TimedFrontier(items, allowed).least_loss(budget)
        assert chosen is not None
        _, loss, time = picked(items, chosen)
        assert time <= allowed
        bounds = []
        for price in np.geomspace(1e-5, 1e-1, 60):
            priced = [[Option(o.size, o.loss + price * o.time) for o in choices] for choices in items]
            least = Frontier(priced).least_loss(budget)
            assert least is not None
            _, own_loss, own_time = picked(items, least)
            bounds.append(own_loss + price * (own_time - allowed))
        assert loss <= 1.02 * max(bounds)

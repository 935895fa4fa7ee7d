"""The knapsack keeps to its budget and ends within one hull step of the best there is."""

import itertools
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from svd2onnx.knapsack import Option, hull, least_loss, least_size

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


def largest_step(items: Menu) -> tuple[int, float]:
    """The most bytes, and the most loss, between neighbours on a hull."""
    steps = [
        (o[b].size - o[a].size, o[a].loss - o[b].loss) for o in items for a, b in itertools.pairwise(hull(o))
    ]
    return max((s for s, _ in steps), default=0), max((loss for _, loss in steps), default=0.0)


@settings(deadline=None, max_examples=300)
@given(menus, st.integers(0, 200))
def test_the_least_loss_fits_and_is_within_one_step(items: Menu, budget: int) -> None:
    affordable = [loss for size, loss in everything(items) if size <= budget]
    chosen = least_loss(items, budget)
    if chosen is None:
        assert not affordable
        return
    size, loss = totals(items, chosen)
    assert size <= budget
    assert min(affordable) <= loss <= min(affordable) + largest_step(items)[1]


@settings(deadline=None, max_examples=300)
@given(menus, st.integers(0, 200))
def test_the_least_size_meets_the_loss_and_is_within_one_step(items: Menu, allowed: int) -> None:
    good = [size for size, loss in everything(items) if loss <= allowed]
    chosen = least_size(items, float(allowed))
    if chosen is None:
        assert not good
        return
    size, loss = totals(items, chosen)
    assert loss <= allowed
    assert min(good) <= size <= min(good) + largest_step(items)[0]


@settings(deadline=None, max_examples=200)
@given(st.lists(options, min_size=1, max_size=8), st.integers(0, 70))
def test_one_item_is_solved_exactly(choices: list[Option], limit: int) -> None:
    by_loss, by_size = least_loss([choices], limit), least_size([choices], float(limit))
    affordable = [o.loss for o in choices if o.size <= limit]
    good = [o.size for o in choices if o.loss <= limit]
    assert (by_loss and choices[by_loss[0]].loss) == min(affordable, default=None)
    assert (by_size and choices[by_size[0]].size) == min(good, default=None)


falling = st.sets(st.integers(1, 30), min_size=1, max_size=4).map(lambda gains: sorted(gains, reverse=True))


@settings(deadline=None, max_examples=200)
@given(st.lists(falling, min_size=1, max_size=4), st.integers(0, 16))
def test_it_is_exact_where_steps_cost_the_same_and_gain_less_and_less(
    gains: list[list[int]], budget: int
) -> None:
    items = [[Option(step, float(sum(own[step:]))) for step in range(len(own) + 1)] for own in gains]
    chosen = least_loss(items, budget)
    assert chosen is not None
    assert totals(items, chosen)[1] == min(loss for size, loss in everything(items) if size <= budget)


@settings(deadline=None, max_examples=200)
@given(st.lists(options, min_size=1, max_size=12))
def test_the_hull_is_convex_and_lies_under_every_option(choices: list[Option]) -> None:
    corners = [choices[i] for i in hull(choices)]
    assert corners[0].size == min(o.size for o in choices)
    assert corners[-1].loss == min(o.loss for o in choices)
    slopes = []
    for a, b in itertools.pairwise(corners):
        assert a.size < b.size
        assert a.loss > b.loss
        slopes.append((a.loss - b.loss) / (b.size - a.size))
        for o in choices:
            if a.size <= o.size <= b.size:
                line = a.loss * (b.size - o.size) + b.loss * (o.size - a.size)
                assert o.loss * (b.size - a.size) >= line
    assert all(a > b for a, b in itertools.pairwise(slopes))


def test_what_a_step_too_large_leaves_is_spent_on_others() -> None:
    items = [
        [Option(0, 100.0), Option(10, 0.0)],
        [Option(0, 5.0), Option(3, 4.0), Option(6, 0.5)],
    ]
    assert least_loss(items, 9) == [0, 2]
    assert least_loss(items, 15) == [1, 1]
    assert least_loss(items, 16) == [1, 2]


def test_an_option_off_the_hull_serves_to_fill() -> None:
    items = [[Option(0, 10.0), Option(4, 9.0), Option(10, 0.0)]]
    assert hull(items[0]) == [0, 2]
    assert least_loss(items, 5) == [1]


def test_floats_within_rounding_are_met() -> None:
    """Ten losses of 0.1 do not add up to 1 in floating point."""
    items = [[Option(0, 3.0), Option(1, 0.1)] for _ in range(10)]
    assert least_size(items, 1.0 + 1e-9) == [1] * 10
    assert least_size(items, 0.9) is None

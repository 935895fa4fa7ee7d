"""The hull is what mixtures of points reach."""

from hypothesis import given
from hypothesis import strategies as st

from svd2onnx.planning.convex_hull import ConvexHull

points = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)), min_size=1, max_size=12)


def hull_of(found: list[tuple[int, int]]) -> ConvexHull:
    hull = ConvexHull()
    for point in found:
        hull.add(*point)
    return hull


@given(points, st.data())
def test_a_mixture_of_two_points_is_no_news(found: list[tuple[int, int]], data: st.DataObject) -> None:
    hull = hull_of(found)
    first, second = data.draw(st.sampled_from(found)), data.draw(st.sampled_from(found))
    share = data.draw(st.floats(0, 1))
    size = share * first[0] + (1 - share) * second[0]
    loss = share * first[1] + (1 - share) * second[1]
    assert hull.is_below(size, loss + 1e-9)


@given(points)
def test_what_no_mixture_reaches_is_above(found: list[tuple[int, int]]) -> None:
    hull = hull_of(found)
    for size in range(51):
        # The least of all mixtures of two, by brute force, and of any single one that is at most so large.
        reached = [loss for other, loss in found if other == size]
        for a, b in ((a, b) for a in found for b in found if a[0] < size < b[0]):
            reached.append(a[1] + (b[1] - a[1]) * (size - a[0]) / (b[0] - a[0]))
        if reached:
            assert not hull.is_below(size, min(reached) - 1e-6)


def test_beyond_its_last_point_it_goes_on_level() -> None:
    hull = hull_of([(0, 9), (4, 1)])
    assert hull.is_below(100, 1)
    assert not hull.is_below(100, 0.9)

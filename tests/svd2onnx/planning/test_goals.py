"""Goals against an exporter that behaves as one does: overheads that nobody knows before."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.goals import (
    FidelityGoal,
    GivenPlan,
    Goal,
    LatencyGoal,
    Outcome,
    SizeGoal,
    allowed_error,
    best_uniform,
    stored_bytes,
)
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressionPlan, LayerForm, QuantSpec

FORMS = [
    LayerForm(QuantSpec(8, 128)),
    LayerForm(QuantSpec(4, 32)),
    LayerForm(QuantSpec(4, 128)),
    LayerForm(rank=32, factors=QuantSpec(4, 32)),
    LayerForm(QuantSpec(2, 32)),
    LayerForm(),
]
SHARES = (0.26, 0.156, 0.133, 0.1, 0.094, 0.0)
ERRORS = (1e-5, 2e-3, 3e-3, 2e-2, 5e-2, 0.3)

Menu = dict[str, list[Candidate]]


def menu_of(sizes: list[int], sensitivity: list[float]) -> Menu:
    return {
        f"layer{i}": [
            Candidate(None, size, 0.0),
            *(
                Candidate(form, int(size * share), error * weight)
                for form, share, error in zip(FORMS, SHARES, ERRORS, strict=True)
            ),
        ]
        for i, (size, weight) in enumerate(zip(sizes, sensitivity, strict=True))
    }


def float_size(menu: Menu) -> int:
    return sum(options[0].size for options in menu.values())


def run(goal: Goal, file_bytes: Callable[[CompressionPlan], int], error: Callable[[CompressionPlan], float]):
    """The last plan, as ``settling.reach`` builds it, and all that were tried."""
    plan: CompressionPlan | None = goal.first()
    tried: list[CompressionPlan] = []
    while plan is not None:
        assert len(tried) < 20, "the goal is never content"
        tried.append(plan)
        last = plan
        plan = goal.revised(plan, Outcome(file_bytes(plan), lambda last=last: error(last)))
    return tried[-1], tried


def never(_plan: CompressionPlan) -> float:
    raise AssertionError("a size needs no measurement")


layers = st.integers(20, 60).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(20_000, 400_000), min_size=n, max_size=n),
        st.lists(st.floats(0.01, 10), min_size=n, max_size=n),
    )
)


@settings(deadline=None, max_examples=40)
@given(layers, st.floats(0.08, 0.6), st.integers(0, 900), st.integers(5_000, 100_000))
def test_the_file_ends_within_a_percent_below_its_target(
    layer: tuple[list[int], list[float]], share: float, node: int, rest: int
) -> None:
    """The exporter adds ``node`` bytes and its name for each layer it compresses, twice for a pair."""
    menu = menu_of(*layer)

    def file_bytes(plan: CompressionPlan) -> int:
        nodes = sum(1 + bool(form.factors) for form in plan.forms.values())
        return rest + stored_bytes(plan, menu) + node * nodes

    float_bytes = float_size(menu) + rest
    target = int(share * float_bytes)
    assume(target > rest + 60 * 2 * node + 0.05 * float_bytes)
    plan, tried = run(SizeGoal(menu, [], float_bytes, target), file_bytes, never)
    assert file_bytes(plan) <= target
    if file_bytes(plan) >= 0.99 * target or len(tried) >= 5:
        return
    # Otherwise nothing that helps can be had for what is left, but for what each round leaves to be safe.
    left = target - file_bytes(plan) - 256 * len(tried)
    for name, options in menu.items():
        now = next(option for option in options if option.form == plan.forms.get(name))
        better = [option.size - now.size for option in options if option.error < now.error]
        assert min(better, default=math.inf) > left


def test_a_size_that_cannot_be_reached_names_the_range() -> None:
    menu = menu_of([100_000, 200_000], [1, 1])
    goal = SizeGoal(menu, [], 350_000, 40_000)
    with pytest.raises(PlanError, match=r"smallest has about 50,000 \(0\.143x\), the float32 one 350,000"):
        goal.first()


def test_a_size_that_the_file_never_meets_is_an_error_in_the_end() -> None:
    menu = menu_of([100_000] * 10, [1] * 10)
    with pytest.raises(PlanError):
        run(SizeGoal(menu, [], 1_010_000, 200_000), lambda _: 500_000, never)


def test_a_target_beyond_float_keeps_all_in_float() -> None:
    menu = menu_of([100_000] * 3, [1] * 3)
    plan, tried = run(SizeGoal(menu, [], 310_000, 10**9), lambda _: 310_000, never)
    assert (plan.forms, len(tried)) == ({}, 1)


@settings(deadline=None, max_examples=60)
@given(layers, st.floats(0.001, 0.5), st.floats(0.2, 5), st.floats(-0.3, 0.3))
def test_the_smallest_file_that_reached_the_fidelity_is_the_last(
    layer: tuple[list[int], list[float]], largest: float, factor: float, bend: float
) -> None:
    """The measured error is off by ``factor``, and not in proportion."""
    menu = menu_of(*layer)

    def error(plan: CompressionPlan) -> float:
        return factor * (plan.predicted_error or 0.0) ** (1 + bend)

    goal = FidelityGoal(menu, [], largest, 1 - largest)
    plan, tried = run(goal, lambda plan: stored_bytes(plan, menu), error)
    assert error(plan) <= largest
    reached = [stored_bytes(other, menu) for other in tried if error(other) <= largest]
    assert stored_bytes(plan, menu) == min(reached)


def test_a_good_prediction_needs_one_round_and_a_bad_one_is_corrected() -> None:
    menu = menu_of([100_000 + 1000 * i for i in range(40)], [1 + i / 7 for i in range(40)])
    for factor, rounds in ((0.97, 1), (2.0, 3), (0.5, 3)):
        goal = FidelityGoal(menu, [], 0.5, 0.5)
        plan, tried = run(
            goal, lambda p: stored_bytes(p, menu), lambda p, f=factor: f * (p.predicted_error or 0.0)
        )
        assert len(tried) <= rounds
        assert 0.8 * 0.5 <= factor * plan.predicted_error <= 0.5


def test_a_fidelity_out_of_reach_says_what_was_reached() -> None:
    menu = menu_of([100_000] * 5, [1] * 5)
    goal = FidelityGoal(menu, [], 0.01, 0.99)
    with pytest.raises(PlanError, match=r"fidelity of 0\.99 was not reached: .* error of 0\.8 where 0\.01"):
        run(goal, lambda plan: stored_bytes(plan, menu), lambda _: 0.8)


def timed_menu(count: int) -> Menu:
    """Every form of compression halves a layer's time of 1 ms, and int8 activations halve it again."""
    return {
        name: [
            replace(options[0], latency=1.0),
            *(replace(c, latency=0.5) for c in options[1:]),
            *(
                Candidate(replace(c.form, activations="int8"), c.size, c.error + 1e-3, 0.25)
                for c in options[1:]
                if c.form is not None and c.form.specs
            ),
        ]
        for name, options in menu_of([100_000] * count, [1.0] * count).items()
    }


def latency_of(plan: CompressionPlan, menu: Menu) -> float:
    return sum(next(c for c in options if c.form == plan.forms.get(n)).latency for n, options in menu.items())


def test_a_size_is_reached_within_the_time() -> None:
    menu = timed_menu(20)
    free = SizeGoal(menu, [], float_size(menu), 300_000).first()
    assert latency_of(free, menu) == pytest.approx(10.0)
    timed = SizeGoal(menu, [], float_size(menu), 300_000, allowed_ms=7.6).first()
    assert 7.0 < latency_of(timed, menu) <= 7.6
    assert stored_bytes(timed, menu) <= 300_000
    with pytest.raises(PlanError, match="both as fast and as small"):
        SizeGoal(menu, [], float_size(menu), 300_000, allowed_ms=-1.0).first()


def test_a_fidelity_is_reached_within_the_time() -> None:
    menu = timed_menu(20)
    goal = FidelityGoal(menu, [], 0.1, 0.9, allowed_ms=6.0)
    plan = goal.first()
    assert latency_of(plan, menu) <= 6.0
    assert plan.predicted_error is not None
    assert plan.predicted_error <= 0.1
    with pytest.raises(PlanError, match="both as fast and as faithful"):
        FidelityGoal(menu, [], 1e-9, 0.9, allowed_ms=6.0).first()


def test_time_alone_takes_the_best_of_what_is_fast_enough() -> None:
    menu = timed_menu(20)
    eight_bits = CompressionPlan("quantize", dict.fromkeys(menu, FORMS[0]))
    four_bits = CompressionPlan("quantize", dict.fromkeys(menu, FORMS[1]))
    integer = CompressionPlan("quantize", dict.fromkeys(menu, replace(FORMS[0], activations="int8")))
    goal = LatencyGoal(menu, [four_bits, integer, eight_bits], 10.0)
    plan = goal.first()
    assert dict(plan.forms) == dict(eight_bits.forms)
    assert goal.revised(plan, Outcome(10**9, lambda: never(plan))) is None
    rival = goal.rival(plan)
    assert rival is not None
    assert (rival.plan.forms, rival.fits) == (eight_bits.forms, True)
    faster = LatencyGoal(menu, [four_bits, integer, eight_bits], 5.5).rival(plan)
    assert faster is not None
    assert (faster.plan.forms, faster.fits) == (integer.forms, True)
    with pytest.raises(PlanError, match="no plan is as fast as asked"):
        LatencyGoal(menu, [], -0.1).first()


def test_errors_that_fidelities_allow() -> None:
    assert allowed_error("cosine", 0.95) == pytest.approx(0.05)
    assert allowed_error("mse", 0.95) == pytest.approx(0.05)
    assert allowed_error("kl", 0.95) == pytest.approx(-math.log(0.95))
    for wrong in (0.0, 1.0, 2.0, -1.0, math.nan):
        with pytest.raises(PlanError, match="between 0 and 1"):
            allowed_error("cosine", wrong)


def test_the_rival_is_the_best_uniform_plan_that_fits() -> None:
    menu = menu_of([100_000, 200_000], [1, 2])
    uniform = [CompressionPlan("quantize", dict.fromkeys(menu, form)) for form in FORMS[:3]]
    sizes = [stored_bytes(plan, menu) for plan in uniform]
    assert sizes == [78_000, 46_800, 39_900]
    best = best_uniform(uniform, menu, 78_000)
    assert (best.plan.forms, best.fits) == (uniform[0].forms, True)
    assert best.plan.predicted_error == pytest.approx(3e-5)
    assert best_uniform(uniform, menu, 77_999).plan.forms == uniform[1].forms
    none_fits = best_uniform(uniform, menu, 10_000)
    assert (none_fits.plan.forms, none_fits.fits) == (uniform[2].forms, False)
    goal = SizeGoal(menu, uniform, 350_000, 100_000)
    rival = goal.rival(uniform[1])
    assert rival is not None
    assert rival.plan.forms == uniform[1].forms


def test_a_layer_that_a_uniform_plan_keeps_in_float_is_counted_as_such() -> None:
    menu = menu_of([100_000, 200_000], [1, 2])
    partial = CompressionPlan("quantize", {"layer0": FORMS[1]})
    assert stored_bytes(partial, menu) == 15_600 + 200_000
    assert not best_uniform([partial], menu, 215_599).fits


def test_a_given_plan_is_taken_as_it_is() -> None:
    plan = CompressionPlan("auto", {"a": FORMS[0]})
    goal = GivenPlan(plan)
    assert run(goal, lambda _: 1, never) == (plan, [plan])
    assert goal.rival(plan) is None


def test_the_curve_has_the_planners_sizes_and_the_uniform_ones() -> None:
    """In bytes of the file, and in errors as gauged; the plan lies on it."""
    menu = menu_of([100_000, 40_000, 10_000], [1.0, 5.0, 2.0])
    uniform = CompressionPlan("quantize", dict.fromkeys(menu, FORMS[1]), {}, {})
    goal = SizeGoal(menu, [uniform], float_size(menu) + 500, 30_000)
    plan, _ = run(goal, lambda plan: stored_bytes(plan, menu) + 500, never)
    points = goal.curve(plan, stored_bytes(plan, menu) + 500, gauge=2.0)
    (other,) = (point for point in points if point.form is not None)
    assert other.form == "int4/32"
    assert other.file_bytes == stored_bytes(uniform, menu) + 500
    assert other.predicted_error == pytest.approx(2 * 2e-3 * 8)
    planned = [point for point in points if point.form is None]
    sizes = [point.file_bytes for point in planned]
    errors = [point.predicted_error for point in planned]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert planned[-1].predicted_error == 0
    assert planned[-1].file_bytes == float_size(menu) + 500
    assert plan.predicted_error is not None
    below = [e for size, e in zip(sizes, errors, strict=True) if size <= stored_bytes(plan, menu) + 500]
    assert 2 * plan.predicted_error <= min(below) + 1e-12


def test_a_given_plan_has_no_curve() -> None:
    plan = CompressionPlan("auto", {}, {}, {})
    assert GivenPlan(plan).curve(plan, 100, 1.0) == []

"""A file that is planned for time is timed, what is predicted is corrected by it, and the best is shipped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from svd2onnx.pipeline.plan_search import search_plan
from svd2onnx.planning.goals import GivenPlan
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressionPlan, LayerForm, QuantSpec


def plan(block: int, error: float) -> CompressionPlan:
    return CompressionPlan("auto", {"layer": LayerForm(QuantSpec(4, block))}, {}, {"layer": error})


FAST, MIDDLE, SLOW = plan(128, 0.3), plan(64, 0.2), plan(32, 0.1)


@dataclass
class Built:
    plan: CompressionPlan


@dataclass
class FakeBuilder:
    """Remembers which plan's file is the draft: it is its own workspace."""

    graph: CompressionPlan | None = None

    @property
    def workspace(self) -> FakeBuilder:
        return self

    def build(self, plan: CompressionPlan) -> Built:
        return Built(plan)

    def never_worse(self, build: Built) -> tuple[Built, float]:
        return build, 0.0

    def write(self, build: Built) -> int:
        self.graph = build.plan
        return 1


@dataclass(frozen=True)
class FakeLatencyModel:
    """Predicts 0.5, with what it was corrected by, and measures what it is told."""

    measured: dict[int, float]
    error: float = 0.0
    float_ms: float = 10.0
    asked: list[float] = field(default_factory=list)

    def allowed_ms(self, ratio: float) -> float:
        self.asked.append(ratio - self.error)
        return (ratio - self.error) * self.float_ms

    def predicted_ratio(self, plan: CompressionPlan) -> float:
        return 0.5 + self.error

    def measured_ratio(self, draft: CompressionPlan) -> float:
        dense = draft.forms["layer"].dense
        assert dense is not None
        return self.measured[dense.block_size]

    def corrected(self, error: float) -> FakeLatencyModel:
        return replace(self, error=self.error + error)


def goal_of(limits: dict[float, CompressionPlan]) -> Callable[[float], GivenPlan]:
    """The first of the plans, by falling limits, whose limit in ms is allowed."""

    def goal(allowed: float) -> GivenPlan:
        for limit, own in limits.items():
            if allowed >= limit:
                return GivenPlan(own)
        raise PlanError("no plan is fast enough")

    return goal


GOAL = goal_of({4.8: SLOW, 4.3: MIDDLE, 3.5: FAST})


def run(latency_model: FakeLatencyModel, target: str = "0.5x") -> tuple[CompressionPlan, float, FakeBuilder]:
    builder = FakeBuilder()
    found = search_plan(GOAL, builder, latency_model, target)  # type: ignore[arg-type]
    assert found.choice is None
    assert found.speed is not None
    assert builder.graph is found.build.plan, "another file was left in the draft"
    return found.build.plan, found.speed.measured, builder


def test_without_a_latency_model_the_goals_plan_is_built() -> None:
    builder = FakeBuilder()
    found = search_plan(lambda _allowed: GivenPlan(SLOW), builder, None, None)  # type: ignore[arg-type]
    assert (found.build.plan, found.choice, found.speed) == (SLOW, None, None)


def test_a_file_that_is_as_fast_as_planned_is_shipped_at_once() -> None:
    latency_model = FakeLatencyModel({32: 0.49})
    assert run(latency_model)[:2] == (SLOW, 0.49)
    assert len(latency_model.asked) == 1


def test_one_that_takes_longer_is_planned_anew_for_less_time() -> None:
    assert run(FakeLatencyModel({32: 0.55, 64: 0.48, 128: 0.4}))[:2] == (MIDDLE, 0.48)


def test_of_the_fast_ones_the_most_faithful_is_shipped() -> None:
    """The first is far faster than asked, so a slower one is tried, which is too slow."""
    goal = goal_of({5.5: SLOW, 4.3: MIDDLE})
    builder = FakeBuilder()
    latency_model = FakeLatencyModel({64: 0.4, 32: 0.6})
    found = search_plan(goal, builder, latency_model, "0.5x")  # type: ignore[arg-type]
    assert found.build.plan == MIDDLE
    assert builder.graph == MIDDLE
    assert found.speed is not None
    assert found.speed.measured == 0.4


def test_where_measurements_leave_no_room_an_earlier_fast_file_is_shipped() -> None:
    """Its latency model says of the second that all takes much longer: nothing fits then."""
    goal = goal_of({5.5: SLOW, 4.3: MIDDLE})
    latency_model = FakeLatencyModel({64: 0.4, 32: 0.9})
    found = search_plan(goal, FakeBuilder(), latency_model, "0.5x")  # type: ignore[arg-type]
    assert found.build.plan == MIDDLE
    assert found.speed is not None


def test_no_file_that_is_fast_enough_is_told_with_what_was_measured() -> None:
    with pytest.raises(
        PlanError, match=r"0\.50 of float32's was not reached: the last of 1 plans takes 0\.95"
    ):
        run(FakeLatencyModel({32: 0.95}))


def test_a_goal_that_cannot_be_from_the_start_says_so_itself() -> None:
    with pytest.raises(PlanError, match="no plan is fast enough"):
        run(FakeLatencyModel({}), "0.2x")

"""From a goal to the build that is shipped: plans built, measured and revised until the goal is content."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace

from svd2onnx.latency.latency_model import LatencyModel, target_ratio
from svd2onnx.pipeline.builder import Build, Builder
from svd2onnx.pipeline.goal_choice import GoalWithin
from svd2onnx.planning.goals import Goal, Outcome
from svd2onnx.reporting.report import Choice, Speed
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressionPlan

_ROUNDS = 4
_MARGIN = 0.98
"""Plans aim at so much of the time that is asked for: measurements scatter."""
_NEAR = 0.93
"""A file that takes so much of the time asked for is worth no further round."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """What the search ended with: the build that is shipped, whose file is the draft, and how it was chosen.

    ``goal`` is the one that was reached; ``choice`` and ``speed`` are None where there was no rival to beat,
    and no limit of time.
    """

    build: Build
    goal: Goal
    choice: Choice | None = None
    speed: Speed | None = None

    def retrained(self, builder: Builder, steps: int) -> Found:
        """The same after ``steps`` of retraining, written to the draft."""
        build = builder.recovered(self.build, steps)
        builder.write(build)
        return replace(self, build=build)


def search_plan(
    goal: GoalWithin, builder: Builder, latency_model: LatencyModel | None, target: str | None
) -> Found:
    """Build the goal's plan, or a better uniform one; with a latency model within ``target`` of its time.

    Raises:
        PlanError: no plan reaches the goal.
    """
    if latency_model is None or target is None:
        within = goal(math.inf)
        build = reach_goal(within, builder)
        return better_of(Found(build, within), builder)
    return _search_in_time(goal, builder, latency_model, target_ratio(target, latency_model.float_ms))


def _search_in_time(goal: GoalWithin, builder: Builder, latency_model: LatencyModel, asked: float) -> Found:
    """The file of the least predicted error that takes at most ``asked`` of the float graph's time.

    Each file is timed, and where it takes another time than predicted the model is corrected by it and the
    plan made anew, for less time or for more.
    """
    fast: list[Found] = []
    tried: list[CompressionPlan] = []
    for _ in range(_ROUNDS):
        try:
            within = goal(latency_model.allowed_ms(_MARGIN * asked))
            build = reach_goal(within, builder)
        except PlanError:
            if not tried:
                raise
            break  # what was measured leaves no room: an earlier file is fast enough, or none is
        if any(plan.forms == build.plan.forms for plan in tried):
            break
        tried.append(build.plan)
        predicted = latency_model.predicted_ratio(build.plan)
        speed = Speed(predicted, latency_model.measured_ratio(builder.workspace.graph), asked)
        if speed.measured <= asked:
            fast.append(Found(build, within, speed=speed))
        if _NEAR * asked <= speed.measured <= asked:
            break
        latency_model = latency_model.corrected(speed.measured - speed.predicted)
    if not fast:
        raise PlanError(
            f"a latency of {asked:.2f} of float32's was not reached: the last of {len(tried)} plans takes "
            f"{speed.measured:.2f}; allow more time, or more of the rest"
        )
    best = min(fast, key=lambda found: found.build.plan.predicted_error or 0.0)
    builder.write(best.build)
    return better_of(best, builder)


def reach_goal(goal: Goal, builder: Builder) -> Build:
    """Build the goal's plans until it is content with one; its file is the draft."""
    plan: CompressionPlan | None = goal.first()
    while plan is not None:
        build = builder.build(plan)
        outcome = Outcome(builder.write(build), lambda: builder.deployed().mean_error)
        logger.info("a plan of predicted error %s gives %d bytes", plan.predicted_error, outcome.file_bytes)
        plan = goal.revised(build.plan, outcome)
    return build


def better_of(found: Found, builder: Builder) -> Found:
    """``found``, or the uniform rival of its goal if that fits and is measured to be the better one.

    Either is rounded to nearest where that is better. What is shipped is the draft.
    """
    rival = found.goal.rival(found.build.plan)
    build, error = builder.never_worse(found.build)
    if rival is None:
        return _drafted(found, build, builder)
    other, uniform_error = builder.never_worse(builder.build(rival.plan))
    expected = rival.plan.predicted_error or 0.0
    gauge = builder.evaluation_error(other) / expected if expected else 1.0
    choice = Choice(
        planned_error=error,
        uniform_error=uniform_error,
        uniform_form=rival.plan.common_form,
        uniform_fits=rival.fits,
        gauge=gauge,
    )
    return replace(_drafted(found, other if choice.uniform_wins else build, builder), choice=choice)


def _drafted(found: Found, build: Build, builder: Builder) -> Found:
    """``found`` with ``build`` in place of its own, written to the draft where that is another."""
    if build is not found.build:
        builder.write(build)
    return replace(found, build=build)

"""From a goal to the build that is shipped: plans built, measured and revised until the goal is content."""

from __future__ import annotations

import logging
import math

from svd2onnx.latency.latency_model import LatencyModel, target_ratio
from svd2onnx.pipeline.builder import Build, Builder
from svd2onnx.pipeline.goal_choice import GoalWithin
from svd2onnx.planning.goals import Goal, Outcome, Rival
from svd2onnx.reporting.report import Choice, Speed
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressionPlan

_ROUNDS = 4
_MARGIN = 0.98
"""Plans aim at so much of the time that is asked for: measurements scatter."""
_NEAR = 0.93
"""A file that takes so much of the time asked for is worth no further round."""

logger = logging.getLogger(__name__)


def search_plan(
    goal: GoalWithin, builder: Builder, latency_model: LatencyModel | None, target: str | None
) -> tuple[Build, Choice | None, Speed | None, Goal]:
    """Build the goal's plan, or a better uniform one; where there is a clock, within ``target`` of its time.

    The file is timed, and where it takes another time than predicted the clock is set by it and the plan made
    anew, for less time or for more. Of the files that are fast enough, that of the least predicted error is
    shipped. The goal that it reached comes last.

    Raises:
        PlanError: no plan was measured to be fast enough.
    """
    if latency_model is None or target is None:
        within = goal(math.inf)
        build = reach(within, builder)
        return *better_of(build, within.rival(build.plan), builder), None, within
    asked = target_ratio(target, latency_model.float_ms)
    fast: list[tuple[float, Build, Speed, Goal]] = []
    tried: list[CompressionPlan] = []
    for _ in range(_ROUNDS):
        try:
            within = goal(latency_model.allowed_ms(_MARGIN * asked))
            build = reach(within, builder)
        except PlanError:
            if not tried:
                raise
            break  # what was measured leaves no room: an earlier file is fast enough, or none is
        if any(plan.forms == build.plan.forms for plan in tried):
            break
        tried.append(build.plan)
        speed = Speed(
            latency_model.predicted_ratio(build.plan), latency_model.measured_ratio(builder.draft), asked
        )
        if speed.measured <= asked:
            fast.append((build.plan.predicted_error or 0.0, build, speed, within))
        if _NEAR * asked <= speed.measured <= asked:
            break
        latency_model = latency_model.corrected(speed.measured - speed.predicted)
    if not fast:
        raise PlanError(
            f"a latency of {asked:.2f} of float32's was not reached: the last of {len(tried)} plans takes "
            f"{speed.measured:.2f}; allow more time, or more of the rest"
        )
    _, build, speed, within = min(fast, key=lambda entry: entry[0])
    builder.write(build)
    return *better_of(build, within.rival(build.plan), builder), speed, within


def reach(goal: Goal, builder: Builder) -> Build:
    """Build the goal's plans until it is content with one; its file is the draft."""
    plan: CompressionPlan | None = goal.first()
    while plan is not None:
        build = builder.build(plan)
        outcome = Outcome(builder.write(build), lambda: builder.deployed().mean_error)
        logger.info("a plan of predicted error %s gives %d bytes", plan.predicted_error, outcome.file_bytes)
        plan = goal.revised(build.plan, outcome)
    return build


def better_of(build: Build, rival: Rival | None, builder: Builder) -> tuple[Build, Choice | None]:
    """``build``, or a rival that fits where that is measured to be the better one."""
    if rival is None:
        return build, None
    other = builder.build(rival.plan)
    expected = rival.plan.predicted_error or 0.0
    gauge = builder.evaluation_error(other) / expected if expected else 1.0
    choice = Choice(
        planned_error=builder.judged_error(build),
        uniform_error=builder.judged_error(other),
        uniform_form=rival.plan.common_form,
        uniform_fits=rival.fits,
        gauge=gauge,
    )
    if choice.uniform_wins:
        builder.write(other)
        return other, choice
    return build, choice

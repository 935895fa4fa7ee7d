"""What the user wants of the file, and the plan that reaches it: a size, a fidelity, a latency, a given plan.

A goal proposes a plan; the pipeline realizes and exports it and tells the outcome; the goal answers with a
better plan, or with None when it is content. Sizes are those of the finished file, which nobody knows
before it is written, and fidelities those that a session measures, which the prediction approaches. A goal
with a limit of time keeps to it as predicted; what is measured in the end, and whether to ask again for less,
is the pipeline's business.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.knapsack import Frontier, Option
from svd2onnx.planning.timed_knapsack import TimedFrontier, TimedOption
from svd2onnx.reporting.report import SizePoint
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressionPlan
from svd2onnx.values.targets import check_fidelity

_ROUNDS = 5
_NEAR = 0.002
"""A file may stay below its target size by this share of what its layers take, if rounds are left."""
_CLOSE = 0.85
"""A measured error of so much of what is allowed is worth no further round."""
_ASK_LESS = "allow more time, or more of the rest"
_CURVE_POINTS = 48
_CURVE_STATES = 1 << 11
_NOTHING = 1e-12
"""No plan is aimed at a smaller predicted error."""


@dataclass(frozen=True)
class Outcome:
    """What became of a plan. ``error`` measures the exported file, so it is called only where needed."""

    file_bytes: int
    error: Callable[[], float]


@dataclass(frozen=True)
class Rival:
    """A uniform plan; ``fits`` tells whether it takes no more bytes than what it is measured against."""

    plan: CompressionPlan
    fits: bool


class Goal(Protocol):
    """Proposes a first plan, and revises it until it is content."""

    def first(self) -> CompressionPlan: ...

    def revised(self, plan: CompressionPlan, outcome: Outcome) -> CompressionPlan | None: ...

    def rival(self, plan: CompressionPlan) -> Rival | None:
        """The uniform quantization that the final ``plan`` is measured against."""

    def curve(self, plan: CompressionPlan, file_bytes: int, gauge: float) -> list[SizePoint]:
        """What other sizes would cost, for the report.

        Args:
            plan: the final one.
            file_bytes: those of its file.
            gauge: what predicted errors are multiplied by.
        """


@dataclass(frozen=True)
class GivenPlan:
    """A plan as it is."""

    plan: CompressionPlan

    def first(self) -> CompressionPlan:
        return self.plan

    def revised(self, plan: CompressionPlan, outcome: Outcome) -> CompressionPlan | None:
        return None

    def rival(self, plan: CompressionPlan) -> Rival | None:
        return None

    def curve(self, plan: CompressionPlan, file_bytes: int, gauge: float) -> list[SizePoint]:
        return []


class _Planned:
    """What goals with a menu share.

    Args:
        menu: each layer's candidates.
        uniform: the plans to beat.
        allowed_ms: what all layers together may take, by the candidates' latencies.
    """

    def __init__(
        self,
        menu: Mapping[str, Sequence[Candidate]],
        uniform: Sequence[CompressionPlan],
        allowed_ms: float = math.inf,
    ) -> None:
        self._menu, self._uniform, self._allowed_ms = menu, uniform, allowed_ms
        self._frontier: Frontier | TimedFrontier
        if allowed_ms == math.inf:
            self._frontier = Frontier(self._options())
        else:
            self._frontier = TimedFrontier(
                [[TimedOption(c.size, c.error, c.latency) for c in o] for o in menu.values()], allowed_ms
            )

    def rival(self, plan: CompressionPlan) -> Rival | None:
        return best_uniform(self._uniform, self._menu, stored_bytes(plan, self._menu), self._allowed_ms)

    def curve(self, plan: CompressionPlan, file_bytes: int, gauge: float) -> list[SizePoint]:
        """The planner's frontier, without a limit of time, and the uniform plans."""
        rest = file_bytes - stored_bytes(plan, self._menu)
        points: list[tuple[int, float, str | None]] = [
            (*point, None) for point in Frontier(self._options(), _CURVE_STATES).curve(_CURVE_POINTS)
        ]
        for uniform in self._uniform:
            chosen = [_candidate(options, uniform, name) for name, options in self._menu.items()]
            size, error = sum(c.size for c in chosen), sum(c.error for c in chosen)
            points.append((size, error, uniform.common_form))
        return [
            SizePoint(rest + size, error * gauge, form)
            for size, error, form in points
            if math.isfinite(error)
        ]

    def _options(self) -> list[list[Option]]:
        return [[Option(c.size, c.error) for c in options] for options in self._menu.values()]


class SizeGoal(_Planned):
    """The least predicted error in a file of at most ``target`` bytes, of ``float_bytes`` in float32."""

    def __init__(
        self,
        menu: Mapping[str, Sequence[Candidate]],
        uniform: Sequence[CompressionPlan],
        float_bytes: int,
        target: int,
        allowed_ms: float = math.inf,
    ) -> None:
        super().__init__(menu, uniform, allowed_ms)
        self._float_bytes, self._target = float_bytes, target
        self._overhead = float_bytes - sum(_float_size(options) for options in menu.values())
        self._tried: list[CompressionPlan] = []

    def first(self) -> CompressionPlan:
        plan = self._within(self._target - self._overhead)
        if plan is None:
            least = self._overhead + sum(min(c.size for c in options) for options in self._menu.values())
            check_reachable(self._target, least, self._float_bytes)
            raise PlanError(f"no plan is both as fast and as small as asked: {_ASK_LESS}")
        return plan

    def revised(self, plan: CompressionPlan, outcome: Outcome) -> CompressionPlan | None:
        self._tried.append(plan)
        stored = stored_bytes(plan, self._menu)
        fits = outcome.file_bytes <= self._target
        near = outcome.file_bytes >= self._target - _NEAR * stored
        if fits and (near or len(self._tried) >= _ROUNDS):
            return None
        if len(self._tried) > 2 * _ROUNDS:
            raise PlanError(f"no plan was found whose file has at most {self._target:,} bytes")
        self._overhead = outcome.file_bytes - stored
        # What a change of forms adds to the graph is not known before, so leave more each time.
        better = self._within(self._target - self._overhead - 256 * (len(self._tried) - 1))
        if better is None:
            return None if fits else self.first()
        return None if fits and dict(better.forms) == dict(plan.forms) else better

    def _within(self, budget: int) -> CompressionPlan | None:
        return _plan_of(self._menu, self._frontier.least_loss(budget))


class FidelityGoal(_Planned):
    """The smallest file whose measured error is at most ``largest``, for a fidelity of ``asked``."""

    def __init__(
        self,
        menu: Mapping[str, Sequence[Candidate]],
        uniform: Sequence[CompressionPlan],
        largest: float,
        asked: float,
        allowed_ms: float = math.inf,
    ) -> None:
        super().__init__(menu, uniform, allowed_ms)
        self._largest, self._asked = largest, asked
        self._aim = largest
        self._reached: tuple[int, CompressionPlan] | None = None
        self._least = math.inf
        self._rounds = 0

    def first(self) -> CompressionPlan:
        plan = _plan_of(self._menu, self._frontier.least_size(self._aim))
        if plan is None:  # float layers have no error, so it is the time
            raise PlanError(f"no plan is both as fast and as faithful as asked: {_ASK_LESS}")
        return plan

    def revised(self, plan: CompressionPlan, outcome: Outcome) -> CompressionPlan | None:
        error = outcome.error()
        self._rounds += 1
        self._least = min(self._least, error)
        if error <= self._largest and (self._reached is None or outcome.file_bytes <= self._reached[0]):
            self._reached = outcome.file_bytes, plan
        settled = self._largest * _CLOSE <= error <= self._largest or not plan.forms
        if self._rounds >= _ROUNDS or settled:
            return self._settle(plan)
        self._aim *= 0.97 * self._largest / max(error, self._largest / 4)
        better = self.first()
        # Few layers leave few plans: where this one missed, aim lower until there is another.
        while error > self._largest and better.forms == plan.forms and self._aim > _NOTHING:
            self._aim /= 2
            better = self.first()
        if dict(better.forms) == dict(plan.forms):
            return self._settle(plan)
        return better

    def _settle(self, plan: CompressionPlan) -> CompressionPlan | None:
        if self._reached is None:
            raise PlanError(
                f"a fidelity of {self._asked:g} was not reached: the best of {self._rounds} plans missed it "
                f"with an error of {self._least:.2g} where {self._largest:.2g} is allowed; ask for less, or "
                "keep sensitive layers in float with --exclude"
            )
        self._rounds = _ROUNDS
        best = self._reached[1]
        return None if best is plan else best


class LatencyGoal(_Planned):
    """The least predicted error of a file, of any size, whose layers take ``allowed_ms``."""

    def first(self) -> CompressionPlan:
        plan = _plan_of(
            self._menu, self._frontier.least_loss(sum(_float_size(o) for o in self._menu.values()))
        )
        if plan is None:
            raise PlanError("no plan is as fast as asked; allow more time")
        return plan

    def revised(self, plan: CompressionPlan, outcome: Outcome) -> CompressionPlan | None:
        return None

    def rival(self, plan: CompressionPlan) -> Rival | None:
        return best_uniform(self._uniform, self._menu, sys.maxsize, self._allowed_ms)


def check_reachable(target: int, least: int, float_bytes: int) -> None:
    """Compare a file of ``target`` bytes with the smallest, of about ``least``, and the float32 original.

    Raises:
        PlanError: it is smaller than the smallest.
    """
    if target < least:
        raise PlanError(
            f"a file of {target:,} bytes cannot be reached: the smallest has about {least:,} "
            f"({least / float_bytes:.3f}x), the float32 one {float_bytes:,}; choose --target-size between"
        )


def allowed_error(objective: str, fidelity: float) -> float:
    """The mean error that a fidelity allows, see ``svd2onnx_runtime.objectives``.

    Raises:
        PlanError: the fidelity is not between 0 and 1.
    """
    check_fidelity(fidelity)
    return -math.log(fidelity) if objective == "kl" else 1 - fidelity


def stored_bytes(plan: CompressionPlan, menu: Mapping[str, Sequence[Candidate]]) -> int:
    """Bytes of all layers of the menu under ``plan``, the float ones included."""
    return sum(_candidate(options, plan, name).size for name, options in menu.items())


def best_uniform(
    plans: Sequence[CompressionPlan],
    menu: Mapping[str, Sequence[Candidate]],
    budget: int,
    allowed_ms: float = math.inf,
) -> Rival:
    """The uniform plan of the least predicted error within ``budget`` stored bytes and ``allowed_ms``.

    Where none keeps both limits, it is the one that exceeds the bytes least.
    """
    priced = []
    for plan in plans:
        chosen = {name: _candidate(options, plan, name) for name, options in menu.items()}
        errors = {name: c.error for name, c in chosen.items() if c.form}
        size, time = sum(c.size for c in chosen.values()), sum(c.latency for c in chosen.values())
        excess = max(size - budget, 0), max(time - allowed_ms, 0.0)
        priced.append((excess, CompressionPlan(plan.method, plan.forms, plan.notes, errors)))
    fitting = [(plan.predicted_error or 0.0, plan) for excess, plan in priced if excess == (0, 0)]
    pool = fitting or [(excess[0], plan) for excess, plan in priced]
    return Rival(min(pool, key=lambda entry: entry[0])[1], bool(fitting))


def _candidate(options: Sequence[Candidate], plan: CompressionPlan, name: str) -> Candidate:
    form = plan.forms.get(name)
    return next(candidate for candidate in options if candidate.form == form)


def _float_size(options: Sequence[Candidate]) -> int:
    return next(candidate.size for candidate in options if candidate.form is None)


def _plan_of(menu: Mapping[str, Sequence[Candidate]], chosen: list[int] | None) -> CompressionPlan | None:
    if chosen is None:
        return None
    picked = {name: options[i] for (name, options), i in zip(menu.items(), chosen, strict=True)}
    forms = {name: candidate.form for name, candidate in picked.items() if candidate.form is not None}
    return CompressionPlan("auto", forms, {}, {name: picked[name].error for name in forms})

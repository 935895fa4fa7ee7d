"""svd2onnx's planner, with the embeddings left in float: every size from one pricing of the candidates."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.task import Task
from svd2onnx.calibration.calibrate import without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compute.atomic_output import atomic_files
from svd2onnx.pipeline.builder import Build, Builder
from svd2onnx.pipeline.final_report import predicted_error
from svd2onnx.pipeline.goal_choice import priced_menu, uniform_plans
from svd2onnx.pipeline.plan_search import Found, better_of, reach_goal
from svd2onnx.pipeline.preparation import Prepared, prepare
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.pipeline.workspace import Workspace
from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.fixed_rules import with_activations
from svd2onnx.planning.goals import SizeGoal
from svd2onnx.reporting.report import Choice
from svd2onnx.values.schema import ACTIVATIONS
from svd2onnx.values.settings import Settings


@dataclass(frozen=True)
class Priced:
    """A network with its statistics and the candidates of its layers."""

    prepared: Prepared
    statistics: Mapping[str, LayerStatistics]
    menu: Mapping[str, Sequence[Candidate]]


@dataclass(frozen=True)
class Planned:
    """What became of one size. ``predicted`` is the error that was predicted, before any retraining."""

    build: Build
    choice: Choice | None
    predicted: float | None


def compress(
    task: Task,
    output: Path,
    *,
    bits: float,
    recover: int = 0,
    activations: str = "float",
) -> None:
    """Plan for ``bits`` of the file per Linear weight, and retrain for ``recover`` steps.

    ``activations`` is "float" or "int8", see ``svd2onnx.graph.int8_matmul``. What was predicted is
    written beside ``output``, as JSON under the suffix ``.predicted``.
    """
    planned = plan_size(task, output, bits, recover, activations)
    output.with_suffix(".predicted").write_text(json.dumps(planned.predicted))


def plan_size(
    task: Task,
    output: Path,
    bits: float,
    recover: int = 0,
    activations: str = "float",
) -> Planned:
    """Write the file to ``output``, as ``compress`` does, and tell what was planned."""
    priced = _priced(task.source, task.data, task.calibration_samples, task.kept)
    target = task.other_bytes + int(bits * task.linear_weights / 8)
    menu = {name: [c for c in options if _computes(c, activations)] for name, options in priced.menu.items()}
    sites = priced.prepared.sites
    uniform = [with_activations(plan, sites, activations) for plan in uniform_plans(sites)]
    goal = SizeGoal(menu, uniform, task.graph.stat().st_size, target)
    with atomic_files(output) as (draft,):
        builder = Builder(priced.prepared, priced.statistics, Workspace(draft, task.graph))
        found = better_of(Found(reach_goal(goal, builder), goal), builder)
        predicted = predicted_error(found.build.plan, found.choice)
        if recover:
            found = found.retrained(builder, recover)
    return Planned(found.build, found.choice, predicted)


@functools.lru_cache(maxsize=1)
def _priced(source: Path, data: Path | None, samples: int, kept: tuple[str, ...]) -> Priced:
    settings = Settings(exclude=kept, calibration_samples=samples, provider="cpu")
    prepared = prepare(source, settings, data)
    statistics = gather_statistics(prepared)
    menu = priced_menu(prepared, statistics, ACTIVATIONS)
    return Priced(prepared, without_probes(statistics), menu)


def _computes(candidate: Candidate, activations: str) -> bool:
    """Whether its MatMuls, if there are any, compute with ``activations``; tables are not on this menu."""
    form = candidate.form
    return form is None or not form.specs or form.activations == activations

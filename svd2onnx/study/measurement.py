"""What all points of a sweep share, each part made when a point first asks for it; and how one is measured.

The float network is calibrated once for plans, and for each draw of data that the article's rule is tried on.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from svd2onnx.calibration.calibrate import calibrate, without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.lowrank import Decompositions
from svd2onnx.memo.cache import Cache
from svd2onnx.memo.disk_memo import DiskMemo
from svd2onnx.pipeline.builder import Build, Builder
from svd2onnx.pipeline.goal_choice import priced_menu, uniform_plans
from svd2onnx.pipeline.plan_search import Found, better_of, reach_goal
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.statistics import gather_statistics
from svd2onnx.pipeline.workspace import Workspace, memo_of_run
from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.fixed_rules import article_plan, uniform_plan
from svd2onnx.planning.goals import SizeGoal
from svd2onnx.sources.model_file import Batch
from svd2onnx.study.points import Point, Setting
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import DEFAULT_BLOCKS
from svd2onnx_runtime import EvaluationResult, graph_bytes


@dataclass
class Study:
    """The points of one network.

    Args:
        prepared: the float network.
        folder: where files are drafted.
        float32: the float32 file.
        cache: remembers what is shared.
    """

    prepared: Prepared
    folder: Path
    float32: Path
    cache: Cache

    def point(self, setting: Setting) -> Point:
        """Build, export and measure one point."""
        started = time.perf_counter()
        try:
            builder, build = self._built(setting)
        except PlanError as error:
            return Point(setting, failure=str(error), seconds=time.perf_counter() - started)
        result: EvaluationResult = builder.deployed()
        forms = Counter(str(form) for form in build.plan.forms.values()) if build else Counter[str]()
        size = graph_bytes(builder.workspace.graph)
        return Point(
            setting,
            file_bytes=size,
            kept=size / self.float_bytes,
            fidelity=result.fidelity,
            mean_error=result.mean_error,
            standard_error=result.standard_error,
            predicted_error=build.plan.predicted_error if build else None,
            metric=result.metric,
            forms=dict(forms),
            seconds=time.perf_counter() - started,
        )

    def _built(self, setting: Setting) -> tuple[Builder, Build | None]:
        """The builder whose draft is the point's file, and what was built unless that is the float32 file."""
        if setting.series == "float":
            return Builder(self.prepared, {}, replace(self._workspace, graph=self.float32)), None
        if setting.series == "svd":
            builder, build = self._as_the_article(setting)
        elif setting.series == "quantize":
            builder = self.builder
            spec = QuantSpec(setting.bits, DEFAULT_BLOCKS[setting.bits])
            build, _ = builder.never_worse(builder.build(uniform_plan(self.prepared.sites, spec)))
        else:
            builder = self.builder
            build = self._planned(setting.value)
            if setting.series == "retrained":
                build = builder.recovered(build, self.prepared.settings.recover)
        builder.write(build)
        return builder, build

    def _as_the_article(self, setting: Setting) -> tuple[Builder, Build]:
        prepared, workspace = self.prepared, self._workspace
        statistics = self._drawn(setting.sample)
        spec = QuantSpec(setting.bits, DEFAULT_BLOCKS[setting.bits])
        plan = article_plan(
            prepared.model,
            prepared.sites,
            statistics,
            spec,
            setting.value,
            track=prepared.track,
            decompose=workspace.decompose,
        )
        builder = Builder(prepared, statistics, replace(workspace, memo=self._memo_drawn(setting.sample)))
        return builder, builder.build(plan)

    def _planned(self, share: float) -> Build:
        """The plan for ``share`` of the float32 file, or uniform quantization where that is better."""
        uniform = uniform_plans(self.prepared.sites)
        target = int(share * self.float_bytes)
        goal = SizeGoal(self.menu, uniform, self.float_bytes, target)
        return better_of(Found(reach_goal(goal, self.builder), goal), self.builder).build

    @property
    def float_bytes(self) -> int:
        return self._workspace.float_bytes

    @cached_property
    def _workspace(self) -> Workspace:
        decompositions = Decompositions(self._memo.decompose(self.prepared.device))
        return Workspace(self.folder / "point.onnx", self.float32, self._memo, decompositions)

    def share(self, settings: Sequence[Setting]) -> None:
        """Make what ``settings`` have in common, all but the article's, so that it is in the cache."""
        if any(setting.series not in ("float", "svd") for setting in settings):
            self.menu  # noqa: B018

    @cached_property
    def menu(self) -> Mapping[str, Sequence[Candidate]]:
        menu = priced_menu(self.prepared, self._statistics, memoize=self._memo)
        self._statistics = without_probes(self._statistics)
        return menu

    @cached_property
    def builder(self) -> Builder:
        self.menu  # noqa: B018 - made first, because it lets go of the probes
        return Builder(self.prepared, self._statistics, self._workspace)

    @cached_property
    def _statistics(self) -> dict[str, LayerStatistics]:
        return gather_statistics(self.prepared, self._memo)

    @cached_property
    def _memo(self) -> DiskMemo:
        return memo_of_run(self.cache, self.prepared, self.float32)

    def _drawn(self, sample: int) -> dict[str, LayerStatistics]:
        """Without gradients, of half of the calibration batches, drawn by ``sample``."""
        if sample not in self._draws:
            batches = list(self.prepared.batches)
            some = random.Random(self._seed(sample)).sample(batches, -(-len(batches) // 2))
            memoize = self._memo_drawn(sample)
            self._draws = {sample: memoize("moments", (), lambda: self._calibrated(some))}
        return self._draws[sample]

    def _calibrated(self, batches: Sequence[Batch]) -> dict[str, LayerStatistics]:
        (network,) = self.prepared.placed(self.prepared.model)
        return calibrate(network, self.prepared.sites, batches, store=self.prepared.store)

    def _memo_drawn(self, sample: int) -> DiskMemo:
        return self._memo.of("drawn", sample)

    def _seed(self, sample: int) -> int:
        """Another one for each sample of each seed."""
        return self.prepared.settings.seed * 1000 + sample

    @cached_property
    def _draws(self) -> dict[int, dict[str, LayerStatistics]]:
        return {}

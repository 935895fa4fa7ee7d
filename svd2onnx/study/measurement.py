"""What all points of a sweep share, each part made when a point first asks for it; and how one is measured.

The float network is calibrated once for plans, and for each draw of data that the article's rule is tried on.
"""

from __future__ import annotations

import math
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from svd2onnx.calibration.calibrate import calibrate, hold_out, without_probes
from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.compression.lowrank import Decompositions
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.progress import Track
from svd2onnx.memo.cache import Cache
from svd2onnx.memo.memoizer import DiskMemo
from svd2onnx.pipeline.builder import Build, Builder
from svd2onnx.pipeline.compress_export import gather_statistics, memo_of_run
from svd2onnx.pipeline.goal_choice import priced_menu, uniform_plans
from svd2onnx.pipeline.plan_search import better_of, reach
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.planning.candidates import Candidate
from svd2onnx.planning.fixed_rules import article_plan, uniform_plan
from svd2onnx.planning.goals import SizeGoal
from svd2onnx.sources.model_file import Batch
from svd2onnx.study.points import Point, Setting
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import QuantSpec
from svd2onnx.values.settings import DEFAULT_BLOCKS, Settings
from svd2onnx_runtime import EvaluationResult, graph_bytes
from svd2onnx_runtime.session import resolve_provider


@dataclass
class Study:
    """The points of one network.

    Args:
        prepared: the float network.
        settings: of the sweep.
        folder: where files are drafted.
        reference: the float32 file.
        track: shows the progress.
        cache: remembers what is shared.
    """

    prepared: Prepared
    settings: Settings
    folder: Path
    reference: Path
    track: Track
    cache: Cache

    def point(self, setting: Setting) -> Point:
        """Build, export and measure one point."""
        started = time.perf_counter()
        try:
            builder, build, path = self._built(setting)
        except PlanError as error:
            return Point(setting, failure=str(error), seconds=time.perf_counter() - started)
        result: EvaluationResult = builder.deployed()
        forms = Counter(str(form) for form in build.plan.forms.values()) if build else Counter[str]()
        size = graph_bytes(path)
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

    def _built(self, setting: Setting) -> tuple[Builder, Build | None, Path]:
        """The builder whose draft is the point's file."""
        if setting.series == "float":
            builder = self.builder_on({}, draft=self.reference)
            return builder, None, self.reference
        if setting.series == "svd":
            statistics = self._drawn(setting.sample)
            spec = QuantSpec(setting.bits, DEFAULT_BLOCKS[setting.bits])
            sites, model = self.prepared.sites, self.prepared.model
            plan = article_plan(
                model, sites, statistics, spec, setting.value, self.track, self.decompositions
            )
            builder = self.builder_on(statistics, self._memo_drawn(setting.sample))
            build = builder.build(plan)
        elif setting.series == "quantize":
            builder = self.builder
            spec = QuantSpec(setting.bits, DEFAULT_BLOCKS[setting.bits])
            build = builder.build(uniform_plan(self.prepared.sites, spec))
        else:
            builder = self.builder
            build = self._planned(setting.value)
            if setting.series == "retrained":
                build = builder.recovered(build, self.settings.recover)
        builder.write(build)
        return builder, build, builder.draft

    def _planned(self, share: float) -> Build:
        """The plan for ``share`` of the float32 file, or uniform quantization where that is better."""
        uniform = uniform_plans(self.prepared.sites)
        target = int(share * self.float_bytes)
        goal = SizeGoal(self.menu, uniform, self.float_bytes, target, math.inf)
        build = reach(goal, self.builder)
        return better_of(build, goal.rival(build.plan), self.builder)[0]

    @cached_property
    def decompositions(self) -> Decompositions:
        return Decompositions(self._memo.decompose(self.prepared.device))

    @cached_property
    def float_bytes(self) -> int:
        return graph_bytes(self.reference)

    def share(self, settings: Sequence[Setting]) -> None:
        """Make what ``settings`` have in common, all but the article's, so that it is in the cache."""
        if any(setting.series not in ("float", "svd") for setting in settings):
            self.menu  # noqa: B018

    @cached_property
    def menu(self) -> Mapping[str, Sequence[Candidate]]:
        judging = self._split[1]
        menu = priced_menu(self.prepared, self._statistics, judging, ("float",), self.track, self._memo)
        self._statistics = without_probes(self._statistics)
        return menu

    @cached_property
    def builder(self) -> Builder:
        self.menu  # noqa: B018 - made first, because it lets go of the probes
        return self.builder_on(self._statistics, self._memo)

    def builder_on(
        self, statistics: Mapping[str, LayerStatistics], memoize: Memoize = no_memo, draft: Path | None = None
    ) -> Builder:
        """One whose layers are fitted to ``statistics``."""
        provider = resolve_provider(self.settings.provider)
        draft = draft or self.folder / "point.onnx"
        return Builder(
            self.prepared,
            statistics,
            self._split[1],
            draft,
            self.reference,
            provider,
            self.track,
            decompose=self.decompositions,
            memoize=memoize,
            seed=self.settings.seed,
        )

    @cached_property
    def _statistics(self) -> dict[str, LayerStatistics]:
        return gather_statistics(self.prepared, self.settings, *self._split, self.track, self._memo)

    @cached_property
    def _memo(self) -> DiskMemo:
        return memo_of_run(self.cache, self.prepared, self.reference, self.settings, *self._split)

    @cached_property
    def _split(self) -> tuple[list[Batch], list[Batch]]:
        """The batches to fit to, and those to judge with."""
        return hold_out(self.prepared.batches)

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
        return self.settings.seed * 1000 + sample

    @cached_property
    def _draws(self) -> dict[int, dict[str, LayerStatistics]]:
        return {}

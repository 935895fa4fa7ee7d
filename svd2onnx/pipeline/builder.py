"""From a plan to a file: realize the layers, rewrite the network, export it; and measure what it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import mean_error
from svd2onnx.compression.lowrank import Decompose, factorize
from svd2onnx.compression.realize import realize
from svd2onnx.compute.memoize import Memoize, no_memo
from svd2onnx.compute.memory import release_freed
from svd2onnx.compute.progress import Track
from svd2onnx.graph.export import export, weights_file
from svd2onnx.graph.file_formats import to_format
from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.network.rewrite import rewrite
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.reporting.report import Retraining
from svd2onnx.retraining.recover import recover
from svd2onnx.sources.model_file import Batch, arguments_of, as_arrays
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, LayerForm
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import EvaluationResult, evaluate, graph_bytes


@dataclass(frozen=True)
class Build:
    """A plan with its stored tensors and the network that holds them."""

    plan: CompressionPlan
    layers: Mapping[str, CompressedLayer]
    network: nn.Module
    retraining: Retraining | None = None

    @property
    def integer_layers(self) -> dict[str, CompressedLayer]:
        """Those that compute in int8."""
        forms = self.plan.forms
        return {n: layer for n, layer in self.layers.items() if forms[n].activations == "int8"}


class Builder:
    """Builds plans of one network; layers that an earlier plan had in the same form are not done again.

    Args:
        prepared: the float network.
        statistics: of its layers, empty without data.
        judging: batches that the statistics were not fitted to.
        draft: where the file is written.
        reference: the float32 file.
        provider: of the sessions that measure.
        track: shows the progress.
        form: how the file is written, see ``forms``.
        external_data: whether its weights are in another file, of its name and ``.data``.
        decompose: for the article's pairs.
        memoize: may know layers from an earlier run.
        seed: of retraining.
    """

    def __init__(
        self,
        prepared: Prepared,
        statistics: Mapping[str, LayerStatistics],
        judging: Sequence[Batch],
        draft: Path,
        reference: Path,
        provider: str,
        track: Track,
        form: FileFormat = FileFormat(),  # noqa: B008 (frozen)
        external_data: bool = False,
        decompose: Decompose = factorize,
        memoize: Memoize = no_memo,
        seed: int = 0,
    ) -> None:
        self._decompose, self._memoize, self._seed = decompose, memoize, seed
        self._form, self._external_data = form, external_data
        self._prepared, self._statistics, self._judging = prepared, statistics, judging
        self.draft, self._reference, self._provider, self._track = draft, reference, provider, track
        self._known: dict[tuple[str, str, LayerForm], CompressedLayer] = {}
        self._plain = draft

    def build(self, plan: CompressionPlan) -> Build:
        """The network of ``plan``, in PyTorch.

        Raises:
            PlanError: a layer computes in int8, and the file has a form in which none can.
        """
        integer = [name for name, form in plan.forms.items() if form.activations == "int8"]
        if integer and self._form != FileFormat():
            raise PlanError(
                f"the plan lets {integer[0]!r} compute in int8, which --operator {self._form.operator} with "
                f"--dtype {self._form.dtype} cannot hold: leave these out, or int8 out of the plan"
            )
        kind = "article" if plan.method == "svd" else "planned"
        stored = {name: form.stored for name, form in plan.forms.items()}
        fresh = {n: form for n, form in stored.items() if (kind, n, form) not in self._known}
        done = realize(
            self._prepared.model,
            self._prepared.sites,
            replace(plan, forms=fresh),
            self._statistics,
            self._track,
            self._decompose,
            self._prepared.store,
            self._memoize,
            self._prepared.device,
        )
        release_freed()
        self._known |= {(kind, name, fresh[name]): layer for name, layer in done.items()}
        layers = {name: self._known[kind, name, form] for name, form in stored.items()}
        return Build(plan, layers, self._rewritten(self._prepared.model, layers))

    def _rewritten(self, model: nn.Module, layers: Mapping[str, CompressedLayer]) -> nn.Module:
        return rewrite(model, self._prepared.sites, layers, self._prepared.store)

    def judged_error(self, build: Build) -> float:
        """The mean error on the judging batches, in PyTorch; of the file, where that computes in int8."""
        return self._error(build, self._judging)

    def evaluation_error(self, build: Build) -> float:
        """Likewise on the evaluation split."""
        return self._error(build, self._prepared.evaluation)

    def _error(self, build: Build, batches: Sequence[Batch]) -> float:
        prepared, shown = self._prepared, self._track(batches, "Measuring", len(batches))
        if not build.integer_layers:
            original, compressed = prepared.placed(prepared.model, build.network)
            return mean_error(original, compressed, shown, prepared.objective)
        path = self.draft.with_name("measured.onnx")
        self._export(build, path)
        arrays = (as_arrays(arguments_of(prepared.model, batch)) for batch in shown)
        objective = prepared.objective
        return evaluate(path, self._reference, arrays, None, objective, self._provider).mean_error

    def recovered(self, build: Build, steps: int) -> Build:
        """``build`` after brief retraining on the recovery split."""
        prepared = self._prepared
        batches = list(prepared.source.inputs("recovery"))
        result = recover(
            prepared.model,
            prepared.sites,
            build.layers,
            batches,
            prepared.objective,
            steps,
            seed=self._seed,
            track=self._track,
            device=prepared.passes,
        )
        told = Retraining(result.steps_run, result.before, result.after)
        return Build(build.plan, result.layers, self._rewritten(result.model, result.layers), told)

    def write(self, build: Build) -> int:
        """Export to the draft; the bytes of the file, and of that with its weights."""
        for _ in self._track([build], "Exporting", 1):
            self._plain = self._export(build, self.draft)
            if self._external_data:
                ir.save(ir.load(self.draft), self.draft, external_data=weights_file(self.draft).name)
        return graph_bytes(self.draft)

    def _export(self, build: Build, path: Path) -> Path:
        """Write to ``path``, and return where the graph is that it was made of."""
        prepared, integer = self._prepared, build.integer_layers
        as_exported = not integer and self._form == FileFormat()
        plain = path if as_exported else path.with_suffix(".plain.onnx")
        metadata = {"svd2onnx.method": build.plan.method}
        traced = prepared.traced(build.network)
        export(
            build.network,
            build.layers,
            prepared.example,
            prepared.dynamic_shapes,
            plain,
            metadata,
            traced,
        )
        if integer:
            to_integer(plain, path, integer, self._statistics)
        elif not as_exported:
            to_format(plain, path, self._form)
        return plain

    def let_go(self) -> None:
        """Forget what only further builds would need: statistics, and layers in other forms."""
        self._statistics = {}
        self._known.clear()
        release_freed()

    def exact(self) -> Path:
        """What must equal the network to float rounding: the draft, where that rounds nothing.

        In place of one with layers in int8, the graph that it was made of; in place of one in float16 or
        of MatMulNBits, the same operators in float32 and at the exact accuracy level, so that the packed
        codes are checked too.
        """
        if self._form == FileFormat():
            return self._plain
        if self._form == FileFormat("folded"):
            return self.draft
        exact = self.draft.with_name("exact.onnx")
        to_format(self._plain, exact, self._form, exact=True)
        return exact

    def deployed(self) -> EvaluationResult:
        """What a default session makes of the draft, on the evaluation split."""
        prepared = self._prepared
        source, batches = prepared.source, prepared.evaluation
        return evaluate(
            self.draft,
            self._reference,
            (as_arrays(b) for b in self._track(batches, "Evaluating", len(batches))),
            source.metric,
            source.objective,
            self._provider,
            source.summary,
        )

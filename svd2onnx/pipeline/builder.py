"""From a plan to a file: realize the layers, rewrite the network, export it; and measure what it lost."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx_ir as ir
from torch import nn

from svd2onnx.calibration.layer_statistics import LayerStatistics
from svd2onnx.calibration.network_error import mean_error
from svd2onnx.compression.realize import realize
from svd2onnx.compute.memory import release_freed
from svd2onnx.graph.export import export, weights_file
from svd2onnx.graph.file_formats import to_format
from svd2onnx.graph.int8_matmul import to_integer
from svd2onnx.pipeline.int8_convolutions import Int8Convolutions, integer_convolutions
from svd2onnx.pipeline.preparation import Prepared
from svd2onnx.pipeline.workspace import Workspace
from svd2onnx.reporting.report import Retraining
from svd2onnx.retraining.recover import recover
from svd2onnx.sources.model_file import Batch, arguments_of, as_arrays
from svd2onnx.values.errors import PlanError
from svd2onnx.values.schema import CompressedLayer, CompressionPlan, LayerForm
from svd2onnx.values.settings import FileFormat
from svd2onnx_runtime import EvaluationResult, evaluate, graph_bytes

_NEAREST = "rounded to nearest, which was measured to be better"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Build:
    """A plan with its stored tensors and the network that holds them."""

    plan: CompressionPlan
    layers: Mapping[str, CompressedLayer]
    network: nn.Module
    retraining: Retraining | None = None

    @property
    def integer_layers(self) -> dict[str, CompressedLayer]:
        """Those whose MatMuls compute in int8, with a range for each call."""
        forms = self.plan.forms
        return {
            name: layer
            for name, layer in self.layers.items()
            if layer.kind == "linear" and forms[name].activations == "int8"
        }


class Builder:
    """Builds plans of one network; layers that an earlier plan had in the same form are not done again.

    Args:
        prepared: the float network.
        statistics: of its layers, empty without data.
        workspace: where the file is drafted, and what it is measured against.
        convolutions: what those take and give that compute in int8.
    """

    def __init__(
        self,
        prepared: Prepared,
        statistics: Mapping[str, LayerStatistics],
        workspace: Workspace,
        convolutions: Int8Convolutions | None = None,
    ) -> None:
        self.prepared, self.workspace = prepared, workspace
        self._convolutions = convolutions or Int8Convolutions(prepared)
        self._statistics = statistics
        self._format = prepared.settings.file_format
        self._known: dict[tuple[str, str, LayerForm], CompressedLayer] = {}
        self._plain = workspace.graph

    def build(self, plan: CompressionPlan) -> Build:
        """The network of ``plan``, in PyTorch.

        Raises:
            PlanError: a layer computes in int8, and the file has a form in which none can.
        """
        integer = [name for name, form in plan.forms.items() if form.activations == "int8"]
        if integer and self._format != FileFormat():
            written = f"--operator {self._format.operator} with --dtype {self._format.dtype}"
            raise PlanError(
                f"the plan lets {integer[0]!r} compute in int8, which {written} cannot hold: "
                "leave these out, or int8 out of the plan"
            )
        kind = "article" if plan.method == "svd" else "planned"
        stored = {name: form.stored for name, form in plan.forms.items()}
        fresh = {n: form for n, form in stored.items() if (kind, n, form) not in self._known}
        done = realize(
            self.prepared.model,
            self.prepared.sites,
            replace(plan, forms=fresh),
            self._statistics,
            track=self.prepared.track,
            decompose=self.workspace.decompose,
            store=self.prepared.store,
            memoize=self.workspace.memo,
            device=self.prepared.device,
        )
        release_freed()
        self._known |= {(kind, name, fresh[name]): layer for name, layer in done.items()}
        layers = {name: self._known[kind, name, form] for name, form in stored.items()}
        return Build(plan, layers, self._rewritten(self.prepared.model, layers, plan))

    def _rewritten(
        self, model: nn.Module, layers: Mapping[str, CompressedLayer], plan: CompressionPlan
    ) -> nn.Module:
        return self._convolutions.network(model, layers, plan)

    def never_worse(self, build: Build) -> tuple[Build, float]:
        """``build``, or its plan rounded to nearest if that is measured to be better; and its judged error.

        What is fitted to the calibration data is a promise about other data, which this keeps. Pairs stay:
        there is no rounding to nearest that they would be compared with.
        """
        error = self.judged_error(build)
        nearest = self._nearest(build)
        if nearest is None:
            return build, error
        least = self.judged_error(nearest)
        if error <= least:
            return build, error
        logger.info("rounded to nearest the error is %g, and %g if fitted to the data", least, error)
        return nearest, least

    def _nearest(self, build: Build) -> Build | None:
        """The same forms, with every dense layer rounded to nearest; None where they are already."""
        dense = {
            name: form.stored
            for name, form in build.plan.forms.items()
            if form.dense and not form.factors and name in self._statistics
        }
        if not dense:
            return None
        prepared = self.prepared
        done = realize(
            prepared.model,
            prepared.sites,
            replace(build.plan, forms=dense),
            {},
            store=prepared.store,
            device=prepared.device,
        )
        notes = dict(build.plan.notes)
        for name in dense:
            notes[name] = "; ".join(filter(None, [notes.get(name), _NEAREST]))
        layers, plan = {**build.layers, **done}, replace(build.plan, notes=notes)
        return Build(plan, layers, self._rewritten(prepared.model, layers, plan))

    def judged_error(self, build: Build) -> float:
        """The mean error on the judging batches, in PyTorch; of the file, where that computes in int8."""
        return self._error(build, self.prepared.judging)

    def evaluation_error(self, build: Build) -> float:
        """Likewise on the evaluation split."""
        return self._error(build, self.prepared.evaluation)

    def _error(self, build: Build, batches: Sequence[Batch]) -> float:
        prepared, workspace = self.prepared, self.workspace
        shown = prepared.track(batches, "Measuring", len(batches))
        if not build.integer_layers:
            original, compressed = prepared.placed(prepared.model, build.network)
            return mean_error(original, compressed, shown, prepared.objective, prepared.judged)
        path = workspace.graph.with_name("measured.onnx")
        self._export(build, path)
        arrays = (as_arrays(arguments_of(prepared.model, batch)) for batch in shown)
        objective, provider, output = prepared.objective, prepared.provider, prepared.output
        return evaluate(path, workspace.float32, arrays, None, objective, provider, output=output).mean_error

    def recovered(self, build: Build, steps: int) -> Build:
        """``build`` after brief retraining on the recovery split."""
        prepared = self.prepared
        batches = list(prepared.source.inputs("recovery"))
        result = recover(
            prepared.model,
            prepared.sites,
            build.layers,
            batches,
            prepared.objective,
            steps,
            place=prepared.judged,
            seed=prepared.settings.seed,
            track=prepared.track,
            device=prepared.passes,
        )
        told = Retraining(result.steps_run, result.before, result.after)
        network = self._rewritten(result.model, result.layers, build.plan)
        return Build(build.plan, result.layers, network, told)

    def write(self, build: Build) -> int:
        """Export to the draft; the bytes of the file, and of that with its weights."""
        path = self.workspace.graph
        for _ in self.prepared.track([build], "Exporting", 1):
            self._plain = self._export(build, path)
            if self.prepared.settings.external_data:
                ir.save(ir.load(path), path, external_data=weights_file(path).name)
        return graph_bytes(path)

    def _export(self, build: Build, path: Path) -> Path:
        """Write to ``path``, and return where the graph is that it was made of."""
        prepared, integer = self.prepared, build.integer_layers
        as_exported = not integer and self._format == FileFormat()
        plain = path if as_exported else path.with_suffix(".plain.onnx")
        export(
            build.network,
            build.layers,
            prepared.example,
            prepared.dynamic_shapes,
            plain,
            metadata={"svd2onnx.method": build.plan.method},
            traced=prepared.traced(build.network),
            integer=integer_convolutions(prepared.sites, build.plan),
        )
        if integer:
            to_integer(plain, path, integer, self._statistics)
        elif not as_exported:
            to_format(plain, path, self._format)
        return plain

    def let_go(self) -> None:
        """Forget what only further builds would need: statistics, and layers in other forms."""
        self._statistics = {}
        self._known.clear()
        release_freed()

    def exact(self) -> Path:
        """What must equal the network to float rounding: the draft, where that rounds nothing.

        In place of one with layers in int8, the graph that it was made of; in place of one in float16, the
        same operators in float32, so that the packed codes are checked too.
        """
        if self._format == FileFormat():
            return self._plain
        if self._format.dtype == "float32":
            return self.workspace.graph
        exact = self.workspace.graph.with_name("exact.onnx")
        to_format(self._plain, exact, replace(self._format, dtype="float32"))
        return exact

    def deployed(self) -> EvaluationResult:
        """What a default session makes of the draft, on the evaluation split."""
        prepared, source = self.prepared, self.prepared.source
        batches = prepared.evaluation
        return evaluate(
            self.workspace.graph,
            self.workspace.float32,
            (as_arrays(b) for b in prepared.track(batches, "Evaluating", len(batches))),
            source.metric,
            prepared.objective,
            prepared.provider,
            summary=source.summary,
            output=prepared.output,
        )

"""From a plan to a file: realize the layers, rewrite the network, export it; and measure what it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from svd2onnx.agreement import mean_error
from svd2onnx.calibrate import LayerStatistics
from svd2onnx.export import export
from svd2onnx.integer import to_integer
from svd2onnx.loading import Batch, as_arrays
from svd2onnx.preparation import Prepared
from svd2onnx.progress import Track
from svd2onnx.realize import realize
from svd2onnx.recover import recover
from svd2onnx.rewrite import rewrite
from svd2onnx.schema import CompressedLayer, CompressionPlan, LayerForm
from svd2onnx_runtime import EvaluationResult, evaluate


@dataclass(frozen=True)
class Build:
    """A plan with its stored tensors and the network that holds them."""

    plan: CompressionPlan
    layers: Mapping[str, CompressedLayer]
    network: nn.Module


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
        activations: "float" or "int8": what the MatMuls of the file compute with, see ``integer``.
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
        activations: str = "float",
    ) -> None:
        self._activations = activations
        self._prepared, self._statistics, self._judging = prepared, statistics, judging
        self._draft, self._reference, self._provider, self._track = draft, reference, provider, track
        self._known: dict[tuple[str, str, LayerForm], CompressedLayer] = {}

    def build(self, plan: CompressionPlan) -> Build:
        """The network of ``plan``, in PyTorch."""
        kind = "article" if plan.method == "svd" else "planned"
        fresh = {n: form for n, form in plan.forms.items() if (kind, n, form) not in self._known}
        done = realize(
            self._prepared.model,
            self._prepared.sites,
            replace(plan, forms=fresh),
            self._statistics,
            self._track,
        )
        self._known |= {(kind, name, fresh[name]): layer for name, layer in done.items()}
        layers = {name: self._known[kind, name, form] for name, form in plan.forms.items()}
        return Build(plan, layers, rewrite(self._prepared.model, self._prepared.sites, layers))

    def judged_error(self, build: Build) -> float:
        """The mean error on the judging batches, in PyTorch."""
        return self._error(build, self._judging)

    def evaluation_error(self, build: Build) -> float:
        """The mean error on the evaluation split, in PyTorch."""
        return self._error(build, self._prepared.evaluation)

    def _error(self, build: Build, batches: Sequence[Batch]) -> float:
        prepared = self._prepared
        return mean_error(
            prepared.model, build.network, self._track(batches, "Measuring", len(batches)), prepared.objective
        )

    def recovered(self, build: Build, steps: int) -> Build:
        """``build`` after brief retraining on the recovery split."""
        prepared = self._prepared
        batches = list(prepared.model_file.inputs("recovery"))
        result = recover(
            prepared.model,
            prepared.sites,
            build.layers,
            batches,
            prepared.objective,
            steps,
            track=self._track,
        )
        return Build(build.plan, result.layers, rewrite(result.model, prepared.sites, result.layers))

    def write(self, build: Build) -> int:
        """Export to the draft; the bytes of the file."""
        for _ in self._track([build], "Exporting", 1):
            metadata = {"svd2onnx.method": build.plan.method}
            prepared = self._prepared
            export(
                build.network,
                build.layers,
                prepared.example,
                prepared.dynamic_shapes,
                self.as_float,
                metadata,
            )
            if self._activations == "int8":
                to_integer(self.as_float, self._draft, build.layers, self._statistics)
        return self._draft.stat().st_size

    @property
    def as_float(self) -> Path:
        """The draft, or where that computes in int8, the same graph before: what equals the network."""
        return self._draft if self._activations == "float" else self._draft.with_name("as_float.onnx")

    def deployed(self) -> EvaluationResult:
        """What a default session makes of the draft, on the evaluation split."""
        prepared = self._prepared
        source, batches = prepared.model_file, prepared.evaluation
        return evaluate(
            self._draft,
            self._reference,
            (as_arrays(b) for b in self._track(batches, "Evaluating", len(batches))),
            source.metric,
            source.objective,
            self._provider,
            source.summary,
        )

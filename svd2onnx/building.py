"""From a plan to a file: realize the layers, rewrite the network, export it; and measure what it lost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from svd2onnx.agreement import mean_error
from svd2onnx.calibrate import LayerStatistics
from svd2onnx.export import export
from svd2onnx.forms import to_form
from svd2onnx.integer import to_integer
from svd2onnx.loading import Batch, as_arrays
from svd2onnx.preparation import Prepared
from svd2onnx.progress import Track
from svd2onnx.realize import realize
from svd2onnx.recover import recover
from svd2onnx.rewrite import rewrite
from svd2onnx.schema import CompressedLayer, CompressionPlan, LayerForm
from svd2onnx.settings import Form
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
        form: how the file is written where they are "float", see ``forms``.
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
        form: Form = Form(),  # noqa: B008 (frozen)
    ) -> None:
        self._activations, self._form = activations, form
        as_exported = activations == "float" and form == Form()
        self._plain = draft if as_exported else draft.with_name("plain.onnx")
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
                self._plain,
                metadata,
            )
            if self._activations == "int8":
                to_integer(self._plain, self._draft, build.layers, self._statistics)
            elif self._form != Form():
                to_form(self._plain, self._draft, self._form)
        return self._draft.stat().st_size

    def exact(self) -> Path:
        """The graph that must equal the network to float rounding.

        The draft, where that rounds nothing. In place of one in int8, the graph that it was made of; in place
        of one in float16 or of MatMulNBits, the same operators in float32 and at the exact accuracy level, so
        that the packed codes are checked too.
        """
        if self._activations == "int8" or self._form == Form():
            return self._plain
        if self._form == Form("folded"):
            return self._draft
        exact = self._draft.with_name("exact.onnx")
        to_form(self._plain, exact, self._form, exact=True)
        return exact

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

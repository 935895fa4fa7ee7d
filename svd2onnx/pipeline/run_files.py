"""The files that one run writes, by name: they appear together, when all of them are whole."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from svd2onnx.compute.atomic_output import atomic_files
from svd2onnx.graph.export import weights_file
from svd2onnx.values.settings import AnyPath, Settings


@dataclass(frozen=True)
class RunFiles:
    """Where the files of a run are to be, or their drafts are; None for those that nobody asked for.

    ``graph_weights`` and ``reference_weights`` are there only where a graph's weights are not inside it. The
    graph comes first, so that it is put into its place last, after the files that tell of it.
    """

    graph: Path
    report: Path
    plan: Path
    latency_table: Path | None
    graph_weights: Path
    page: Path | None
    reference_weights: Path | None
    reference: Path | None

    @classmethod
    def beside(
        cls, output: Path, settings: Settings, reference: AnyPath | None, page: AnyPath | None
    ) -> RunFiles:
        """The files of a run that writes its graph to ``output``."""
        reference = Path(reference) if reference else None
        return cls(
            graph=output,
            report=Path(f"{output}.report.json"),
            plan=Path(f"{output}.plan.json"),
            latency_table=Path(f"{output}.latency.json") if settings.target_latency else None,
            graph_weights=weights_file(output),
            page=Path(page) if page else None,
            reference_weights=weights_file(reference) if reference else None,
            reference=reference,
        )

    @property
    def float32(self) -> Path:
        """The float32 graph, which every run needs, whether it is kept or not."""
        return self.reference or self.graph.with_name(f"{self.graph.name}.float32.onnx")

    @contextlib.contextmanager
    def drafted(self, settings: Settings) -> Iterator[RunFiles]:
        """The same names for drafts, which take their places when the block succeeds.

        Raises:
            OutputError: a place cannot be written, or is named twice.
        """
        asked = {own.name: getattr(self, own.name) for own in fields(self)}
        asked = {name: place for name, place in asked.items() if place is not None}
        optional = [] if settings.external_data else [self.graph_weights]
        optional += [self.reference_weights] if self.reference_weights else []
        with atomic_files(*asked.values(), optional=optional) as drafts:
            yield replace(self, **dict(zip(asked, drafts, strict=True)))

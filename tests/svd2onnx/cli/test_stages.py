"""The stages that a command expects are those that its run goes through."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from svd2onnx.cli.stages import INSPECTION, compression_stages
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.study.inspection import inspect_layers
from svd2onnx.values.settings import Settings

T = TypeVar("T")


class Recorder:
    """A Track that notes each stage when it begins; one without work does not count."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, sequence: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
        for item in sequence:
            if description not in self.seen:
                self.seen.append(description)
            yield item


@pytest.mark.parametrize(
    "options",
    [
        {"method": "quantize"},
        {"method": "svd", "epsilon": 0.9},
        {"target_size": "0.5x", "recover": 2},
        {"target_size": "0.5x", "calibration_samples": 0},
    ],
    ids=str,
)
def test_compress_export(model_file: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    settings, track = Settings(provider="cpu", **options), Recorder()
    compress_export(model_file, tmp_path / "out.onnx", settings, track=track)
    assert track.seen == compression_stages(settings)


def test_layers_are_timed_where_a_latency_is_asked_for() -> None:
    stages = compression_stages(Settings(target_latency="0.5x"))
    assert stages.index("Probing") + 1 == stages.index("Timing layers")


def test_inspect(model_file: Path) -> None:
    track = Recorder()
    inspect_layers(model_file, Settings(provider="cpu"), track=track)
    assert tuple(track.seen) == INSPECTION

"""Runs whose files are not timed."""

import pytest

from svd2onnx.pipeline import final_report
from svd2onnx.reporting.report import LatencyReport


def do_not_time(patch: pytest.MonkeyPatch) -> None:
    """Timing starts processes; tests of other things do without."""
    patch.setattr(final_report, "time_file", lambda *_: [LatencyReport(1, 1.0, 1.0, 1.0)])


@pytest.fixture
def no_bench(monkeypatch: pytest.MonkeyPatch) -> None:
    do_not_time(monkeypatch)

"""A contender that fails, hangs, eats memory or crashes is a reason, and the next one runs.

``operator.call(f, x)`` stands for a contender: f is the task and x the output.
"""

import contextlib
import operator
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.worker import PeerError, worker

CALL = SimpleNamespace(name="call", run=operator.call)
COPY = SimpleNamespace(name="copy", run=shutil.copyfile)


@pytest.mark.parametrize(
    ("minutes", "what", "argument", "reason"),
    [
        (1.0, int, "five", r"^ValueError: invalid literal for int\(\) with base 10: 'five'$"),
        (1.0, os._exit, 3, r"^its process ended with exit code 3$"),
        (0.01, time.sleep, 60, r"^stopped: it needs more than 0\.01 minutes$"),
        pytest.param(
            *(1.0, list, range(300_000_000), r"^stopped: it needs more than 0\.3 GB of memory$"),
            marks=pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the memory"),
        ),
    ],
    ids=["raises", "ends", "hangs", "grows"],
)
def test_failure_is_a_reason_and_the_next_one_runs(
    tmp_path: Path, minutes: float, what: Callable[..., Any], argument: object, reason: str
) -> None:
    (tmp_path / "in").write_text("done")
    with worker(minutes, gigabytes=0.3) as other:
        with pytest.raises(PeerError, match=reason):
            other.compress(what, CALL, argument)
        other.minutes = 1.0
        other.compress(tmp_path / "in", COPY, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "done"


def test_what_it_prints_is_not_seen(capfd: pytest.CaptureFixture[str]) -> None:
    with worker(minutes=1.0, gigabytes=1.0) as other:
        other.compress(print, CALL, "noise")
    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the memory")
def test_a_large_process_serves_one_contender_alone(tmp_path: Path) -> None:
    """What it holds may be of use to the contender's other settings."""
    with worker(minutes=1.0, gigabytes=1.0) as other:
        other.compress(len, CALL, "noise")
        first = other._process
        assert first is not None
        other.compress(len, CALL, "noise")
        assert other._process is first
        other.gigabytes = 0.04  # a fresh process holds more than a quarter of it
        (tmp_path / "in").write_text("done")
        with contextlib.suppress(PeerError):
            other.compress(tmp_path / "in", COPY, tmp_path / "out")
        assert not first.is_alive()

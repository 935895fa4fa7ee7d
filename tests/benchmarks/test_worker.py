"""A contender that fails, hangs, eats memory or crashes is a reason, and the next one runs.

``operator.call(f, x)`` stands for a contender: f is the task and x the output.
"""

import operator
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.worker import PeerError, Worker, worker

CALL = SimpleNamespace(run=operator.call)
COPY = SimpleNamespace(run=shutil.copyfile)


@pytest.fixture(scope="module")
def other() -> Iterator[Worker]:
    with worker(minutes=0.05, gigabytes=1.0) as started:
        yield started


@pytest.mark.parametrize(
    ("what", "argument", "reason"),
    [
        (int, "five", r"^ValueError: invalid literal for int\(\) with base 10: 'five'$"),
        (os._exit, 3, r"^its process ended with exit code 3$"),
        (time.sleep, 60, r"^stopped: it needs more than 0\.05 minutes$"),
        pytest.param(
            list,
            range(300_000_000),
            r"^stopped: it needs more than 1 GB of memory$",
            marks=pytest.mark.skipif(sys.platform != "linux", reason="nothing tells the memory"),
        ),
    ],
    ids=["raises", "ends", "hangs", "grows"],
)
def test_failure_is_a_reason_and_the_next_one_runs(
    other: Worker, tmp_path: Path, what: Callable[..., Any], argument: object, reason: str
) -> None:
    with pytest.raises(PeerError, match=reason):
        other.compress(what, CALL, argument)
    (tmp_path / "in").write_text("done")
    other.compress(tmp_path / "in", COPY, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "done"


def test_what_it_prints_is_not_seen(other: Worker, capfd: pytest.CaptureFixture[str]) -> None:
    other.compress(print, CALL, "noise")
    assert capfd.readouterr() == ("", "")

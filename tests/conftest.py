"""What every test shares: one thread, because small steps on busy cores are slower with more; no terminal.

pytest-xdist tells its workers the width of the terminal that it writes to, where svd2onnx has none.

Every ONNX file that a test lets svd2onnx write is looked at when the test ends.

Timed runs do not wait for the threads of the session before to come to rest: that is 6 s for each file, and
no test asks how fast its networks are.
"""

import os
from collections.abc import Iterator

import pytest
import torch

from svd2onnx.deployment import generation
from svd2onnx_runtime import timing
from tests.written_graphs import THOROUGH, WrittenGraphs, watch

_WRITTEN = pytest.StashKey[WrittenGraphs]()

torch.set_num_threads(1)
os.environ.pop("COLUMNS", None)


@pytest.fixture(scope="session", autouse=True)
def _no_rest() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "_REST", 1e-4)
        patch.setattr(generation, "_REST_S", 1e-4)
        yield


@pytest.fixture(scope="session")
def written_graphs(request: pytest.FixtureRequest) -> Iterator[WrittenGraphs]:
    with pytest.MonkeyPatch.context() as patch:
        written = watch(patch)
        request.config.stash[_WRITTEN] = written
        yield written


@pytest.fixture(autouse=True)
def _graphs_are_valid(written_graphs: WrittenGraphs) -> Iterator[None]:
    yield
    problems = list(written_graphs.problems())
    assert not problems, "\n".join(problems)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    written = config.stash.get(_WRITTEN, None)
    if written is not None and THOROUGH:
        terminalreporter.write_line(written.summary())

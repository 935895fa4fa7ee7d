"""The page in a Chromium without a screen: Python's numbers, from onnxruntime-web, served on this machine."""

import functools
import json
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.examples.conftest import EXAMPLES, Served, assert_same, need

FOLDER = EXAMPLES / "browser"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    handler = functools.partial(Quiet, directory=EXAMPLES)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/browser/index.html"
        server.shutdown()


def use_page(address: str, graph: Path, inputs: Path) -> subprocess.CompletedProcess[str]:
    chromium = shutil.which("chromium")
    need(chromium is not None, "no chromium here")
    need(shutil.which("node") is not None, "no node here")
    for package in ("onnxruntime-web", "playwright-core"):
        need((FOLDER / "node_modules" / package).is_dir(), f"no {package} in examples/browser")
    command = ["node", FOLDER / "drive.js", address, chromium, graph, inputs]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_it_gives_the_numbers_of_python(address: str, served: Served) -> None:
    done = use_page(address, served.graph, served.body_file)
    assert done.returncode == 0, done.stderr
    (scores,) = json.loads(done.stdout).values()
    assert_same(scores, served.float_scores)


def test_what_is_wrong_is_said_on_the_page(address: str, served: Served, tmp_path: Path) -> None:
    (tmp_path / "inputs.json").write_text('{"pixels": [1]}')
    done = use_page(address, served.graph, tmp_path / "inputs.json")
    assert done.returncode == 1
    assert "Invalid rank for input: pixels" in done.stderr

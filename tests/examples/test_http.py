"""The HTTP service: Python's numbers, from the app and from a real server; one sentence for what is wrong."""

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from fastapi.testclient import TestClient

from tests.examples.conftest import EXAMPLES, Served, assert_same

FOLDER = EXAMPLES / "http"
IMAGE = "[" + ",".join(["[" + ",".join(["0"] * 8) + "]"] * 8) + "]"


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        from bodies import Limits
        from service import create_app

        with TestClient(create_app(served.graph, Limits(max_bytes=20_000, max_dim=16), 1)) as client:
            yield client
        for name in ("service", "bodies"):
            sys.modules.pop(name)


def test_it_tells_what_the_graph_takes_and_gives(client: TestClient) -> None:
    described = client.get("/").json()
    assert described["inputs"] == {"pixels": {"type": "tensor(float)", "shape": ["batch", 1, 8, 8]}}
    ((_, scores),) = described["outputs"].items()
    assert scores == {"type": "tensor(float)", "shape": ["batch", 10]}


def test_it_gives_the_numbers_of_python(client: TestClient, served: Served) -> None:
    response = client.post("/", content=served.body)
    assert response.status_code == 200
    (scores,) = response.json().values()
    assert_same(scores, served.scores)


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        ("", 400, "the body is no JSON"),
        ("pixels", 400, "the body is no JSON"),
        (b"\xff\xfe\x00", 400, "the body is no JSON"),
        ("[" * 9000, 400, "the body is no JSON"),
        ("[1, 2]", 400, "the body is a list: send an object"),
        ("{}", 422, "the graph needs input 'pixels', found nothing: add it"),
        ('{"image": [1]}', 422, "the graph has no input 'image': it takes pixels"),
        ('{"pixels": [[1, 2], [3]]}', 422, "the lists of 'pixels' have no common shape"),
        ('{"pixels": "8x8"}', 422, "the values of 'pixels' must be numbers that float32 can hold"),
        ('{"pixels": null}', 422, "the values of 'pixels' must be numbers"),
        ('{"pixels": {"0": 1}}', 422, "the values of 'pixels' must be numbers"),
        ('{"pixels": [NaN]}', 422, "the values of 'pixels' must be numbers"),
        ('{"pixels": [1e39]}', 422, "the values of 'pixels' must be numbers"),
        ('{"pixels": [1e999]}', 422, "the values of 'pixels' must be numbers"),
        ('{"pixels": [1, 2]}', 422, "the arrays do not fit the graph"),
        (f'{{"pixels": [[{IMAGE[1:]}]}}', 422, "the arrays do not fit the graph"),
        ('{"pixels": [[[[]]]]}', 422, "the arrays do not fit the graph"),
        ('{"pixels": [' + ",".join([f"[{IMAGE}]"] * 17) + "]}", 422, "batch of 'pixels' is 17: 1 to 16"),
        (
            '{"pixels": [[[[1e38' + ",1e38" * 7 + "]" + (",[" + "1e38," * 7 + "-1e38]") * 7 + "]]]}",
            422,
            "finite",
        ),
        (" " * 20_001, 413, "the body is longer than 20000 bytes"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_a_bad_request_is_answered_with_one_sentence(
    client: TestClient, body: str | bytes, status: int, sentence: str
) -> None:
    response = client.post("/", content=body)
    assert response.status_code == status
    detail = response.json()["detail"]
    assert sentence in detail
    assert "\n" not in detail
    assert "Traceback" not in detail


def test_a_long_body_need_not_tell_its_length(client: TestClient) -> None:
    response = client.post("/", content=iter([b" " * 1000] * 21))
    assert "content-length" not in response.request.headers
    assert response.status_code == 413


def test_a_real_server_gives_the_numbers_of_python(served: Served) -> None:
    command = [sys.executable, FOLDER / "service.py", served.graph, "--port", "0", "--threads", "1"]
    server = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        lines = iter(server.stderr.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"http://127\.0\.0\.1:\d+", line)))
        response = httpx2.post(f"{address}/", content=served.body, timeout=60, trust_env=False)
        assert response.status_code == 200
        (scores,) = response.json().values()
        assert_same(scores, served.scores)
        assert httpx2.post(f"{address}/", content="{}", timeout=60, trust_env=False).status_code == 422
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) in (0, -signal.SIGTERM)
    finally:
        server.kill()
        server.wait()
        server.stderr.close()


def test_a_graph_that_is_missing_is_one_line(tmp_path: Path) -> None:
    command = [sys.executable, FOLDER / "service.py", tmp_path / "none.onnx"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: expected an ONNX file at ")

"""Wherever layers and points are worked on, and whatever is lost, the results are the same bytes."""

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import joblib
import pytest
import torch

from svd2onnx.compute.executors import current, executor
from svd2onnx.compute.workers import finished
from svd2onnx.values.errors import ExecutorError
from tests.svd2onnx.conftest import MODEL_FILE
from tests.svd2onnx.executor_child import grow, kill_one, made
from tests.svd2onnx.processes import await_that, contents, descendants, finish, parent_of, start

RAY = pytest.param(
    "ray",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("ray") is None,
        reason="--executor ray needs Ray: pip install 'svd2onnx[ray]'",
    ),
)
OTHERS = pytest.mark.parametrize("name", ["processes", RAY])
linux = pytest.mark.skipif(sys.platform != "linux", reason="finds workers by /proc")
several = pytest.mark.skipif(joblib.cpu_count() < 2, reason="one core has no workers but the process itself")
CHILD = (sys.executable, "-m", "tests.svd2onnx.executor_child")
COMMAND = (
    *(sys.executable, "-c"),
    "import sys; from tests.svd2onnx import executor_child as child; from svd2onnx.cli.main import main; "
    "'ray' in sys.argv and child.start_ray(); main()",
)


@pytest.fixture(autouse=True)
def ray_folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A short one, because Ray's sockets are in it."""
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")
    monkeypatch.setenv("RAY_TMPDIR", folder)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    yield
    shutil.rmtree(folder, ignore_errors=True)


def assert_all_end(pids: set[int]) -> None:
    """Ray's processes end soon after the one that started them."""
    limit = time.monotonic() + 60
    while alive := {pid for pid in pids if parent_of(pid)}:
        assert time.monotonic() < limit, f"these are left: {alive}"
        time.sleep(0.1)


@linux
@several
@OTHERS
def test_the_bytes_are_those_of_threads_though_a_worker_is_killed(name: str) -> None:
    process = start([name, "lose"], command=CHILD)
    pids: set[int] = set()
    while process.poll() is None:
        pids |= descendants(process.pid).keys()
        time.sleep(0.5)
    code, out, err = finish(process)
    assert code == 0, err
    assert made() in out.split()  # Ray tells of a loss there too
    assert "a worker was lost: what it had in hand is done again" in err
    assert_all_end(pids)


@several
@pytest.mark.skipif(
    importlib.util.find_spec("psutil") is None, reason="joblib looks at the memory of workers by psutil"
)
@pytest.mark.filterwarnings("default")  # as for a user; "error" would end joblib's thread, and all would wait
def test_workers_that_grow_are_replaced_without_a_word() -> None:
    with executor("processes"), warnings.catch_warnings(record=True) as told:
        workers = [pid for _, pid in finished(grow, range(6), lambda item: (item,))]
    assert len(set(workers)) > joblib.cpu_count()
    assert not told


@linux
@several
@pytest.mark.slow
@OTHERS
def test_workers_that_are_lost_again_and_again_end_the_run_in_one_line(name: str) -> None:
    code, out, err = finish(start([name, "hopeless"], command=CHILD))
    assert code == 0, err
    assert "workers were lost 3 times in a row: most likely they ran out of memory" in out
    assert err.count("a worker was lost") == 2


@linux
@pytest.mark.slow
@pytest.mark.parametrize("name", [RAY])
def test_the_bytes_are_those_of_threads_though_a_machine_goes_away(name: str) -> None:
    code, out, err = finish(start([name, "machine"], command=CHILD))
    assert code == 0, err
    assert made() in out.split()  # Ray tells of a loss there too
    assert "a worker was lost: what it had in hand is done again" in err


def test_an_executor_that_is_not_there_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        pytest.raises(ExecutorError, match=r"must be one of .*'ray'.*, not 'dusk'"),
        executor("dusk"),
    ):
        pass
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ExecutorError, match=r"pip install 'svd2onnx\[ray\]'"), executor("ray"):
        pass


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@several
def test_auto_starts_processes_for_much_work_alone(two_threads: None) -> None:
    cpu, much = torch.device("cpu"), 1 << 22
    with executor("auto"):
        assert current().in_process
        assert current().suited(much, cpu).name == "processes"
        assert current().suited(much - 1, cpu).name == "threads"
        assert current().suited(much, torch.device("cuda")).name == "threads"
        items = [-1, -2, -3]
        workers = [pid for _, pid in finished(os.getppid, items, lambda _: (), weights=much)]
        assert set(workers) == {os.getpid()}
        here = [pid for _, pid in finished(os.getppid, items, lambda _: (), weights=0)]
        assert set(here) == {os.getppid()}
    with executor("threads"):
        assert current().suited(much, cpu).name == "threads"


def files_of(folder: Path, name: str, command: str, *options: object) -> dict[str, bytes]:
    """What a run writes, without times. One of its workers is killed: of Ray's in the middle of a task."""
    (folder / name).mkdir()
    source = folder / "network.py"
    source.write_text(f"{MODEL_FILE}\nprint('this is read')\n")
    output = {"compress-export": folder / name / "out.onnx", "sweep": folder / name}[command]
    shared = (source, "-o", output, "--provider", "cpu", "--executor", name, "--json")
    process = start([command, *shared, *options, "--log-level", "warning"], command=COMMAND)
    if name != "threads":
        kill_one(name, process.pid)
    code, out, err = finish(process)
    assert code == 0, err
    assert ("a worker was lost" in err) == (name != "threads")
    assert json.loads(out)  # and nothing else
    files = contents(folder / name)
    own_to_a_run = ("output", "seconds", "latency", "created", "command")
    for path, times in (("out.onnx.report.json", own_to_a_run), ("sweep.json", ())):
        if path in files:
            record = json.loads(files[path])
            for one in (record, *record.get("points", ())):
                for own in (*times, "seconds"):
                    one.pop(own, None)
            files[path] = json.dumps(record).encode()
    files.pop("sweep.csv", None)  # of the same points
    files.pop("sweep.png", None)
    return files


@linux
@several
@pytest.mark.slow
@OTHERS
def test_a_whole_run_writes_the_same_files(tmp_path: Path, name: str) -> None:
    options = ("compress-export", "--target-size", "0.3x", "--recover", "3")
    expected = files_of(tmp_path, "threads", *options)
    assert set(expected) == {"out.onnx", "out.onnx.plan.json", "out.onnx.report.json"}
    assert files_of(tmp_path, name, *options) == expected


@linux
@several
@pytest.mark.slow
@OTHERS
def test_a_sweep_measures_the_same_points(tmp_path: Path, name: str) -> None:
    options = ("sweep", "--bits", "4", "--epsilon", "0.3", "--size", "0.3", "--recover", "3")
    expected = files_of(tmp_path, "threads", *options)
    assert len(json.loads(expected["sweep.json"])["points"]) == 5
    assert files_of(tmp_path, name, *options) == expected


@linux
@several
@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
@OTHERS
def test_an_interrupted_run_ends_its_workers(tmp_path: Path, name: str, number: signal.Signals) -> None:
    source = tmp_path / "network.py"
    source.write_text(MODEL_FILE.replace("128", "512"))
    command = ["compress-export", source, "-o", tmp_path / "out.onnx", "--executor", name]
    process = start(command)
    busy = {"ray": "ray::PoolActor", "processes": "LokyProcess"}[name]
    await_that(lambda: any(busy in line for line in descendants(process.pid).values()), process)
    pids = set(descendants(process.pid))
    process.send_signal(number)
    code, out, err = finish(process)
    assert (code, out) == (128 + number, "")
    assert err.startswith(f"error: interrupted by {number.name}")
    assert err.count("\n") == 1
    assert set(contents(tmp_path)) == {"network.py"}
    assert_all_end(pids)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_cluster_that_is_not_there_is_told_in_one_line(tmp_path: Path) -> None:
    source = tmp_path / "network.py"
    source.write_text(MODEL_FILE)
    command = (sys.executable, "-m", "svd2onnx", "compress-export", str(source), "--executor", "ray")
    environment = {**os.environ, "RAY_ADDRESS": "127.0.0.1:1"}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: cannot join the Ray cluster at RAY_ADDRESS=127.0.0.1:1: ")
    assert done.stderr.count("\n") == 1

"""Runs of the command line in processes of their own, which tests interrupt, kill and limit."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

COMMAND = (sys.executable, "-c", "from svd2onnx.cli.main import main; main()")
PREVIOUS = {
    "out.onnx": b"old graph",
    "out.onnx.report.json": b"old report",
    "out.onnx.plan.json": b"old plan",
}


def start(
    arguments: Sequence[object],
    *,
    command: Sequence[str] = COMMAND,
    file_bytes: int | None = None,
    hash_seed: int = 0,
) -> subprocess.Popen[str]:
    """A run with the signal handlers of a terminal, whatever those of the tests are.

    ``file_bytes`` limits the files that it writes.
    """

    def prepare() -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        if file_bytes is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

    paths = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [*command, *map(str, arguments)],
        env={
            **os.environ,
            "PYTHONPATH": paths,
            "PYTHONHASHSEED": str(hash_seed),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
        },
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Exit code, stdout and stderr."""
    out, err = process.communicate(timeout=500)
    return process.returncode, out, err


def await_that(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Wait until ``condition`` holds, as long as ``process`` runs."""
    while process.poll() is None and not condition():
        time.sleep(0.01)


def kill_after(process: subprocess.Popen[str], seconds: float) -> int:
    """Kill ``process`` unless it ends before; its exit code."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    process.kill()
    process.communicate()
    return process.returncode


def contents(folder: Path) -> dict[str, bytes]:
    """The files that lie in ``folder`` itself, hidden ones too."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def descendants(pid: int) -> dict[int, str]:
    """The live processes below ``pid``, each with its command line, as /proc tells of them."""
    parents, lines = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        own = int(folder.name)
        with contextlib.suppress(OSError):
            if parent := parent_of(own):
                lines[own] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                parents[own] = parent
    found: dict[int, str] = {}
    while more := {own: lines[own] for own, parent in parents.items() if parent in (pid, *found)}:
        if more.keys() <= found.keys():
            break
        found |= more
    return found


def parent_of(pid: int) -> int | None:
    """The process that a live one belongs to; None of one that has ended, though nobody has asked for it."""
    with contextlib.suppress(OSError):
        state, parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[:2]
        if state != "Z":
            return int(parent)
    return None

"""What loading one graph and a first run cost: seconds and memory, in a process of its own.

Within one process, memory that one session freed serves the next, and hides what that one needs. So
each graph is loaded in a fresh Python process, which runs it once and compares the memory with what
it was before. By then it has run a graph of one node, because the libraries' own code, CUDA's above
all, is no cost of the graph. The seconds vary most, so three processes are asked, and the one in the
middle is taken.

On the GPU the memory in use before and after is compared. That is the peak of both, because
onnxruntime keeps what it has once taken; other programs on that GPU would show in it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import GraphError
from svd2onnx_runtime.machine import gpu_memory_used
from svd2onnx_runtime.onenode import one_node_graph
from svd2onnx_runtime.session import Array, open_session, provider_of, run

_CHILD = "from svd2onnx_runtime.memory import measure_job; measure_job()"
_PROCESSES = 3
_STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Footprint:
    """Seconds to open a session, and the memory (10^6 bytes) that it and one run added.

    ``load_peak_mb`` is the most host memory held at any time while loading, ``run_peak_mb`` until
    the first run was done, and ``resident_mb`` what was held after it. The two of the GPU
    (``gpu_load_mb``, ``gpu_run_mb``) are None on the CPU, and any is None where the system does not tell.
    """

    load_s: float
    load_peak_mb: float | None
    run_peak_mb: float | None
    resident_mb: float | None
    gpu_load_mb: float | None
    gpu_run_mb: float | None


def measure_footprint(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
) -> Footprint:
    """Load ``path`` and run it once on ``inputs`` in fresh processes; GraphError if that fails."""
    measured = [_in_a_process(path, inputs, provider, threads) for _ in range(_PROCESSES)]
    return sorted(measured, key=lambda footprint: footprint.load_s)[_PROCESSES // 2]


def _in_a_process(
    path: str | os.PathLike[str], inputs: Mapping[str, Array], provider: str, threads: int | None
) -> Footprint:
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder) / "job.json", Path(folder) / "result.json"
        for i, array in enumerate(inputs.values()):  # graph names may hold slashes: number them
            np.save(Path(folder) / f"{i}.npy", array, allow_pickle=False)
        job.write_text(
            json.dumps(
                {
                    "path": os.path.abspath(path),
                    "inputs": list(inputs),
                    "arrays": folder,
                    "result": str(result),
                    "provider": provider,
                    "threads": threads,
                }
            ),
            encoding="utf-8",
        )
        # The child finds this very package, installed or not.
        package_root = str(Path(__file__).resolve().parent.parent)
        search = os.pathsep.join(filter(None, [package_root, os.environ.get("PYTHONPATH")]))
        child = subprocess.run(
            [sys.executable, "-c", _CHILD, str(job)],
            env={**os.environ, "PYTHONPATH": search},
            capture_output=True,
            text=True,
            check=False,
        )
        if child.returncode != 0:
            last = (child.stderr.strip().splitlines() or ["no message"])[-1]
            raise GraphError(
                f"measuring the memory of {path} in a process of its own failed with exit status "
                f"{child.returncode}: {last}"
            )
        return Footprint(**json.loads(result.read_text(encoding="utf-8")))


def _measure(job: Mapping[str, Any]) -> Footprint:
    """The child's side: load, run once, compare."""
    folder = Path(job["arrays"])
    inputs = {name: np.load(folder / f"{i}.npy") for i, name in enumerate(job["inputs"])}
    provider = _warm_up(folder / "warm_up.onnx", job["provider"])
    gpu = gpu_memory_used if provider == "cuda" else lambda: None
    _forget_peak()
    before, gpu_before = _resident_bytes(), gpu()
    start = time.perf_counter()
    session = open_session(job["path"], job["provider"], threads=job["threads"])
    load_s = time.perf_counter() - start
    load_peak, gpu_loaded = _peak_bytes(), gpu()
    run(session, inputs)
    resident = _resident_bytes()
    # Linux keeps its counts to some pages: a peak may be told as less than what is held.
    peaks = [size for size in (load_peak, resident, _peak_bytes()) if size is not None]
    return Footprint(
        load_s=load_s,
        load_peak_mb=_added_mb(before, load_peak),
        run_peak_mb=_added_mb(before, max(peaks, default=None)),
        resident_mb=_added_mb(before, resident),
        gpu_load_mb=_added_mb(gpu_before, gpu_loaded),
        gpu_run_mb=_added_mb(gpu_before, gpu()),
    )


def _warm_up(path: Path, provider: str) -> str:
    """Run a graph of one node, a small product of matrices, and tell the provider that it ran on."""
    factors = {name: np.ones((64, 64), np.float32) for name in "ab"}
    path.write_bytes(one_node_graph("MatMul", factors, "float32"))
    session = open_session(path, provider)
    run(session, factors)
    return provider_of(session)


def _added_mb(before: int | None, after: int | None) -> float | None:
    return None if before is None or after is None else (after - before) / 1e6


def _resident_bytes() -> int | None:
    """This process's resident memory now (Linux) or at its peak (macOS); None elsewhere."""
    return _status_bytes("VmRSS")


def _peak_bytes() -> int | None:
    """The most resident memory since ``_forget_peak`` (Linux) or ever (macOS); None elsewhere."""
    return _status_bytes("VmHWM")


def _status_bytes(entry: str) -> int | None:
    if _STATUS.exists():
        found = re.search(rf"^{entry}:\s*(\d+) kB", _STATUS.read_text(), re.MULTILINE)
        return int(found[1]) * 1024 if found else None
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def _forget_peak() -> None:
    """Let Linux count the peak from here on; where it does not, an earlier one may stand."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_job() -> None:
    """The child's main function: the job file is named on its command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["result"]).write_text(json.dumps(asdict(_measure(job))), encoding="utf-8")

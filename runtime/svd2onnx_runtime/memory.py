"""What loading one graph costs: seconds and resident memory, in a process of its own.

Within one process, memory that one session freed serves the next, and hides what that one needs. So
each graph is loaded in a fresh Python process, which runs it once and compares its resident memory
with what it was before. Host memory only: what a CUDA session holds on the GPU does not show.
"""

from __future__ import annotations

import json
import os
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
from svd2onnx_runtime.session import Array, open_session, run

_CHILD = "from svd2onnx_runtime.memory import measure_job; measure_job()"


@dataclass(frozen=True)
class Footprint:
    """Seconds to open a session, and the memory (10^6 bytes) that it and one run added.

    ``resident_mb`` is None where the system does not tell.
    """

    load_s: float
    resident_mb: float | None


def measure_footprint(
    path: str | os.PathLike[str],
    inputs: Mapping[str, Array],
    provider: str = "auto",
    threads: int | None = None,
) -> Footprint:
    """Load ``path`` and run it once on ``inputs`` in a fresh process; GraphError if that fails."""
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
    import onnxruntime  # noqa: F401  (its own code is no cost of the graph)

    before = _resident_bytes()
    start = time.perf_counter()
    session = open_session(job["path"], job["provider"], threads=job["threads"])
    load_s = time.perf_counter() - start
    run(session, inputs)
    after = _resident_bytes()
    added = None if before is None or after is None else (after - before) / 1e6
    return Footprint(load_s=load_s, resident_mb=added)


def _resident_bytes() -> int | None:
    """This process's resident memory now (Linux) or at its peak (macOS); None elsewhere."""
    statm = Path("/proc/self/statm")
    if statm.exists():
        return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    if sys.platform == "darwin":
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return None


def measure_job() -> None:
    """The child's main function: the job file is named on its command line."""
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(job["result"]).write_text(json.dumps(asdict(_measure(job))), encoding="utf-8")

"""One compression in a process of its own, with the time of each stage and the memory that it took.

    python -m benchmarks.stages SOURCE OUTPUT '{"method": "auto", ...}'

prints a JSON record; the settings are those of ``svd2onnx.values.settings.Settings``, with paths as text.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
_LOOK = 0.1  # seconds between two looks at the memory
OTHER = "other"
"""The stage of what no stage tells of: reading the network, solving for the plan, exporting in float32."""


class Stages:
    """A ``Track`` that adds up the seconds of each description; a stage within a stage counts for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._stack, self._since = [OTHER], time.perf_counter()

    def __call__(self, sequence: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        self._enter(description)
        try:
            yield from sequence
        finally:
            self.settle()
            self._stack.pop()

    @property
    def current(self) -> str:
        """The stage that goes on."""
        return self._stack[-1]

    def settle(self) -> None:
        """Give the stage that goes on the time that has passed."""
        now = time.perf_counter()
        self.seconds[self.current] = self.seconds.get(self.current, 0.0) + now - self._since
        self._since = now

    def _enter(self, description: str) -> None:
        self.settle()
        self._stack.append(description)


class MemoryPeak:
    """The most memory that this process and its workers held, in bytes; nothing where nothing tells.

    ``own`` is what they alone could give back, in each stage. ``mapped`` counts pages of files besides, which
    the system drops when it needs the room.
    """

    def __init__(self, stages: Stages) -> None:
        self.own: dict[str, int] = {}
        self.mapped = 0
        self._stages = stages
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        while Path("/proc").is_dir():
            held = [_held(process) for process in (os.getpid(), *_descendants(os.getpid()))]
            stage = self._stages.current
            self.own[stage] = max(self.own.get(stage, 0), sum(own for own, _ in held))
            self.mapped = max(self.mapped, sum(mapped for _, mapped in held))
            time.sleep(_LOOK)


def _held(process: int) -> tuple[int, int]:
    """Own and all resident bytes; none of a process that has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return _bytes(fields["RssAnon"]), _bytes(fields["VmRSS"])
    except (OSError, KeyError):
        return 0, 0


def _descendants(process: int) -> Iterator[int]:
    try:
        children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    except OSError:
        return
    for child in map(int, children):
        yield child
        yield from _descendants(child)


def _bytes(field: str) -> int:
    return int(field.split()[0]) * 1024


def _processor_seconds() -> float:
    """Of this process and of workers that have ended, which is when the system adds theirs."""
    own = os.times()
    return own.user + own.system + own.children_user + own.children_system


def main(source: Path, output: Path, settings: dict[str, Any]) -> None:
    """Compress and print the record."""
    stages = Stages()
    memory = MemoryPeak(stages)
    from svd2onnx.compute.executors import executor
    from svd2onnx.pipeline.compress_export import compress_export
    from svd2onnx.values.settings import Settings

    calibration = settings.pop("calibration", None)
    chosen = Settings(**settings, calibration=Path(calibration) if calibration else None)
    with executor("auto"):  # as the command does
        report = compress_export(source, output, chosen, track=stages)
    stages.settle()
    record = {
        "seconds": sum(stages.seconds.values()),
        "processor_seconds": _processor_seconds(),
        "stages": stages.seconds,
        "own_bytes": max(memory.own.values(), default=0),
        "stages_own_bytes": memory.own,
        "mapped_bytes": memory.mapped,
        "float_bytes": report.float_bytes,
        "file_bytes": report.file_bytes,
        "layers": sum(layer.form != "float" for layer in report.layers),
        "strict_relative_error": report.strict_relative_error,
    }
    sys.stdout.write(json.dumps(record) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks.stages", description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("source", type=Path, help="a model file or another source")
    parser.add_argument("output", type=Path, help="the ONNX file to write")
    parser.add_argument("settings", type=json.loads, help="a JSON object")
    return parser


if __name__ == "__main__":
    main(**vars(_parser().parse_args()))

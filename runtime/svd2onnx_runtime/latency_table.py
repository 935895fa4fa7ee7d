"""What one layer costs in each of its forms on one machine: measured, kept as JSON, looked up by a planner.

    cold    the caches were emptied of weights before the call: they come from memory, as in a large network
    hot     the same call once more: weights are where the last one left them, as in a small network

Inputs and outputs are in the caches in both, as what the layer before has just written.

A table is true of one machine, provider, number of threads and onnxruntime, so it names all of them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from svd2onnx_runtime.errors import InputsError, one_line
from svd2onnx_runtime.installation import onnxruntime
from svd2onnx_runtime.machine import device_name
from svd2onnx_runtime.session import open_session, ort_version, provider_of, synthetic_inputs
from svd2onnx_runtime.timing import BoundCall

FORMAT = "svd2onnx-latency/1"
_FLUSHED = 1 << 26
"""Bytes written to empty the caches, twice what today's processors and GPUs hold."""

_MOST_MS = 1e6


@dataclass(frozen=True)
class Conditions:
    """What a table is true of: a processor or a GPU; ``threads`` None is onnxruntime's own choice."""

    device: str
    provider: str
    onnxruntime: str
    threads: int | None

    @classmethod
    def here(cls, provider: str, threads: int | None) -> Conditions:
        """Those of this machine."""
        return cls(device_name(provider), provider, ort_version(), threads)


@dataclass(frozen=True)
class LayerKey:
    """A layer in one form: ``shape`` of the weight [out, in], ``leading`` axes of its inputs [..., in]."""

    kind: str
    form: str
    shape: tuple[int, ...]
    leading: tuple[int, ...]


@dataclass(frozen=True)
class LayerLatency:
    """Times of one call in ms, by ``typical``."""

    cold_ms: float
    hot_ms: float


@dataclass(frozen=True)
class LatencyTable:
    """The latencies that were measured under ``conditions``."""

    conditions: Conditions
    entries: Mapping[LayerKey, LayerLatency]

    def extended(self, entries: Mapping[LayerKey, LayerLatency]) -> LatencyTable:
        """This table and ``entries``, which win where both have a value."""
        return LatencyTable(self.conditions, {**self.entries, **entries})

    def to_json(self) -> str:
        """One line for each entry, so that two tables can be compared line by line."""
        lines = [json.dumps({**asdict(key), **asdict(value)}) for key, value in self.entries.items()]
        head = json.dumps({"format": FORMAT, **asdict(self.conditions)})[:-1]
        return f'{head}, "entries": [\n' + ",\n".join(lines) + "\n]}\n"

    @classmethod
    def from_json(cls, text: str) -> LatencyTable:
        """The table that ``to_json`` wrote.

        Raises:
            InputsError: the text is no such table.
        """
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError(record["format"])
            entries = {_key(entry): _latency(entry) for entry in record["entries"]}
            named = (record[name] for name in ("device", "provider", "onnxruntime", "threads"))
            return cls(Conditions(*named), entries)
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise InputsError(
                f'a latency table is JSON with "format": "{FORMAT}": {one_line(error)}'
            ) from error


def time_layers(
    paths: Sequence[str | os.PathLike[str]],
    copies: int,
    provider: str = "auto",
    threads: int | None = None,
    repeats: int = 12,
) -> list[LayerLatency]:
    """The latency of one layer of each graph; every graph holds ``copies`` of its layer side by side.

    The graphs take turns and each call follows a flush of the caches, once, and itself, once.
    Raises ProviderError and GraphError.
    """
    sessions = [open_session(path, provider, threads=threads) for path in paths]
    calls = [BoundCall(s, synthetic_inputs(s, {}), provider_of(s)) for s in sessions]
    flush = _flusher(provider_of(sessions[0]))
    seconds = np.empty((repeats, len(calls), 2))
    for call in calls:
        call()
    for turn in range(repeats):
        for i, call in enumerate(calls):
            flush()
            call.touch()
            for again in (0, 1):
                start = time.perf_counter()
                call()
                seconds[turn, i, again] = time.perf_counter() - start
    return [LayerLatency(float(cold), float(hot)) for cold, hot in typical(seconds) * 1e3 / copies]


def typical(seconds: Any) -> Any:
    """The time of a run that nothing disturbed, from ``seconds`` [runs, ...]: the fastest tenth.

    Other work on the machine only adds time, and to a whole network far more often than to one layer, so
    that medians of the two would not fit together.
    """
    return np.percentile(seconds, 10, axis=0)


def _flusher(provider: str) -> Callable[[], object]:
    """What writes more bytes than the caches of the device hold."""
    array = np.ones(_FLUSHED, dtype=np.uint8)  # zeros would be one page of memory, however many there are
    if provider == "cpu":
        # A copy would not do: the C library writes large ones past the caches.
        return lambda: np.add(array, 1, out=array)
    buffer = onnxruntime().OrtValue.ortvalue_from_numpy(array, provider, 0)
    return lambda: buffer.update_inplace(array)


def _key(entry: Mapping[str, Any]) -> LayerKey:
    return LayerKey(
        str(entry["kind"]),
        str(entry["form"]),
        tuple(int(size) for size in entry["shape"]),
        tuple(int(size) for size in entry["leading"]),
    )


def _latency(entry: Mapping[str, Any]) -> LayerLatency:
    return LayerLatency(*(_milliseconds(entry[name]) for name in ("cold_ms", "hot_ms")))


def _milliseconds(value: Any) -> float:
    time = float(value)
    if not 0 < time <= _MOST_MS:
        raise ValueError(f"a layer takes between 0 and {_MOST_MS:.0e} ms, not {time}")
    return time

"""The points of a sweep, and the table of them: JSON to go on from, CSV for others."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from svd2onnx.values.errors import PlanError, one_line

FORMAT = "svd2onnx-sweep/1"


@dataclass(frozen=True, order=True)
class Setting:
    """What one point is made with.

    ``series`` is "float", "quantize" (every layer to ``bits``), "svd" (the article's rule: factors of
    ``bits``, and ``value`` is its epsilon), "planned" (``value`` is the share of the float32 file), or
    "retrained", which is that after brief retraining. ``sample`` counts the draws of calibration data.
    """

    series: str
    bits: int = 0
    value: float = 0.0
    sample: int = 0

    @property
    def curve(self) -> str:
        """The name of the line that the point lies on."""
        return f"{self.series}, {self.bits} bits" if self.bits else self.series


@dataclass(frozen=True)
class Point:
    """One file, measured by onnxruntime in a default session; or why there is none, in ``failure``.

    ``forms`` counts the layers of each form.
    """

    setting: Setting
    file_bytes: int = 0
    kept: float = 0.0
    fidelity: float = 0.0
    mean_error: float = 0.0
    standard_error: float | None = None
    predicted_error: float | None = None
    metric: dict[str, float] = field(default_factory=dict)
    forms: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0
    failure: str = ""


@dataclass(frozen=True)
class Sweep:
    """The points so far of the network in ``source``, judged by ``objective``."""

    source: str
    objective: str
    points: tuple[Point, ...] = ()

    def has(self, setting: Setting) -> bool:
        return any(point.setting == setting for point in self.points)

    def to_json(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1) + "\n"

    @classmethod
    def read(cls, path: Path, source: str, objective: str) -> Sweep:
        """The sweep in the file at ``path``; an empty one where there is none.

        Raises:
            PlanError: the file is no sweep, or one of another network.
        """
        if not path.exists():
            return cls(source, objective)
        try:
            record = json.loads(path.read_text(encoding="utf-8"))
            if record["format"] != FORMAT:
                raise ValueError(record["format"])
            found = cls(record["source"], record["objective"], tuple(map(_point, record["points"])))
        except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise PlanError(
                f'{path} is no sweep (JSON with "format": "{FORMAT}"): {one_line(error)}'
            ) from error
        if (found.source, found.objective) != (source, objective):
            raise PlanError(
                f"{path} is a sweep of {found.source}, not of {source}: give another folder with -o"
            )
        return found

    def to_csv(self) -> str:
        """A row for each point, in the order of size within each curve."""
        names = sorted({name for point in self.points for name in point.metric})
        columns = "series bits value sample file_bytes kept fidelity mean_error standard_error".split()
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, "predicted_error", *names, "seconds", "failure"])
        for point in sorted(self.points, key=lambda p: (p.setting.curve, p.file_bytes)):
            row = {**asdict(point.setting), **asdict(point)}
            metrics = [point.metric.get(name) for name in names]
            writer.writerow(
                [*(row[c] for c in columns), point.predicted_error, *metrics, point.seconds, point.failure]
            )
        return text.getvalue()


_LARGEST = 1e18
_TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "float | None": (int, float, type(None)),
    "str": str,
    "dict[str, float]": dict,
    "dict[str, int]": dict,
}


def _point(entry: Mapping[str, Any]) -> Point:
    """The point of a record; ValueError, KeyError or TypeError where ``to_json`` cannot have written it."""
    point = Point(**{**entry, "setting": Setting(**entry["setting"])})
    for own in (point.setting, point):
        for place in fields(own):
            value = getattr(own, place.name)
            if place.name == "setting":
                continue
            if not isinstance(value, _TYPES[str(place.type)]):
                raise TypeError(f"{place.name} cannot be {value!r}")
            if isinstance(value, dict):
                for number in value.values():
                    _check_number(place.name, number)
            elif not isinstance(value, str | None):
                _check_number(place.name, value)
    return point


def _check_number(name: str, value: object) -> None:
    """Metrics are the user's, and may be NaN or infinite; all else is finite."""
    if not isinstance(value, int | float) or (name != "metric" and not abs(value) <= _LARGEST):
        raise TypeError(f"{name} cannot be {value!r}")


def wanted(
    bits: Sequence[int],
    epsilons: Iterable[float],
    sizes: Iterable[float],
    *,
    samples: int = 1,
    retrained: bool = False,
) -> list[Setting]:
    """The settings of a sweep, quick ones first: those of the article's rule need no candidates priced.

    Args:
        bits: of plain quantization and of the article's factors.
        epsilons: the article's bounds of relative output errors.
        sizes: shares of the float32 file to plan for.
        samples: draws of calibration data for each of the article's points.
        retrained: whether planned points are retrained too.
    """
    settings = [Setting("float")]
    settings += [
        Setting("svd", own, value, sample)
        for sample in range(samples)
        for own in bits
        for value in sorted(set(epsilons))
    ]
    settings += [Setting("quantize", own) for own in bits]
    for series in ("planned", "retrained") if retrained else ("planned",):
        settings += [Setting(series, value=value) for value in sorted(set(sizes), reverse=True)]
    return settings

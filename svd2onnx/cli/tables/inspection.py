"""The layers of a network, and what other forms would save and cost.

Where there is room, as in a pipe, every layer is one line with all that is known. On a narrower terminal
layers stand under the block they belong to, with what counts; those that stay float are counted below.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from svd2onnx.cli.tables.layout import table
from svd2onnx.reporting.wording import size
from svd2onnx.study.inspection import ENERGIES, LayerInspection, Spectrum, total_bytes

_FORMS = ("8 bits", "4 bits", "pair")
_PERCENTS = "/".join(f"{share:.0%}" for share in ENERGIES)
_NARROW = 16
"""Columns that a name has at least; of a longer one the end is shown."""


@dataclass(frozen=True)
class InspectionTable:
    """Either table, as the console is wide enough."""

    rows: Sequence[LayerInspection]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[RenderableType]:
        wide = _wide(self.rows)
        if Measurement.get(console, options.update(max_width=1000), wide).maximum <= options.max_width:
            yield wide
        else:
            yield from _narrow(self.rows, options.max_width)


def _wide(rows: Sequence[LayerInspection]) -> Table:
    """One line for each layer: effective ranks, and what is kept and lost in other forms."""
    made = table(
        *("layer", "kind", "shape", "float32", f"rank, {_PERCENTS}", "x inputs", *_FORMS, "why float"),
        left=2,
        caption="rank: of so much of the energy of the weight, and of the weight times its inputs; "
        "forms: share of float32's bytes that is kept, and predicted error of the network",
    )
    made.columns[-1].justify = "left"
    for row in rows:
        made.add_row(
            row.name,
            row.kind,
            _shape(row),
            size(row.float_bytes),
            _ranks(row.spectrum),
            _ranks(row.used_spectrum),
            *(_gain(row, name) for name in _FORMS),
            row.note or "",
        )
    made.add_section()
    made.add_row("all", "", "", size(sum(row.float_bytes for row in rows)), "", "", *_totals(rows))
    return made


def _narrow(rows: Sequence[LayerInspection], width: int) -> Iterator[RenderableType]:
    """Lines of aligned columns under a heading for each block of layers of one kind."""
    shown = [row for row in rows if not row.note]
    header = ("", "shape", "kB", "rank", "8 bits", "4 bits", "pair")
    lines = [_cells(row) for row in shown]
    total = ("all layers", "", _kilobytes(*rows), "", *_totals(rows))
    widths = [max(len(line[place]) for line in (header, total, *lines)) for place in range(len(header))]
    room = width - sum(widths[1:]) - len(widths[1:])
    widths[0] = min(widths[0], max(_NARROW, room))

    def line(cells: Sequence[str], style: str = "") -> Text:
        others = (cell.rjust(own) for cell, own in zip(cells[1:], widths[1:], strict=True))
        text = " ".join((_end(cells[0], widths[0]).ljust(widths[0]), *others))
        return Text(text, style=style, no_wrap=True, overflow="ellipsis")

    if shown:
        yield line(header, "bold")
        blocks = itertools.groupby(zip(shown, lines, strict=True), lambda own: (_block(own[0]), own[0].kind))
        for (block, kind), members in blocks:
            yield Text(f"{block} ({kind})" if block else kind, style="bold")
            yield from (line(cells) for _, cells in members)
    yield line(total, "bold")
    yield ""
    yield from _floats(rows)
    if shown:
        of = "weight times its inputs" if any(row.used_spectrum for row in shown) else "weight"
        yield Text(
            f"kB: in float32. rank: holds {_PERCENTS} of the energy of the {of}. 8 bits, 4 bits: predicted "
            "error of the network. pair: its rank, share of float32's bytes, and predicted error. all "
            "layers: share of float32's bytes. --json gives every number.",
            style="dim",
        )


def _end(name: str, length: int) -> str:
    """``name``, or as much of its end as ``length`` columns hold."""
    return name if len(name) <= length else f"\N{HORIZONTAL ELLIPSIS}{name[1 - length :]}"


def _cells(row: LayerInspection) -> tuple[str, ...]:
    """The name within its block, and what the narrow table has of ``row``."""
    name = f" {row.name.removeprefix(_block(row)).lstrip('.')}"
    errors = (f"{row.gains[form].predicted_error:.1e}" if form in row.gains else "" for form in _FORMS[:2])
    ranks = _ranks(row.used_spectrum or row.spectrum)
    return name, _shape(row), _kilobytes(row), ranks, *errors, re.sub("[:,]", "", _gain(row, "pair"))


def _block(row: LayerInspection) -> str:
    """The name up to its last number, as of a layer of a stack; without one, that of the parent."""
    parts = row.name.split(".")[:-1]
    while parts and not parts[-1].isdigit():
        parts.pop()
    return ".".join(parts) or row.name.rpartition(".")[0]


def _floats(rows: Sequence[LayerInspection]) -> Iterator[str]:
    """One line for each reason to stay float: which layers, or how many of them."""
    groups: dict[str, list[LayerInspection]] = defaultdict(list)
    for row in rows:
        if row.note:
            groups[row.note].append(row)
    for note, own in groups.items():
        which = own[0].name if len(own) == 1 else f"{len(own)} layers"
        yield f"{which}, {size(sum(row.float_bytes for row in own))}, float: {note}"


def _kilobytes(*rows: LayerInspection) -> str:
    return f"{sum(row.float_bytes for row in rows) / 1e3:,.0f}"


def _shape(row: LayerInspection) -> str:
    return "x".join(map(str, row.shape))


def _ranks(spectrum: Spectrum | None) -> str:
    return "/".join(map(str, spectrum.ranks)) if spectrum else ""


def _gain(row: LayerInspection, name: str) -> str:
    gain = row.gains.get(name)
    if gain is None:
        return ""
    rank = f"r{found[1]}: " if (found := re.match(r"rank (\d+)", gain.form)) else ""
    return f"{rank}{gain.stored_bytes / row.float_bytes:.0%}, {gain.predicted_error:.1e}"


def _totals(rows: Sequence[LayerInspection]) -> Iterator[str]:
    whole = max(sum(row.float_bytes for row in rows), 1)
    return (f"{total_bytes(rows, name) / whole:.0%}" for name in _FORMS)

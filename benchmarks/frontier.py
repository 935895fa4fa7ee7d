"""Size against error: svd2onnx and its peers on one network, with the same calibration data.

    python -m benchmarks.frontier models/minilm.py --data DATA -o build/frontier

Embedding tables stay float32 in every contender, so that what is compared is the Linear weights; a
weight that shares its tensor with a table stays too. A size is the bytes of the finished file, without
dead weights and the exporter's notes; bits per weight are those bytes, less what the float file holds
besides its Linears. Every contender gets the calibration batches that svd2onnx uses and is judged on
the evaluation batches, in a strict session (float arithmetic, the weights alone) and in a default one.

Writes results.json, results.csv and frontier.png to the folder and prints a table in Markdown. What
is measured already is kept and not run again, so an interrupted run goes on where it stopped.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import tempfile
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click

from benchmarks.contenders import contenders
from benchmarks.drawing import draw, markdown
from benchmarks.measuring import Row, measure
from benchmarks.task import load_task

_PACKAGES = ("svd2onnx", "onnxruntime-gpu", "nncf", "onnxsim", "onnx", "torch")
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("source", type=_FILE)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder for the results.")
@click.option("--data", type=_FOLDER, help="Folder of better data, if the model file takes one.")
@click.option("--only", multiple=True, metavar="GLOB", help="Run only contenders of these names.")
@click.option("--fresh", is_flag=True, help="Measure again what is measured already.")
@click.option("--calibration-samples", type=int, default=512, show_default=True)
def main(
    source: Path,
    output: Path,
    data: Path | None,
    only: tuple[str, ...],
    fresh: bool,
    calibration_samples: int,
) -> None:
    """Measure the contenders that ``only`` names, or all, and write and print the results."""
    output.mkdir(parents=True, exist_ok=True)
    run = {"source": source.name, "data": data is not None, "calibration_samples": calibration_samples}
    rows = _known(output / "results.json", run)
    chosen = [c for c in contenders() if not only or any(fnmatch.fnmatch(c.name, glob) for glob in only)]
    wanted = [c for c in chosen if fresh or (c.name, c.label) not in rows]
    with tempfile.TemporaryDirectory(prefix="frontier-") as scratch:
        if wanted:
            task = load_task(source, data, calibration_samples, Path(scratch) / "float32.onnx")
            run |= {"linear_weights": task.linear_weights, "float_bytes": task.graph.stat().st_size}
        for index, contender in enumerate(wanted, 1):
            row = measure(task, contender, Path(scratch))
            rows[row.key] = row
            click.echo(f"{index}/{len(wanted)} {_line(row)}", err=True)
            _write(output, run, rows)
    ordered = _in_order(rows)
    draw(ordered, run, output / "frontier.png")
    click.echo(markdown(ordered))


def _known(path: Path, run: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run in the same folder, whose description is added to ``run``."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if any(record["run"].get(key) != value for key, value in run.items()):
        raise click.ClickException(f"{path} is of another run, {record['run']}: choose another folder")
    run |= record["run"]
    rows = [Row(**row) for row in record["rows"]]
    return {row.key: row for row in rows}


def _in_order(rows: dict[tuple[str, str], Row]) -> list[Row]:
    """By the table of contenders, then those that are no longer in it."""
    place = {(c.name, c.label): i for i, c in enumerate(contenders())}
    return sorted(rows.values(), key=lambda row: place.get(row.key, len(place)))


def _write(folder: Path, run: dict[str, Any], rows: dict[tuple[str, str], Row]) -> None:
    records = [asdict(row) for row in _in_order(rows)]
    versions = {name: _version(name) for name in _PACKAGES}
    (folder / "results.json").write_text(
        json.dumps({"run": run, "versions": versions, "rows": records}, indent=2) + "\n"
    )
    with (folder / "results.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(Row)])
        writer.writeheader()
        writer.writerows(records)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _line(row: Row) -> str:
    outcome = row.failure or f"{row.bits_per_weight:.3f} bits, error {row.strict:.5f} / {row.deployed:.5f}"
    return f"{row.contender}, {row.setting}: {outcome}"


if __name__ == "__main__":
    main()

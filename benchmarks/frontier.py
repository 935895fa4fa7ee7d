"""Size against error: svd2onnx and its peers on one network, with the same calibration data.

    python -m benchmarks.frontier models/minilm.py --data DATA -o build/frontier

Embedding tables stay float32 in every contender, so that what is compared is the Linear weights; a
weight that shares its tensor with a table stays too. A size is the bytes of the finished file, without
dead weights and the exporter's notes; bits per weight are those bytes, less what the float file holds
besides its Linears. Every contender gets the calibration texts that svd2onnx uses and is judged on
the evaluation batches, in a strict session (float arithmetic, the weights alone: what the plot shows)
and in a default one, which rounds the activations of some kernels too.

Writes results.json, results.csv and frontier.png to the folder and prints a table in Markdown. What
is measured already is kept and not run again, so an interrupted run goes on where it stopped. A subset
runs by ``--only 'onnxruntime RTN'`` or, with the setting, ``--only 'onnxruntime RTN/bits=4*'``.
"""

from __future__ import annotations

import csv
import fnmatch
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import click
import torch

from benchmarks.contenders import Contender, contenders
from benchmarks.drawing import draw, markdown
from benchmarks.judging import judge_of
from benchmarks.measuring import Row, measure
from benchmarks.task import load_task
from benchmarks.worker import worker

_PACKAGES = ("svd2onnx", "onnxruntime", "onnxruntime-gpu", "nncf", "onnxsim", "onnx", "torch")
_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("source", type=_FILE)
@click.option("-o", "--output", type=_FOLDER, required=True, help="Folder for the results.")
@click.option("--data", type=_FOLDER, help="Folder of better data, if the model file takes one.")
@click.option("--only", multiple=True, metavar="GLOB", help="Run only these: NAME or NAME/SETTING.")
@click.option("--fresh", is_flag=True, help="Measure again what is measured already.")
@click.option("--calibration-samples", type=int, default=512, show_default=True)
@click.option("--threads", type=int, help="Of the judge's sessions; default: onnxruntime's choice.")
@click.option("--minutes", type=float, default=60.0, show_default=True, help="Stop a contender after these.")
@click.option("--gigabytes", type=float, default=8.0, show_default=True, help="... or with more memory.")
def main(
    source: Path,
    output: Path,
    data: Path | None,
    only: tuple[str, ...],
    fresh: bool,
    calibration_samples: int,
    threads: int | None,
    minutes: float,
    gigabytes: float,
) -> None:
    """Measure the contenders that ``only`` names, or all, and write and print the results."""
    if threads is not None:
        torch.set_num_threads(threads)
    output.mkdir(parents=True, exist_ok=True)
    run = {"source": source.name, "data": data is not None, "calibration_samples": calibration_samples}
    rows = known(output / "results.json", run)
    competing = chosen(contenders(), only)
    if not competing:
        raise click.ClickException(f"no contender is named like {' or '.join(only)}")
    wanted = [c for c in competing if fresh or (c.name, c.label) not in rows]
    with tempfile.TemporaryDirectory(prefix="frontier-") as scratch, worker(minutes, gigabytes) as other:
        folder = Path(scratch)
        if wanted:
            task = load_task(source, data, calibration_samples, folder / "float32.onnx")
            judge = judge_of(task, folder, threads)
            run |= {
                "linear_weights": task.linear_weights,
                "float_bytes": task.graph.stat().st_size,
                "float_metric": judge.metric,
                "objective": task.model_file.objective,
                "remark": str(getattr(task.model_file.module, "remark", "")),
            }
        for index, contender in enumerate(wanted, 1):
            row = measure(task, contender, other, judge, folder)
            rows[row.key] = row
            click.echo(f"{index}/{len(wanted)} {_line(row)}", err=True)
            write(output, run, rows)
    ordered = in_order(rows)
    draw(ordered, run, output / "frontier.png")
    click.echo(markdown(ordered, run))


def chosen(table: Sequence[Contender], only: Sequence[str]) -> list[Contender]:
    """Those of ``table`` whose name, or name and setting, one of the patterns matches; all without any."""
    return [
        c
        for c in table
        if not only
        or any(fnmatch.fnmatch(text, glob) for glob in only for text in (c.name, f"{c.name}/{c.label}"))
    ]


def known(path: Path, run: dict[str, Any]) -> dict[tuple[str, str], Row]:
    """The rows of an earlier run in the same folder, whose description is added to ``run``."""
    if not path.exists():
        return {}
    record = json.loads(path.read_text())
    if any(record["run"].get(key) != value for key, value in run.items()):
        raise click.ClickException(f"{path} is of another run, {record['run']}: choose another folder")
    run |= record["run"]
    rows = [Row(**row) for row in record["rows"]]
    return {row.key: row for row in rows}


def in_order(rows: dict[tuple[str, str], Row]) -> list[Row]:
    """By the table of contenders, then those that are no longer in it."""
    place = {(c.name, c.label): i for i, c in enumerate(contenders())}
    return sorted(rows.values(), key=lambda row: place.get(row.key, len(place)))


def write(folder: Path, run: dict[str, Any], rows: dict[tuple[str, str], Row]) -> None:
    """Write results.json, which ``known`` reads, and the same rows as results.csv."""
    records = [asdict(row) for row in in_order(rows)]
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

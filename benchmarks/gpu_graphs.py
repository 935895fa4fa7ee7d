"""Build the folder for ``benchmarks.gpu``, on a machine with torch: graphs, evaluation inputs, manifest.

    python -m benchmarks.gpu_graphs models/minilm.py -o build/gpu

svd2onnx's files are as it ships them, embeddings compressed too: planned once for ``--target-size``, and
written from that plan in each of ``FORMS``. A graph that is in the folder is not built again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.contenders import Contender
from benchmarks.gpu_folder import BOTH, GraphEntry, Manifest
from benchmarks.peers import ort_dynamic, ort_float16, ort_nbits
from benchmarks.task import load_task
from svd2onnx.pipeline.compress_export import compress_export
from svd2onnx.sources.model_file import as_arrays
from svd2onnx.values.settings import Settings
from svd2onnx_runtime import open_session
from svd2onnx_runtime.session import graph_inputs

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, dir_okay=False, exists=True)


@dataclass(frozen=True)
class FileFormat:
    """A form of svd2onnx's file: fields of ``Settings``, and the providers that it is meant for."""

    name: str
    what: str
    setting: dict[str, Any] = field(default_factory=dict)
    providers: tuple[str, ...] = BOTH


PLANNED = FileFormat("svd2onnx", "as compress-export writes it: DequantizeLinear and MatMul")
"""The form that the plan is made for; the others are written from its plan."""
FORMS = (
    FileFormat("svd2onnx folded", "--operator folded", {"operator": "folded"}),
    FileFormat("svd2onnx matmulnbits", "--operator matmulnbits", {"operator": "matmulnbits"}),
    FileFormat("svd2onnx float16", "--dtype float16", {"dtype": "float16"}),
    FileFormat("svd2onnx folded float16", "both", {"operator": "folded", "dtype": "float16"}),
    FileFormat("svd2onnx matmulnbits float16", "both", {"operator": "matmulnbits", "dtype": "float16"}),
    # On CUDA its nodes fall back to the CPU.
    FileFormat("svd2onnx int8 activations", "--activations int8", {"activations": "int8"}, ("cpu",)),
)


def peers() -> list[tuple[Contender, str, tuple[str, ...]]]:
    """The graphs that svd2onnx is compared with, what each is, and the providers it is meant for."""
    rtn = {"algorithm": "default", "bits": 4, "block": 32}
    return [
        (Contender("float16", ort_float16.compress), "convert_float_to_float16, keep_io_types", BOTH),
        (Contender("onnxruntime 4-bit", ort_nbits.compress, rtn), "MatMulNBitsQuantizer, blocks of 32", BOTH),
        # On CUDA its nodes fall back to the CPU.
        (Contender("onnxruntime dynamic int8", ort_dynamic.compress), "quantize_dynamic", ("cpu",)),
    ]


@click.command(help=__doc__.split("\n", 1)[0])
@click.argument("source", type=_FILE)
@click.option("-o", "--output", type=_FOLDER, required=True, help="The folder to fill.")
@click.option("--data", type=_FOLDER, help="Folder of better data, if the model file takes one.")
@click.option("--target-size", default="0.13x", show_default=True, help="Of svd2onnx's file.")
@click.option("--calibration-samples", type=int, default=1024, show_default=True)
def main(source: Path, output: Path, data: Path | None, target_size: str, calibration_samples: int) -> None:
    """Build the graphs that are missing, and write the inputs and the manifest."""
    output.mkdir(parents=True, exist_ok=True)
    task = load_task(source, data, calibration_samples, output / "float32.onnx")
    entries = [GraphEntry("float32", task.graph.name, "the export of the PyTorch network")]
    for contender, what, providers in peers():
        entry = GraphEntry(contender.name, _file(contender.name), what, providers)
        contender.build(task, output / entry.file)
        entries.append(entry)
    goal: dict[str, Any] = {"target_size": target_size}
    for form in (PLANNED, *FORMS):
        entry = GraphEntry(form.name, _file(form.name), form.what, form.providers)
        path = output / entry.file
        if not path.exists():
            click.echo(f"building {path.name}", err=True)
            settings = Settings(
                calibration_samples=calibration_samples, provider="cpu", **goal, **form.setting
            )
            compress_export(source, path, settings, data=data)
        goal = {"plan": output / f"{_file(PLANNED.name)}.plan.json"}
        entries.append(entry)
    session = open_session(task.graph, "cpu")
    batches = []
    for index, batch in enumerate(task.model_file.inputs("evaluation")):
        batches.append(f"evaluation-{index}.npz")
        arrays: dict[str, Any] = graph_inputs(session, as_arrays(batch))
        np.savez_compressed(output / batches[-1], **arrays)
    manifest = Manifest(source.name, task.model_file.objective, tuple(entries), tuple(batches))
    manifest.write(output)
    total = sum((output / entry.file).stat().st_size for entry in entries)
    click.echo(f"{output}: {len(entries)} graphs of {total / 1e6:.0f} MB, {len(batches)} batches")


def _file(name: str) -> str:
    return f"{name}.onnx".replace(" ", "-")


if __name__ == "__main__":
    main()

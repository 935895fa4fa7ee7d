"""package: a folder to deploy from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup
from click.core import ParameterSource

from svd2onnx.cli.console import Terminal, spoken
from svd2onnx.cli.options import DIM, PATH, THREADS, command, examples, sizes_of

if TYPE_CHECKING:
    from svd2onnx.deployment.artifact import Artifact


@command(
    short_help="Make a folder to deploy a file from.",
    epilog=examples(
        "svd2onnx package minilm.onnx -o minilm",
        "svd2onnx package minilm.onnx -o repository --format triton --max-batch 16 --threads 1",
        "svd2onnx package minilm.onnx -o repository --format triton --name minilm --version 2",
    ),
)
@click.argument("graph", type=PATH)
@cloup.option_group(
    "For Triton, with --format triton",
    cloup.option("--name", help="Name of the model.  [default: that of GRAPH]"),
    cloup.option(
        "--version",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Version of the model; other versions stay.",
    ),
    cloup.option(
        "--provider",
        type=click.Choice(["cpu", "cuda"]),
        help="Execution provider.  [default: what GRAPH was measured on]",
    ),
    cloup.option(
        "--max-batch",
        type=click.IntRange(1),
        metavar="N",
        default=8,
        show_default=True,
        help="Most samples that are computed together.",
    ),
    cloup.option(
        "--instances",
        type=click.IntRange(1),
        metavar="N",
        default=1,
        show_default=True,
        help="Sessions beside each other, each with the weights.",
    ),
    THREADS,
    DIM,
)
@cloup.option(
    "-o",
    "--output",
    type=PATH,
    metavar="DIR",
    required=True,
    help="Folder to write; with --format triton the model repository.",
)
@cloup.option(
    "--format",
    "form",
    type=click.Choice(["folder", "triton"]),
    default="folder",
    show_default=True,
    help="folder has the file with report, card and checksums; triton is a model for NVIDIA Triton.",
)
@spoken
def package(
    graph: Path,
    output: Path,
    form: str,
    name: str | None,
    version: int,
    provider: str | None,
    max_batch: int,
    instances: int,
    threads: int | None,
    dims: tuple[str, ...],
    terminal: Terminal,
) -> None:
    """Make a folder to deploy GRAPH from, which compress-export wrote, with its report beside it.

    Nothing that is there already is replaced. --dim is of the first request that Triton runs on a GPU.
    """
    from svd2onnx.cli.paths import check_files

    sizes = {"batch": 1, **sizes_of(dims)}
    if form == "folder":
        _refuse_options_of_triton(click.get_current_context())
    check_files({"GRAPH": graph})

    from svd2onnx.deployment.artifact import read_artifact
    from svd2onnx.deployment.packaging import write_folder, write_model
    from svd2onnx.deployment.triton import Serving

    artifact = read_artifact(graph)
    if form == "folder":
        files, remarks = write_folder(artifact, output), []
    else:
        serving = Serving(
            name=graph.stem if name is None else name,
            provider=provider or artifact.report.certificate.provider,
            version=version,
            max_batch=max_batch,
            instances=instances,
            threads=threads,
            sizes=sizes,
        )
        files = write_model(artifact, output, serving)
        remarks = list(_remarks(artifact, serving.provider, files))
    record = {"output": str(output), "files": [str(file) for file in files], "remarks": remarks}
    terminal.answer(json.dumps(record, indent=2), *map(str, files), *remarks)


def _refuse_options_of_triton(context: click.Context) -> None:
    for name in ("name", "version", "provider", "max_batch", "instances", "threads", "dims"):
        if context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            option = "--dim" if name == "dims" else f"--{name.replace('_', '-')}"
            raise click.UsageError(
                f"{option} has no effect with --format folder: add --format triton, or leave {option} out"
            )


def _remarks(artifact: Artifact, provider: str, files: list[Path]) -> Iterator[str]:
    """What a person should know of a model for Triton."""
    if not artifact.signature.is_batched:
        yield (
            'requests are computed one by one: "batch" or "batch_size" is not the first dimension of every '
            "input and output"
        )
    if not any(file.name == "config.pbtxt" for file in files):
        yield "config.pbtxt was there and stays as it is"
    measured = artifact.report.certificate.provider
    if provider != measured:
        yield (
            f"{artifact.graph} was certified on {measured}: "
            f"run `svd2onnx certify {artifact.graph} --provider {provider}` where it will be served"
        )

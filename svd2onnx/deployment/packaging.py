"""Folders to deploy from: of one file with all that is known of it, and of a model for NVIDIA Triton.

    FOLDER/                                      REPOSITORY/NAME/
      OUT.onnx, OUT.onnx.data                      config.pbtxt
      OUT.onnx.report.json, .report.html           1/
      OUT.onnx.plan.json                             model.onnx, OUT.onnx.data
      README.md, SHA256SUMS                          README.md, SHA256SUMS

The same file gives the same bytes, on whatever machine and at whatever time.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from svd2onnx.compute.atomic_output import atomic_folder
from svd2onnx.deployment.artifact import Artifact, plan_path, report_path
from svd2onnx.deployment.card import card
from svd2onnx.deployment.triton import Serving, config_text, first_request
from svd2onnx.graph.signature import read_signature
from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import file_digest
from svd2onnx.values.errors import OutputError, PlanError
from svd2onnx_runtime import GraphError, open_session, run

CARD = "README.md"
CHECKSUMS = "SHA256SUMS"
CONFIG = "config.pbtxt"
MODEL = "model.onnx"
_MEDIA_TYPES = {
    ".onnx": "application/onnx",
    ".data": "application/octet-stream",
    ".json": "application/json",
    ".html": "text/html",
    ".md": "text/markdown",
}


def write_folder(artifact: Artifact, folder: Path) -> list[Path]:
    """Write ``artifact`` with its report, its plan, a card and checksums to ``folder``; return the files.

    Raises:
        OutputError: ``folder`` holds something, or cannot be written.
        ReportError: the report holds what cannot be shown.
    """
    graph = artifact.graph.name
    texts = {report_path(Path(graph)).name: artifact.report.to_json()}
    texts[report_path(Path(graph)).with_suffix(".html").name] = render(artifact.report)
    if artifact.plan is not None:
        texts[plan_path(Path(graph)).name] = artifact.plan
    names = [*(file.name for file in artifact.files), *texts, CARD, CHECKSUMS]
    types = {name: _MEDIA_TYPES.get(Path(name).suffix, "text/plain") for name in names}
    texts[CARD] = card(artifact, graph, types)
    with atomic_folder(folder) as draft:
        _fill(draft, {file.name: file for file in artifact.files}, texts)
    return [folder / name for name in names]


def write_model(artifact: Artifact, repository: Path, serving: Serving) -> list[Path]:
    """Write ``artifact`` as a version of a model to ``repository``, which may hold others; return the files.

    The config.pbtxt of a model that is there already stays as it is.

    Raises:
        OutputError: that version is there already, its model is another, or it cannot be written.
        GraphError: Triton cannot serve the graph.
        PlanError: it was made for another provider than it is to run on.
        ReportError: the report holds what cannot be shown.
    """
    _check_provider(artifact, serving)
    config = config_text(artifact.signature, serving)
    _try_first_request(artifact, serving)
    model = repository / serving.name
    version = model / str(serving.version)
    target = next((folder for folder in (repository, model) if not folder.exists()), version)
    if target == version:
        _check_model(artifact, model, serving)
    files = {MODEL: artifact.graph} | ({artifact.data.name: artifact.data} if artifact.data else {})
    with atomic_folder(target, _drafts(target, repository)) as draft:
        place = draft / version.relative_to(target)
        place.mkdir(parents=True, exist_ok=True)
        _fill(place, files, {CARD: card(artifact, MODEL)})
        if target != version:
            (place.parent / CONFIG).write_text(config, encoding="utf-8")
    written = [] if target == version else [model / CONFIG]
    return [*written, *(version / name for name in (*files, CARD, CHECKSUMS))]


def _drafts(target: Path, repository: Path) -> Path | None:
    """A server takes every folder in its repository for a model, and does not start where one is none."""
    outside = repository.resolve().parent
    return outside if target.parent == repository and os.access(outside, os.W_OK) else None


def _fill(folder: Path, files: dict[str, Path], texts: dict[str, str]) -> None:
    """Copy ``files``, write ``texts``, and the checksums of all."""
    for name in (*texts, CHECKSUMS):
        if name in files:
            raise OutputError(f"cannot package {files[name]}: {name} is the name of another file there")
    for name, file in files.items():
        shutil.copyfile(file, folder / name)
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    (folder / CHECKSUMS).write_text(_checksums(folder, [*files, *texts]), encoding="utf-8")


def _checksums(folder: Path, names: Iterable[str]) -> str:
    return "".join(f"{file_digest(folder / name)}  {name}\n" for name in names)


def _check_provider(artifact: Artifact, serving: Serving) -> None:
    int8 = sum("int8 activations" in layer.form for layer in artifact.report.layers)
    if int8 and serving.provider != "cpu":
        raise PlanError(
            f"{int8} layers of {artifact.graph} compute in int8, which onnxruntime does on the CPU alone: "
            "package it with --provider cpu, or compress with --activations float"
        )


def _try_first_request(artifact: Artifact, serving: Serving) -> None:
    """Triton does not serve a model whose first request fails."""
    request = first_request(artifact.signature, serving)
    if request is None:
        return
    session = open_session(artifact.graph)
    try:
        run(session, request)
    except GraphError as error:
        raise GraphError(
            f"{error} (on zeros, as Triton would first run it: set sizes that it takes by --dim)"
        ) from error


def _check_model(artifact: Artifact, model: Path, serving: Serving) -> None:
    """Versions share one config.pbtxt, so they must take and give the same."""
    if (model / str(serving.version)).exists():
        raise OutputError(
            f"cannot write {model / str(serving.version)}: this version is there already; "
            "add another by --version, or remove it"
        )
    others = sorted(model.glob(f"[1-9]*/{MODEL}")) if (model / CONFIG).is_file() else []
    if not others:
        raise OutputError(
            f"cannot add a version to {model}: it is no ONNX model of Triton's, with {CONFIG} and 1/{MODEL}; "
            "remove it, or give another --name"
        )
    there, new = read_signature(others[-1]), artifact.signature
    if (there.inputs, there.outputs) != (new.inputs, new.outputs):
        raise OutputError(
            f"cannot add a version to {model}: {others[-1]} is {there}, and {artifact.graph} is {new}; "
            "give another --name"
        )

"""The paths that a command is given, checked before anything slow is imported."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from svd2onnx.compute.atomic_output import check_targets
from svd2onnx.sources.detect import kind_of
from svd2onnx.sources.source_options import check_options
from svd2onnx.values.errors import OutputError, SourceError
from svd2onnx.values.settings import Settings


def check_source(source: Path, settings: Settings, data: Path | None) -> None:
    """SOURCE is of a kind that is read, the options fit it, and the files that they name are there.

    Raises:
        SourceError: one of these is not so.
    """
    check_options(source, kind_of(source), settings, data)
    for option, folder in (("--data", data), ("--weights", settings.weights)):
        if folder is not None and not folder.is_dir():
            raise SourceError(f"{option} must be a folder, and {folder} is none")
    check_there({"--calibration": settings.calibration})
    check_files(
        {"--model": settings.model, "--plan": settings.plan, "--latency-table": settings.latency_table}
    )


def check_there(paths: Mapping[str, Path | None]) -> None:
    """The files and folders that are given, by the option or argument that names them, are there.

    Raises:
        SourceError: one is not.
    """
    for option, path in paths.items():
        if path is not None and not path.exists():
            raise SourceError(f"{option} {path}: no such file or folder")


def check_files(files: Mapping[str, Path | None]) -> None:
    """Likewise, and none of them is a folder.

    Raises:
        SourceError: one is not there, or is a folder.
    """
    check_there(files)
    for option, path in files.items():
        if path is not None and path.is_dir():
            raise SourceError(f"{option} {path} is a folder; expected a file")


def check_outputs(source: Path, *outputs: Path | None) -> None:
    """What is to be written can be, and does not replace SOURCE.

    Raises:
        OutputError: one cannot be written, or is SOURCE.
    """
    given = [output for output in outputs if output is not None]
    for output in given:
        if output.resolve() == source.resolve():
            raise OutputError(f"cannot write {output}: it is SOURCE itself; name another file")
    check_targets(*given)


def check_new_folder(folder: Path) -> None:
    """A folder that is there or can be made.

    Raises:
        OutputError: it cannot.
    """
    nearest = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    if not nearest.is_dir():
        raise OutputError(f"cannot make the folder {folder}: {nearest} is a file")


def default_output(source: Path) -> Path:
    """``SOURCE.svd2onnx.onnx`` in the current folder: never the name of a file that others export."""
    name = source.resolve().name if source.is_dir() else source.stem
    return Path(f"{name}.svd2onnx.onnx")

"""The process in which fuzzed graphs are opened: where native code crashed, only this process would end."""

import importlib
import os
from pathlib import Path

from click.testing import CliRunner


def run_command(command: str, graph: Path, reference: Path, task: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command on ``graph``."""
    from svd2onnx.cli.main import main

    shared = ("--provider", "cpu")
    arguments = {
        "certify": ("certify", graph, "--dim", "sequence=5", *shared),
        "bench": (
            "bench",
            graph,
            "--batch",
            1,
            "--repeats",
            1,
            "--dim",
            "sequence=5",
            "--threads",
            1,
            *shared,
        ),
        "evaluate": ("evaluate", graph, "--reference", reference, "--task", task, *shared),
    }[command]
    _hasten()
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], env={"COLUMNS": "120"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


def _hasten() -> None:
    """The machine is measured once, and memory in this process: both are alike for all graphs."""
    from svd2onnx_runtime.memory import Footprint
    from svd2onnx_runtime.session import open_session, run

    def footprint(path: os.PathLike[str], inputs: dict[str, object], *_: object) -> Footprint:
        run(open_session(path, "cpu", threads=1), inputs)  # type: ignore[arg-type]
        return Footprint(0.1, 1.0, 1.0, 1.0, None, None)

    benching = importlib.import_module("svd2onnx_runtime.bench")  # the package has a function of its name
    if benching.measure_roofline.__module__ != __name__:
        measured = benching.measure_roofline("cpu", 1)

        def known(*_: object) -> object:
            return measured

        benching.measure_roofline = known  # type: ignore[attr-defined]
        benching.measure_footprint = footprint  # type: ignore[attr-defined]

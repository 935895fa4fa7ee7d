"""Run what a document says, in a folder, as a reader would."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner

from svd2onnx.cli.main import main
from tests.docs.documents import ROOT


def run_command(words: list[str]) -> str:
    """Run one command in the working directory and return what it prints; it must succeed."""
    program, *arguments = words
    if program == "svd2onnx":  # in this process, which has torch loaded
        result = CliRunner().invoke(main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, f"{' '.join(words)}\n{result.output}"
        return result.output
    assert program == "python", f"how is {program} to be run?"
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": paths}
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    return done.stdout


def write_block(title: str, text: str) -> None:
    Path(title).write_text(text, encoding="utf-8")

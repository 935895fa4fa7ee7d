"""The command line: its commands, and what becomes of their failures.

Whatever is slow to import is imported inside the commands. Exit codes: 0 done, 1 a stated failure (one line
on stderr), 2 wrong usage; interrupted: 130 (SIGINT), 143 (SIGTERM), 129 (SIGHUP).
"""

from __future__ import annotations

import os
from typing import Any

import click

from svd2onnx.cli.commands.bench import bench
from svd2onnx.cli.commands.certify import certify
from svd2onnx.cli.commands.completion import completion
from svd2onnx.cli.commands.compress_export import compress_export
from svd2onnx.cli.commands.evaluate import evaluate
from svd2onnx.cli.commands.generate import generate
from svd2onnx.cli.commands.inspect import inspect
from svd2onnx.cli.commands.package import package
from svd2onnx.cli.commands.report import report
from svd2onnx.cli.commands.sweep import sweep
from svd2onnx.cli.console import fail, tell
from svd2onnx.cli.failures import refusal
from svd2onnx.cli.interruption import Interrupted, interruptible, leave
from svd2onnx.cli.options import examples


class _Commands(click.Group):
    """Lists commands in the order of their use, and turns every failure into one line and exit code 1."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with interruptible():
                return super().invoke(ctx)
        except Interrupted as stop:
            tell(f"error: {stop.line}")
            leave(stop.exit_code)
        except (click.ClickException, click.exceptions.Exit, click.Abort, BrokenPipeError):
            raise  # to click, which ends quietly where the reader of stdout went away
        except Exception as error:
            from svd2onnx_runtime.errors import Svd2OnnxError  # here, because its package loads numpy

            if isinstance(error, Svd2OnnxError):
                fail(refusal(error) or str(error))
            if os.environ.get("SVD2ONNX_DEBUG"):
                raise
            if line := refusal(error):
                fail(line)
            line = " ".join(str(error).split())
            fail(
                f"unexpected {type(error).__name__}: {line} "
                "(a bug: please report it with the traceback that SVD2ONNX_DEBUG=1 shows)"
            )


@click.group(
    cls=_Commands,
    commands=[
        inspect,
        compress_export,
        certify,
        evaluate,
        bench,
        generate,
        sweep,
        report,
        package,
        completion,
    ],
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=examples(
        "svd2onnx compress-export models/minilm.py -o minilm.onnx --target-size 0.13x",
        "svd2onnx inspect --help",
    ),
)
@click.version_option(package_name="svd2onnx")
def main() -> None:
    """Compress a trained PyTorch network by low rank and quantization, and prove it on onnxruntime."""

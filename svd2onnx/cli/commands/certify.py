"""certify: every quantized MatMul runs as it is meant to, or exit 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click
import cloup

from svd2onnx.cli.console import Terminal, fail, spoken, tell
from svd2onnx.cli.options import DIM, PATH, PROVIDER, command, examples, sizes_of

if TYPE_CHECKING:
    from svd2onnx_runtime import Certificate


@command(
    short_help="Prove that every quantized weight is fused.",
    epilog=examples(
        "svd2onnx certify minilm.onnx --provider cpu",
        "svd2onnx certify minilm.onnx --dim sequence=128 --json",
    ),
)
@click.argument("graph", type=PATH)
@cloup.option_group("Inputs", DIM)
@cloup.option_group("Speed and resources", PROVIDER)
@spoken
def certify(graph: Path, dims: tuple[str, ...], provider: str, terminal: Terminal) -> None:
    """Prove that GRAPH runs as it is meant to; exit 1 if not.

    Each quantized MatMul is one fused kernel, or its weight was made a float at load on purpose; and on
    CUDA no node is left to the CPU and nothing is copied between host and device.
    """
    from svd2onnx_runtime import certify as run_certify

    certificate = run_certify(graph, provider, {"batch": 2, **sizes_of(dims)})
    problem = _problem(graph, certificate)
    if terminal.as_json or not problem:
        record = asdict(certificate) | {"certified": not problem}
        terminal.answer(json.dumps(record, indent=2), *_proofs(certificate))
    for name, reason in certificate.unfused:
        tell(f"not fused: {name}: {reason}")
    for name, reason in certificate.misplaced:
        tell(f"misplaced: {name}: {reason}")
    if problem:
        fail(problem)


def _problem(graph: Path, certificate: Certificate) -> str | None:
    """Why there is no certificate, in one line."""
    provider = certificate.provider
    if not certificate.planned:
        return f"{graph} holds no quantized weight: there is nothing to certify"
    if certificate.unfused:
        some = f"{len(certificate.unfused)} of {certificate.planned}"
        return f"{some} quantized weights did not fuse on {provider}"
    if certificate.misplaced:
        return f"{len(certificate.misplaced)} nodes of {graph} are misplaced on {provider}"
    return None


def _proofs(certificate: Certificate) -> Iterator[str]:
    yield (
        f"all quantized weights run as planned on {certificate.provider}: {certificate.summary} "
        f"(onnxruntime {certificate.onnxruntime})"
    )
    if certificate.capture_obstacles is not None:
        obstacles = "; ".join(f"{name}: {reason}" for name, reason in certificate.capture_obstacles)
        yield f"CUDA graph: {f'no ({obstacles})' if obstacles else 'can be captured'}"

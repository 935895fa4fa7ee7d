"""certify: every quantized MatMul runs as it is meant to, or exit 1."""

from __future__ import annotations

from pathlib import Path

import click

from svd2onnx.console import fail
from svd2onnx.options import DIM, PATH, PROVIDER, sizes_of


@click.command()
@click.argument("graph", type=PATH)
@DIM
@PROVIDER
def certify(graph: Path, dims: tuple[str, ...], provider: str) -> None:
    """Prove that GRAPH runs as it is meant to; exit 1 if not.

    Each quantized MatMul is one fused kernel, or its weight was made a float at load on purpose; and on
    CUDA no node is left to the CPU and nothing is copied between host and device.
    """
    from svd2onnx_runtime import certify as run_certify

    certificate = run_certify(graph, provider, {"batch": 2, **sizes_of(dims)})
    for name, reason in certificate.unfused:
        click.echo(f"not fused: {name}: {reason}", err=True)
    for name, reason in certificate.misplaced:
        click.echo(f"misplaced: {name}: {reason}", err=True)
    if not certificate.planned:
        fail(f"{graph} holds no quantized weight: there is nothing to certify")
    if certificate.unfused:
        fail(
            f"{len(certificate.unfused)} of {certificate.planned} quantized weights did not fuse "
            f"on {certificate.provider}"
        )
    if certificate.misplaced:
        fail(f"{len(certificate.misplaced)} nodes of {graph} are misplaced on {certificate.provider}")
    click.echo(
        f"all quantized weights run as planned on {certificate.provider}: {certificate.summary} "
        f"(onnxruntime {certificate.onnxruntime})"
    )
    if certificate.capture_obstacles is not None:
        obstacles = "; ".join(f"{name}: {reason}" for name, reason in certificate.capture_obstacles)
        click.echo(f"CUDA graph: {f'no ({obstacles})' if obstacles else 'can be captured'}")

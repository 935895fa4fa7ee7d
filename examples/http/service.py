"""Serve an ONNX file over HTTP: python service.py MODEL.onnx --port 8000.

GET /   what the graph takes and gives
POST /  {"pixels": [[...], ...]}, nested lists by input name  ->  {"scores": [[...], ...]}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import uvicorn
from bodies import Limits, read_arrays
from fastapi import FastAPI, HTTPException, Request
from fastapi.concurrency import run_in_threadpool

from svd2onnx_runtime import GraphError, InputsError, Svd2OnnxError, open_session, run


def create_app(graph: Path, limits: Limits, threads: int | None = None) -> FastAPI:
    """A service over the graph at ``graph``; ``threads`` are those inside one operator.

    Raises:
        Svd2OnnxError: onnxruntime cannot load the graph.
    """
    session = open_session(graph, threads=threads)
    app = FastAPI(title=graph.name)

    @app.get("/")
    def describe() -> dict[str, Any]:
        sides = {"inputs": session.get_inputs(), "outputs": session.get_outputs()}
        return {
            side: {value.name: {"type": value.type, "shape": value.shape} for value in values}
            for side, values in sides.items()
        }

    @app.post("/")
    async def predict(request: Request) -> dict[str, Any]:
        arrays = await read_arrays(request, session.get_inputs(), limits)
        try:
            outputs = await run_in_threadpool(run, session, arrays)
        except (InputsError, GraphError) as error:
            raise HTTPException(422, str(error)) from error
        if not all(np.isfinite(array).all() for array in outputs.values()):
            raise HTTPException(422, "the graph gives no finite numbers for these inputs: scale them down")
        return {name: array.tolist() for name, array in outputs.items()}

    return app


@click.command()
@click.argument("graph", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8000, show_default=True)
@click.option("--threads", type=click.IntRange(1), help="Threads within an operator.")
@click.option("--max-bytes", type=click.IntRange(1), default=1 << 20, show_default=True, help="Of a request.")
@click.option(
    "--max-dim", type=click.IntRange(1), default=256, show_default=True, help="Of a dynamic dimension."
)
def main(graph: Path, port: int, threads: int | None, max_bytes: int, max_dim: int) -> None:
    """Serve GRAPH on this machine alone."""
    try:
        app = create_app(graph, Limits(max_bytes, max_dim), threads)
    except Svd2OnnxError as error:
        raise click.ClickException(str(error)) from error
    uvicorn.run(app, host="127.0.0.1", port=port)


if __name__ == "__main__":
    main()

"""Open an ONNX graph in onnxruntime on the provider asked for, and run it by input names.

Two kinds of session matter here. A *strict* one has every graph optimization disabled, so it
computes the float graph as written: DequantizeLinear, then MatMul. A *deployed* one has the default
options: onnxruntime then fuses each such pair into one MatMulNBits kernel, which on the CPU also
rounds the activations to int8 in blocks (``session.qdq_matmulnbits_accuracy_level`` = 4).

onnxruntime-gpu lists CUDAExecutionProvider on machines without a GPU, and then falls back to the
CPU with lines on stderr. So the GPU is looked for first, through the CUDA driver.

onnxruntime is imported where it is used (``installation``), so that a command line that only needs our
errors starts fast.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from svd2onnx_runtime.dimensions import PAST_LENGTH, by_canonical_name, canonical
from svd2onnx_runtime.errors import GraphError, InputsError, ProviderError, one_line
from svd2onnx_runtime.external import external_files, graph_bytes
from svd2onnx_runtime.installation import onnxruntime
from svd2onnx_runtime.machine import gpu_count
from svd2onnx_runtime.past import empty, is_past

if TYPE_CHECKING:
    from onnxruntime import InferenceSession  # noqa: TID251

Session: TypeAlias = "InferenceSession"
Array: TypeAlias = NDArray[Any]

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ORT_ERRORS = (
    "EPFail",
    "Fail",
    "InvalidArgument",
    "InvalidGraph",
    "InvalidProtobuf",
    "NoModel",
    "NoSuchFile",
    "NotImplemented",
    "RuntimeException",
)
_DTYPES = {
    "float": "float32",
    "float16": "float16",
    "double": "float64",
    "bool": "bool",
    **{f"{sign}int{width}": f"{sign}int{width}" for sign in ("", "u") for width in (8, 16, 32, 64)},
}
_MOST_BYTES = 1 << 32
"""Of one synthetic input: a graph that wants more is damaged, or its sizes were mistyped."""
_SILENT = 4  # onnxruntime severity "fatal": what we handle is raised, not also logged
_DEFAULT_SEVERITY = 2
_LARGE = 2 << 30


def open_session(
    path: str | os.PathLike[str],
    provider: str = "auto",
    *,
    threads: int | None = None,
    strict: bool = False,
) -> Session:
    """Load the graph at ``path`` on "cpu", "cuda", or "auto": CUDA where a GPU is, else the CPU.

    ``threads`` are the threads inside one operator (None: onnxruntime's choice). ``strict``
    disables every optimization, and TF32 on CUDA. Raises ProviderError and GraphError.
    """
    options = session_options(threads, strict=strict)
    if strict:  # which computes what is true, and not what is fast
        _map_large(path, options)
    return load(path, options, provider, tf32=not strict)


def open_reference(
    path: str | os.PathLike[str], provider: str = "auto", *, threads: int | None = None
) -> Session:
    """``open_session`` of a float32 graph to compare with; a large one is not packed, see ``_map_large``."""
    options = session_options(threads)
    _map_large(path, options)
    return load(path, options, provider)


def _map_large(path: str | os.PathLike[str], options: Any) -> None:
    """Let the weights of a graph of more than 2 GiB stay in its file, mapped into memory.

    Packed for the kernels, they would take as much memory again. Its MatMuls pack them on every call, which
    takes them longer.
    """
    if graph_bytes(_checked_file(path)) > _LARGE:
        options.add_session_config_entry("session.disable_prepacking", "1")


def session_options(threads: int | None = None, *, strict: bool = False) -> Any:
    """The ``SessionOptions`` of a strict or a deployed session, logging nothing below "fatal"."""
    ort = onnxruntime()

    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    if threads is not None:
        options.intra_op_num_threads = threads
    if strict:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        # Weights are dequantized one by one, each where it is needed. In the default order all come first,
        # and so all are in memory at once.
        options.execution_order = ort.ExecutionOrder.PRIORITY_BASED
    return options


def load(path: str | os.PathLike[str], options: Any, provider: str = "auto", *, tf32: bool = True) -> Session:
    """``open_session`` with given ``SessionOptions``."""
    ort = onnxruntime()

    graph = _checked_file(path)
    chosen = resolve_provider(provider)
    providers: list[Any] = ["CPUExecutionProvider"]
    if chosen == "cuda":
        providers.insert(0, ("CUDAExecutionProvider", {"use_tf32": str(int(tf32))}))
    with _quiet_cuda() if chosen == "cuda" else contextlib.nullcontext():
        try:
            session = ort.InferenceSession(os.fspath(graph), options, providers=providers, enable_fallback=0)
            # Whose names, and keys and values, may be no text.
            session.get_inputs(), session.get_outputs(), session.get_modelmeta().custom_metadata_map
        except _errors(*_ORT_ERRORS) as error:
            raise GraphError(f"onnxruntime cannot load {graph}: {one_line(error)}") from error
        except UnicodeDecodeError as error:
            raise GraphError(f"names of inputs or outputs, or metadata, of {graph} are no text") from error
    if provider == "cuda" and provider_of(session) != "cuda":
        raise ProviderError(
            "a GPU is here but onnxruntime could not start its CUDA provider: install the CUDA and "
            "cuDNN libraries it needs (pip install 'onnxruntime-gpu[cuda,cudnn]'), or ask for 'cpu'"
        )
    return session


def resolve_provider(provider: str) -> str:
    """Settle "auto" on "cpu" or "cuda"; ProviderError for a provider that cannot be had.

    Also for "cpu" this raises InstallationError without a working onnxruntime, so that a long job which
    begins with it fails at once.
    """
    if provider not in (*_PROVIDERS, "auto"):
        raise ProviderError(f"expected provider 'auto', 'cpu' or 'cuda', found {provider!r}")
    ort = onnxruntime()
    if provider == "cpu":
        return "cpu"
    offered = ort.get_available_providers()
    gpus = gpu_count()
    if _PROVIDERS["cuda"] in offered and gpus:
        return "cuda"
    if provider == "auto":
        return "cpu"
    remedy = (
        'pip uninstall -y onnxruntime && pip install "svd2onnx[gpu]"' if gpus else "use a machine with one"
    )
    raise ProviderError(
        f"provider 'cuda' needs a GPU and onnxruntime-gpu; onnxruntime {ort.__version__} offers "
        f"{', '.join(offered)} and the CUDA driver shows {gpus or 'no'} GPU: {remedy}, or ask for 'cpu'"
    )


def provider_of(session: Session) -> str:
    """The provider that ``session`` prefers and really has: "cpu" or "cuda"."""
    return "cuda" if _PROVIDERS["cuda"] in session.get_providers() else "cpu"


def provider_name(provider: str) -> str:
    """The name that onnxruntime has for "cpu" or "cuda"."""
    return _PROVIDERS[provider]


def run(
    session: Session, inputs: Mapping[str, Array], outputs: Sequence[str] | None = None
) -> dict[str, Array]:
    """Run the graph and return its outputs by name, or ``outputs`` alone; see ``graph_inputs`` for inputs."""
    feeds = graph_inputs(session, inputs)
    names = [output.name for output in session.get_outputs()] if outputs is None else list(outputs)
    with stating_failures():
        return dict(zip(names, session.run(names, feeds), strict=True))


@contextlib.contextmanager
def stating_failures() -> Iterator[None]:
    """Turn what onnxruntime raises while it runs a graph into errors of ours, in one line."""
    try:
        yield
    except _errors("InvalidArgument") as error:
        raise InputsError(f"the arrays do not fit the graph: {one_line(error)}") from error
    except _failures() as error:
        raise GraphError(f"the graph failed while running: {one_line(error)}") from error


def graph_inputs(session: Session, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """The entries of ``inputs`` that the graph takes, as they are; further keys (labels) are left.

    Where they hold no keys and values of a past, the graph gets those of an empty one (``past``). Raises
    InputsError for a missing input and for another element type than the graph's.
    """
    feeds: dict[str, Array] = {}
    begins = not any(map(is_past, inputs))
    for wanted in session.get_inputs():
        if begins and is_past(wanted.name):
            feeds[wanted.name] = empty(wanted.name, wanted.shape, _dtype(wanted), feeds)
            continue
        if wanted.name not in inputs:
            given = ", ".join(inputs) or "nothing"
            raise InputsError(f"the graph needs input {wanted.name!r}, found {given}: add it")
        array = np.asarray(inputs[wanted.name])
        dtype = _dtype(wanted)
        if array.dtype != dtype:
            raise InputsError(
                f"input {wanted.name!r} must be {dtype}, found {array.dtype}: convert the array"
            )
        feeds[wanted.name] = array
    return feeds


def synthetic_inputs(session: Session, dims: Mapping[str, int], seed: int = 0) -> dict[str, Array]:
    """Arrays that the graph accepts: integers are 1 (a token id, a mask), floats standard normal.

    Symbolic dimensions take their size from ``dims`` by name, or by the names that they are the sum of:
    ``{"batch": 8, "sequence": 64}``, which are those of "batch_size" and "sequence_length" too. A past that
    has no size there is empty.
    Raises InputsError for a dimension without a size.
    """
    rng = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for wanted in session.get_inputs():
        shape = [_size(wanted.name, axis, dim, dims) for axis, dim in enumerate(wanted.shape)]
        dtype = _dtype(wanted)
        if math.prod(shape) * dtype.itemsize > _MOST_BYTES:
            raise InputsError(
                f"input {wanted.name!r} of shape {shape} would take more than {_MOST_BYTES >> 30} GiB: "
                "choose smaller sizes with --dim and --batch, or export the graph again"
            )
        if dtype.kind == "f":
            arrays[wanted.name] = rng.standard_normal(shape).astype(dtype)
        else:
            arrays[wanted.name] = np.ones(shape, dtype)
    return arrays


def ort_version() -> str:
    """The version of onnxruntime, as results state it."""
    return str(onnxruntime().__version__)


def _errors(*names: str) -> tuple[type[Exception], ...]:
    """The exceptions of onnxruntime of these names; they have no common base of their own."""
    state = onnxruntime().capi.onnxruntime_pybind11_state
    return tuple(getattr(state, name) for name in names)


def _failures() -> tuple[type[Exception], ...]:
    """What a run raises; one with bound inputs knows but RuntimeError."""
    return (*_errors(*_ORT_ERRORS), RuntimeError)


def _size(name: str, axis: int, dim: int | str | None, dims: Mapping[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    if dim is None:
        raise InputsError(f"input {name!r} has a nameless dynamic axis {axis}: give the arrays themselves")
    sizes = {PAST_LENGTH: 0, **by_canonical_name(dims)}
    parts = [part.strip() for part in dim.split("+")] if dim not in sizes else [dim]
    for part in parts:
        if canonical(part) not in sizes:
            raise InputsError(
                f"dimension {part!r} of input {name!r} has no size: set it with --dim {part}=SIZE"
            )
    return sum(sizes[canonical(part)] for part in parts)


def _dtype(wanted: Any) -> np.dtype[Any]:
    """The numpy type of a graph input, from onnxruntime's "tensor(float)"."""
    kind = wanted.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _DTYPES:
        raise InputsError(f"input {wanted.name!r} is {wanted.type}, which has no numpy type here")
    return np.dtype(_DTYPES[kind])


def _checked_file(path: str | os.PathLike[str]) -> Path:
    graph = Path(path)
    if not graph.exists():
        raise GraphError(f"expected an ONNX file at {graph}, found nothing: check the path")
    if not graph.is_file():
        raise GraphError(f"expected an ONNX file at {graph}, found a folder: name the file in it")
    if graph.stat().st_size == 0:
        raise GraphError(f"expected an ONNX file at {graph}, found an empty one: export it again")
    try:
        external_files(graph)
    except OSError as error:
        raise GraphError(f"cannot read {graph}: {error.strerror}") from error
    return graph


@contextlib.contextmanager
def _quiet_cuda() -> Iterator[None]:
    """Load pip's CUDA libraries for onnxruntime, and keep its remarks about them off the console.

    What is wrong shows afterwards in ``session.get_providers()``, which the caller checks.
    """
    ort = onnxruntime()

    ort.set_default_logger_severity(_SILENT)
    try:
        with contextlib.redirect_stdout(None):
            ort.preload_dlls()
        yield
    finally:
        ort.set_default_logger_severity(_DEFAULT_SEVERITY)

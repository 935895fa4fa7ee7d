"""Opening graphs, refusing what cannot be opened in one line, and feeding them by name."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

import svd2onnx_runtime.session as session_module
from svd2onnx_runtime import (
    GraphError,
    InputsError,
    ProviderError,
    gpu_count,
    open_session,
    provider_of,
    run,
    synthetic_inputs,
)
from svd2onnx_runtime.session import open_reference, resolve_provider
from tests.runtime.quantized_graphs import quantized_matmul, token_graph

RUNTIME = Path(__file__).parents[2] / "runtime"


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    token_graph(tmp_path / "tokens.onnx")
    return tmp_path / "tokens.onnx"


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(("k", "block"), [(128, 32), (100, 32), (16, 64), (48, 64), (130, 128)], ids=str)
def test_strict_and_deployed_sessions_compute_the_float_graph(
    tmp_path: Path, bits: int, k: int, block: int
) -> None:
    path = tmp_path / "graph.onnx"
    weight = quantized_matmul(path, k=k, bits=bits, block=block)
    x = np.random.default_rng(1).standard_normal((5, k)).astype(np.float32)
    expected = x @ weight
    errors = [
        np.linalg.norm(run(open_session(path, "cpu", strict=strict), {"x": x})["y"] - expected)
        / np.linalg.norm(expected)
        for strict in (True, False)
    ]
    assert errors[0] < 1e-6
    assert errors[1] < 0.02  # activations rounded to int8 in blocks


def test_deployed_session_rounds_activations_where_a_strict_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    weight = quantized_matmul(path)
    x = np.random.default_rng(1).standard_normal((5, 128)).astype(np.float32)
    deployed = run(open_session(path, "cpu"), {"x": x})["y"]
    assert np.abs(deployed - x @ weight).max() > 1e-4


def test_weights_of_large_graphs_stay_in_their_file_where_speed_is_no_matter(
    tokens: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_packed(session: session_module.Session) -> bool:
        try:
            return session.get_session_options().get_session_config_entry("session.disable_prepacking") != "1"
        except RuntimeError:  # it has no such entry
            return True

    assert is_packed(open_session(tokens, "cpu", strict=True))
    monkeypatch.setattr(session_module, "_LARGE", 1)
    assert not is_packed(open_session(tokens, "cpu", strict=True))
    assert not is_packed(open_reference(tokens, "cpu"))
    assert is_packed(open_session(tokens, "cpu"))


def write_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda folder: folder / "absent.onnx", "found nothing"),
        (lambda folder: folder, "found a folder"),
        (lambda folder: write_bytes(folder / "empty.onnx", b""), "found an empty one"),
        (lambda folder: write_bytes(folder / "text.onnx", b"not a graph"), "cannot load"),
    ],
    ids=["absent", "folder", "empty", "text"],
)
def test_unusable_files_are_graph_errors_in_one_line(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], make, expected: str
) -> None:
    with pytest.raises(GraphError, match=expected) as caught:
        open_session(make(tmp_path), "cpu")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_unknown_provider_is_refused() -> None:
    with pytest.raises(ProviderError, match="'tpu'"):
        resolve_provider("tpu")


def test_cuda_without_a_gpu_is_refused_in_one_line_and_silently(
    tokens: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_module, "gpu_count", lambda: 0)
    with pytest.raises(ProviderError, match=r"CPUExecutionProvider.*no GPU") as caught:
        open_session(tokens, "cuda")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")
    assert provider_of(open_session(tokens, "auto")) == "cpu"


@pytest.mark.skipif(gpu_count() > 0, reason="needs a machine without a GPU")
@pytest.mark.filterwarnings("ignore:Specified provider 'CUDA")  # where onnxruntime is the one for the CPU
def test_a_cuda_provider_that_does_not_start_is_no_silent_fallback(
    tokens: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver shows a GPU, but onnxruntime ends up with the CPU only."""
    monkeypatch.setattr(session_module, "resolve_provider", lambda provider: "cuda")
    with pytest.raises(ProviderError, match="could not start") as caught:
        open_session(tokens, "cuda")
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_run_takes_its_own_inputs_and_leaves_labels(tokens: Path) -> None:
    session = open_session(tokens, "cpu")
    inputs = {
        "labels": np.zeros(2),
        "ids": np.array([[3, 4]]),
        "mask": np.array([[True, False]]),
        "noise": np.array([[0.5, 0.5]], np.float32),
    }
    np.testing.assert_array_equal(run(session, inputs)["y"], [[3.5, 0.5]])


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"mask": None}, "needs input 'mask'"),
        ({"ids": np.ones((2, 3), np.int32)}, "'ids' must be int64, found int32"),
        ({"noise": np.ones((2, 3))}, "'noise' must be float32, found float64"),
        ({"noise": np.ones((2, 3, 1), np.float32)}, "Invalid rank"),
    ],
    ids=["missing", "integer width", "float width", "rank"],
)
def test_arrays_that_do_not_fit_are_inputs_errors_in_one_line(
    tokens: Path, capfd: pytest.CaptureFixture[str], change: dict, expected: str
) -> None:
    session = open_session(tokens, "cpu")
    inputs = synthetic_inputs(session, {"batch": 2, "sequence": 3}) | change
    given = {name: array for name, array in inputs.items() if array is not None}
    with pytest.raises(InputsError, match=expected) as caught:
        run(session, given)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_a_graph_that_fails_while_running_is_a_graph_error(
    tokens: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    session = open_session(tokens, "cpu")
    inputs = synthetic_inputs(session, {"batch": 2, "sequence": 3})
    inputs["noise"] = np.ones((2, 4), np.float32)  # the symbols differ, and Add cannot broadcast
    with pytest.raises(GraphError, match="failed while running") as caught:
        run(session, inputs)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_synthetic_inputs_have_the_sizes_types_and_seed_asked_for(tokens: Path) -> None:
    session = open_session(tokens, "cpu")
    sizes = {"batch": 4, "sequence": 50}
    inputs = synthetic_inputs(session, sizes, seed=3)
    assert {name: (array.dtype.name, array.shape) for name, array in inputs.items()} == {
        "ids": ("int64", (4, 50)),
        "mask": ("bool", (4, 50)),
        "noise": ("float32", (4, 50)),
    }
    assert (inputs["ids"] == 1).all()
    assert inputs["mask"].all()
    assert abs(inputs["noise"].std() - 1) < 0.2
    again, other = (synthetic_inputs(session, sizes, seed)["noise"] for seed in (3, 4))
    np.testing.assert_array_equal(inputs["noise"], again)
    assert (inputs["noise"] != other).any()


def test_a_dimension_without_a_size_names_the_option(tokens: Path) -> None:
    with pytest.raises(InputsError, match=r"--dim sequence=SIZE"):
        synthetic_inputs(open_session(tokens, "cpu"), {"batch": 4})


def test_the_runtime_runs_where_torch_and_onnx_are_blocked(tokens: Path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(RUNTIME)!r})
for name in ("torch", "onnx", "onnx_ir", "onnxscript"):
    sys.modules[name] = None  # importing it raises ImportError
import svd2onnx_runtime as r
assert "onnxruntime" not in sys.modules  # errors and value types come without it
certificate = r.certify({str(tokens)!r}, "cpu", {{"batch": 1, "sequence": 2}})
print(certificate.planned, certificate.ok)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("0 True", "")


def test_metadata_that_is_no_text_is_told(tokens: Path) -> None:
    model = onnx.load(tokens)
    model.metadata_props.add(key="key", value="a value of text")
    tokens.write_bytes(model.SerializeToString().replace(b"a value of text", b"\xff value of text"))
    with pytest.raises(GraphError, match=r"metadata, of .*tokens\.onnx are no text"):
        open_session(tokens, "cpu")

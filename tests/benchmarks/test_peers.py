"""Each peer on the tiny network: a file of the size that its format has, close to the float one."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.contenders import Contender, contenders
from benchmarks.judging import Judge
from benchmarks.measuring import Row, measure
from benchmarks.moments import input_moments
from benchmarks.peers import nncf_weights, onnxsim_ptq, ort_nbits, ours, plain_gptq, plain_svd
from benchmarks.task import Task
from benchmarks.worker import PeerError

pytestmark = pytest.mark.filterwarnings("ignore")  # the peers' own


class Here:
    """A worker in this process: the peers' own errors are what is tested."""

    def compress(self, task: Task, contender: Contender, output: Path) -> None:
        try:
            contender.run(task, output)
        except Exception as error:
            raise PeerError(f"{type(error).__name__}: {error}") from error


@pytest.fixture
def row_of(task: Task, judge: Judge, tmp_path: Path) -> Any:
    def measured(peer: Any, **setting: Any) -> Row:
        return measure(task, Contender("peer", peer.compress, setting), Here(), judge, tmp_path)

    return measured


NODES = 0.8
"""Bits per weight that the names and attributes of a few more nodes make in so small a file."""


@pytest.mark.parametrize(
    ("setting", "bits", "error"),
    [
        ({"algorithm": "default", "bits": 8, "block": 32}, 9.25, 1e-4),
        ({"algorithm": "default", "bits": 4, "block": 32, "symmetric": True}, 5.0, 2e-2),
        ({"algorithm": "default", "bits": 4, "block": 32, "symmetric": True, "qdq": True}, 5.0, 2e-2),
        ({"algorithm": "default", "bits": 2, "block": 16}, 4.125, 0.5),
        ({"algorithm": "hqq", "bits": 4, "block": 64}, 5.0, 2e-2),
        ({"algorithm": "k_quant", "bits": 4, "block": 32}, 5.125, 2e-2),
        ({"algorithm": "k_quant", "bits": 8, "block": 32}, 9.25, 1e-4),
        ({"algorithm": "gptq", "bits": 4, "block": 32}, 5.125, 2e-2),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_onnxruntime(row_of: Any, setting: dict[str, Any], bits: float, error: float) -> None:
    row = row_of(ort_nbits, **setting)
    assert row.failure == ""
    assert bits <= row.bits_per_weight <= bits + NODES
    assert 0 < row.strict < error
    assert row.deployed == pytest.approx(row.strict, rel=0.2)
    assert 0 <= row.metric <= 1


def test_gptq_of_onnxruntime_does_not_look_at_the_data() -> None:
    """The day this fails it has become a real peer, and its row is to be measured again."""
    from onnxruntime.quantization.neural_compressor.weight_only import gptq

    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 64)) @ generator.normal(size=(64, 64))
    weight = generator.normal(size=(64, 32))
    blind, seeing = (gptq(weight.copy(), moment) for moment in (np.eye(64), inputs.T @ inputs))
    np.testing.assert_array_equal(blind, seeing)


def test_onnxruntime_leaves_8_bits_as_qdq_in_float_and_the_row_says_so(row_of: Any) -> None:
    row = row_of(ort_nbits, algorithm="default", bits=8, block=32, symmetric=True, qdq=True)
    assert row.failure == "it left every Linear in float32, without an error"
    assert row.strict is None


@pytest.mark.parametrize(("share", "error"), [(1.0, 0.2), (0.25, 0.9)])
def test_plain_svd_halves_the_bits_by_float16(row_of: Any, share: float, error: float) -> None:
    row = row_of(plain_svd, share=share)
    assert 16 * share - 0.5 <= row.bits_per_weight <= 16 * share + NODES
    assert 0 < row.strict < error


@pytest.mark.parametrize(("bits", "block", "error"), [(8, 64, 1e-4), (4, 32, 1e-2), (2, 16, 0.3)])
def test_plain_gptq(row_of: Any, bits: int, block: int, error: float) -> None:
    row = row_of(plain_gptq, bits=bits, block=block)
    assert row.failure == ""
    assert row.bits_per_weight == pytest.approx(bits + (32 + bits) / block + NODES / 2, abs=NODES)
    assert 0 < row.strict < error


@pytest.mark.parametrize("order", [False, True])
def test_plain_gptq_loses_less_than_rounding_where_it_was_fitted(task: Task, order: bool) -> None:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(200, 64)) @ generator.normal(size=(64, 64))
    weight, moment = generator.normal(size=(64, 32)), inputs.T @ inputs
    fitted = _error(inputs, weight, moment, order)
    assert fitted < 0.7 * _error(inputs, weight, np.eye(64), order)  # uncorrelated: rounds to nearest


def _error(inputs: np.ndarray, weight: np.ndarray, moment: np.ndarray, order: bool) -> float:
    codes, scales, zeros = plain_gptq.quantize(weight, moment, 4, 16, order=order)
    stored = (codes - np.repeat(zeros, 16, axis=0)) * np.repeat(scales, 16, axis=0)
    return float(((inputs @ (stored - weight)) ** 2).sum())


def test_moments_are_those_of_what_enters_each_linear(task: Task) -> None:
    first, second = input_moments(task).values()
    assert (first.shape, second.shape) == ((64, 64), (128, 128))
    tokens = sum(feed["ids"].size for feed in task.calibration)
    assert np.trace(first) / (64 * tokens) == pytest.approx(1, abs=0.2)  # the table is standard normal
    assert np.linalg.eigvalsh(second).min() > -1e-3


def test_svd2onnx_leaves_the_table_in_float(row_of: Any) -> None:
    row = row_of(ours, method="quantize", bits=4, block_size=32)
    assert row.failure == ""
    assert 4.5 <= row.bits_per_weight <= 4.5 + 2 * NODES


@pytest.mark.parametrize(
    ("setting", "bits"),
    [
        ({"algorithm": "rtn"}, 5.0),
        ({"algorithm": "gptq"}, 5.0),
        ({"algorithm": "gptq", "block": 64}, 4.5),
        ({"algorithm": "lqer", "rank": 4}, 8.0),
        ({"algorithm": "svdquant", "rank": 4}, 8.0),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)
def test_onnxsim(row_of: Any, setting: dict[str, Any], bits: float) -> None:
    pytest.importorskip("onnxsim")
    row = row_of(onnxsim_ptq, **setting)
    assert row.failure == ""
    assert bits <= row.bits_per_weight <= bits + 2 * NODES  # dead float weights would add 32
    assert 0 < row.strict < 2e-2


@pytest.mark.parametrize("refine", [False, True], ids=["rtn", "gptq"])
def test_codes_for_onnxsim_are_its_own(task: Task, refine: bool) -> None:
    onnxsim = pytest.importorskip("onnxsim")
    import onnx

    original = onnx.load(task.graph)
    own = onnxsim.quantize_weight_only_int4(original)
    if refine:
        own = onnxsim.apply_gptq(original, own, [dict(feed) for feed in task.calibration])
    ours = onnxsim_ptq.rounded(task.graph, 32, onnxsim_ptq._gptq(task, 32, 0.01) if refine else None)
    expected, codes = (
        [t.raw_data for t in model.graph.initializer if t.data_type == onnx.TensorProto.INT4]
        for model in (own, ours)
    )
    assert len(expected) == 2
    assert codes == expected


def test_nncf(row_of: Any) -> None:
    pytest.importorskip("nncf")
    row = row_of(nncf_weights, mode="INT4_SYM", block=32)
    assert row.failure == ""
    assert 5.0 <= row.bits_per_weight <= 5.0 + 2 * NODES


@pytest.mark.parametrize(
    ("package", "peer", "setting"),
    [("nncf", nncf_weights, {"mode": "INT8_SYM"}), ("onnxsim", onnxsim_ptq, {"algorithm": "rtn"})],
)
def test_package_that_is_not_installed_is_the_reason(
    row_of: Any, monkeypatch: pytest.MonkeyPatch, package: str, peer: Any, setting: dict[str, Any]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    row = row_of(peer, **setting)
    assert row.failure.startswith("ModuleNotFoundError: ")
    assert package in row.failure


def test_quantized_table_is_refused(task: Task, row_of: Any) -> None:
    class Cheat:
        @staticmethod
        def compress(task: Task, output: Path) -> None:
            import onnx_ir as ir

            model = ir.load(task.graph)
            for value in model.graph.initializers.values():
                if tuple(value.shape.numpy()) == (160, 64):
                    value.const_value = ir.Tensor(np.zeros((160, 64), np.float16))
            ir.save(model, output)

    assert row_of(Cheat).failure.startswith("the embedding tables [(160, 64)] are no longer float32")


def test_settings_are_told_apart() -> None:
    keys = [(contender.name, contender.label) for contender in contenders()]
    assert len(set(keys)) == len(keys)

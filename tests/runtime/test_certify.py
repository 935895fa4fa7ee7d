"""Each planned MatMul is matched to its kernel by name, and each refusal states its reason."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

from svd2onnx_runtime import Certificate, GraphError, InputsError, certify
from tests.runtime.quantized_graphs import NODE, float_matmul, quantized_matmul

DIMS = {"batch": 3, "sequence": 5}


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize("shape", [("batch",), ("batch", "sequence"), (3, 5)], ids=["2d", "3d", "static 3d"])
def test_a_fused_matmul_is_found_under_its_own_name(
    tmp_path: Path, bits: int, bias: bool, shape: tuple
) -> None:
    """Also where onnxruntime makes a Gemm of MatMul and Add, which renames the node."""
    path = tmp_path / "graph.onnx"
    quantized_matmul(path, bits=bits, bias=bias, shape=shape)
    certificate = certify(path, "cpu", DIMS)
    assert certificate == Certificate("cpu", certificate.onnxruntime, 1, (NODE,), ())
    assert certificate.ok


@pytest.mark.parametrize(
    ("form", "reason"),
    [
        ({"block": 8}, "block size 8 is not a power of two in 16..256"),
        ({"block": 512, "k": 1024}, "block size 512 is not"),
        ({"bits": 2, "n": 50}, "int2 with N = 50"),
        ({"reader": True}, r"DequantizeLinear to \[128, 64\] runs on every call"),
    ],
    ids=["block 8", "block 512", "int2 N", "two readers"],
)
def test_an_unfused_matmul_is_named_with_its_reason(tmp_path: Path, form: dict, reason: str) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path, **form)
    certificate = certify(path, "cpu", DIMS)
    assert (certificate.planned, certificate.fused, certificate.ok) == (1, (), False)
    ((name, stated),) = certificate.unfused
    assert name == NODE
    assert re.search(reason, stated)


def test_a_matmul_planned_for_int8_arithmetic_that_runs_otherwise_is_unfused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path)
    entry = {"node": NODE, "bits": 4, "block_size": 32, "k": 128, "n": 64, "activations": "int8"}
    edit_plan(path, json.dumps([entry]))
    assert certify(path, "cpu", DIMS).unfused == (
        (NODE, "ran as MatMulNBits, not as MatMulIntegerToFloat or DynamicQuantizeMatMul"),
    )


FOLDED = {"node": NODE, "bits": 4, "block_size": 32, "k": 128, "n": 64, "operator": "folded", "weight": "w"}


def test_a_weight_that_is_made_at_load_is_folded_on_purpose(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    float_matmul(path, np.ones((128, 64)))
    model = onnx.load(path)
    onnx.helper.set_model_props(model, {"svd2onnx.matmuls": json.dumps([FOLDED])})
    onnx.save(model, path)
    certificate = certify(path, "cpu", DIMS)
    assert certificate == Certificate("cpu", certificate.onnxruntime, 1, (), (), folded=(NODE,))
    assert certificate.ok
    assert not certificate.cuda_graph_ok  # it was not asked on CUDA


def test_of_a_stored_weight_only_the_making_counts(tmp_path: Path) -> None:
    """Its entry names no node that runs."""
    path = tmp_path / "graph.onnx"
    float_matmul(path, np.ones((128, 64)))
    model = onnx.load(path)
    entry = FOLDED | {"node": "stored_0", "weight": "stored_0", "op": "Stored"}
    onnx.helper.set_model_props(model, {"svd2onnx.matmuls": json.dumps([entry])})
    onnx.save(model, path)
    assert certify(path, "cpu", DIMS).folded == ("stored_0",)
    model.graph.node[0].name = "stored_0/product"
    onnx.save(model, path)
    assert certify(path, "cpu", DIMS).unfused == (
        ("stored_0", "its weight is made on every call, by MatMul stored_0/product"),
    )


def test_a_weight_that_is_made_on_every_call_is_not_folded(tmp_path: Path) -> None:
    """Named by the node that makes it, here one that onnxruntime does not fold."""
    path = tmp_path / "graph.onnx"
    quantized_matmul(path, reader=True)
    model = onnx.load(path)
    next(node for node in model.graph.node if node.name == "dq").name = "w/product"
    onnx.save(model, path)
    edit_plan(path, json.dumps([FOLDED]))
    certificate = certify(path, "cpu", DIMS)
    assert (certificate.fused, certificate.folded, certificate.ok) == ((), (), False)
    assert certificate.unfused[0][1].startswith("its weight is made on every call, by DequantizeLinear w/")


def test_the_refused_int2_form_is_really_wrong_on_this_onnxruntime(tmp_path: Path) -> None:
    """Shows that the refusal is still needed: the fused kernel misreads int2 rows of 50."""
    from svd2onnx_runtime import open_session, run

    path = tmp_path / "graph.onnx"
    weight = quantized_matmul(path, bits=2, n=50)
    x = np.random.default_rng(1).standard_normal((3, 128)).astype(np.float32)
    error = np.linalg.norm(run(open_session(path, "cpu"), {"x": x})["y"] - x @ weight)
    assert error > 0.1 * np.linalg.norm(x @ weight)


def edit_plan(path: Path, text: str) -> None:
    model = onnx.load(path)
    model.metadata_props[0].value = text
    onnx.save(model, path)


def test_a_planned_node_that_never_ran_is_unfused(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path)
    entry = {"node": "/gone", "bits": 4, "block_size": 32, "k": 128, "n": 64}
    edit_plan(path, json.dumps([entry]))
    certificate = certify(path, "cpu", DIMS)
    assert [name for name, _ in certificate.unfused] == ["/gone"]
    assert "no executed node" in certificate.unfused[0][1]


def test_a_weight_that_is_float_at_run_time_is_unfused(tmp_path: Path) -> None:
    """The plan names a MatMul whose weight reaches the kernel as float."""
    path = tmp_path / "graph.onnx"
    float_matmul(path, np.ones((128, 64)))
    model = onnx.load(path)
    entry = {"node": NODE, "bits": 4, "block_size": 32, "k": 128, "n": 64}
    onnx.helper.set_model_props(model, {"svd2onnx.matmuls": json.dumps([entry])})
    onnx.save(model, path)
    assert certify(path, "cpu", DIMS).unfused == (
        (NODE, "ran as MatMul: the weight was folded to float at load"),
    )


@pytest.mark.parametrize(
    ("reader", "fused", "unfused"), [(False, (NODE,), []), (True, (), ["dq"])], ids=["yes", "no"]
)
def test_without_a_plan_the_executed_nodes_are_counted(
    tmp_path: Path, reader: bool, fused: tuple, unfused: list
) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path, planned=False, reader=reader)
    certificate = certify(path, "cpu", DIMS)
    assert certificate.fused == fused
    names = [name.removesuffix("/duplicated") for name, _ in certificate.unfused]
    assert sorted(set(names)) == unfused


def test_a_float_file_is_ok_with_nothing_planned(tmp_path: Path) -> None:
    float_matmul(tmp_path / "float.onnx", np.ones((16, 8)))
    certificate = certify(tmp_path / "float.onnx", "cpu", DIMS)
    assert (certificate.planned, certificate.ok) == (0, True)


@pytest.mark.parametrize("text", ["no json", "[3]", '[{"node": "a"}]', "7"])
def test_a_damaged_plan_is_a_graph_error(tmp_path: Path, text: str) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path)
    edit_plan(path, text)
    with pytest.raises(GraphError, match=r"svd2onnx\.matmuls"):
        certify(path, "cpu", DIMS)


def test_a_plan_that_names_a_node_twice_is_a_graph_error(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path)
    entry = {"node": NODE, "bits": 4, "block_size": 32, "k": 128, "n": 64}
    edit_plan(path, json.dumps([entry, entry]))
    with pytest.raises(GraphError, match="twice"):
        certify(path, "cpu", DIMS)


def test_given_inputs_replace_synthetic_ones(tmp_path: Path) -> None:
    path = tmp_path / "graph.onnx"
    quantized_matmul(path)
    assert certify(path, "cpu", inputs={"x": np.ones((2, 128), np.float32)}).ok
    with pytest.raises(InputsError, match="--dim batch=SIZE"):
        certify(path, "cpu")

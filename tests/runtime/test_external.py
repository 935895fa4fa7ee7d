"""External weights are found, counted, and may not lie outside of the graph's folder."""

import os
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from svd2onnx_runtime import GraphError, graph_bytes, open_session
from svd2onnx_runtime.external import external_files

WEIGHT = np.arange(16, dtype=np.float32).reshape(4, 4)


def graph_with(folder: Path, location: str, *, value_first: bool = False) -> Path:
    """y = x W, with W in the file ``location``."""
    tensor = numpy_helper.from_array(WEIGHT, "w")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [2, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [tensor])
    content = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10
    ).SerializeToString()
    if value_first:
        key, value = b"\x0a\x08location", b"\x12" + bytes([len(location)]) + location.encode()
        assert key + value in content
        content = content.replace(key + value, value + key)
    path = folder / "graph.onnx"
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("name", ["graph.onnx.data", "below/weights", "w" * 200, "./a/../weights"])
def test_files_beside_and_below_the_graph_are_fine(tmp_path: Path, name: str) -> None:
    (tmp_path / "below").mkdir()
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_bytes(WEIGHT.tobytes())
    path = graph_with(tmp_path, name)
    assert external_files(path) == [tmp_path / name]
    assert graph_bytes(path) == path.stat().st_size + WEIGHT.nbytes
    if "/.." not in name:
        assert open_session(path, "cpu").get_inputs()[0].name == "x"


@pytest.mark.parametrize(
    "name",
    ["../secret", "/etc/hostname", "below/../../secret", "link/secret", "x" * 130 + "/../../../secret"],
)
@pytest.mark.parametrize(
    "measure", [graph_bytes, lambda path: open_session(path, "cpu")], ids="bytes open".split()
)
def test_a_file_elsewhere_is_refused(tmp_path: Path, name: str, measure: object) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to(tmp_path)
    path = graph_with(folder, name)
    with pytest.raises(GraphError, match=r"outside of its own folder") as caught:
        measure(path)  # type: ignore[operator]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_pair_in_another_order_is_refused_by_onnxruntime(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(WEIGHT.tobytes())
    path = graph_with(folder, "../secret", value_first=True)
    assert (
        onnx.load(path, load_external_data=False).graph.initializer[0].external_data[0].value == "../secret"
    )
    with pytest.raises(GraphError, match="escapes"):
        open_session(path, "cpu")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_a_graph_that_may_not_be_read_is_named(tmp_path: Path) -> None:
    path = graph_with(tmp_path, "weights")
    path.chmod(0)
    with pytest.raises(GraphError, match="cannot read"):
        open_session(path, "cpu")

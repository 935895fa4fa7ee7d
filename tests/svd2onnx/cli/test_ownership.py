"""Files of others are not replaced, those of svd2onnx are; gigabytes of weights are not read to tell them."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from svd2onnx.cli.ownership import check_replaceable, is_our_graph, is_our_page
from svd2onnx.reporting.page import render
from svd2onnx.reporting.report import read_report
from svd2onnx.values.errors import OutputError


def graph(path: Path, weights: int = 8, **metadata: str) -> Path:
    """An ONNX file of others: one Add, and its metadata."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [weights]) for name in "xy")
    w = helper.make_tensor("w", TensorProto.FLOAT, [weights], bytes(4 * weights), raw=True)
    model = helper.make_model(
        helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [w]),
        producer_name="pytorch",
    )
    helper.set_model_props(model, metadata)
    onnx.save(model, path)
    return path


def sparse(path: Path, size: int) -> Path:
    """An ONNX file of ``size`` bytes of weights, of which the disk holds none."""
    entry = onnx.StringStringEntryProto(key="svd2onnx.version", value="1").SerializeToString()

    def varint(value: int) -> bytes:
        parts = []
        while value > 0x7F:
            parts.append(value & 0x7F | 0x80)
            value >>= 7
        return bytes([*parts, value])

    with path.open("wb") as file:
        file.write(b"\x08\x0a\x3a" + varint(size))  # the version, and the graph
        file.seek(size, 1)
        file.write(b"\x72" + varint(len(entry)) + entry)
    return path


def test_a_graph_is_told_by_its_metadata(tmp_path: Path, compressed_file: Path) -> None:
    assert is_our_graph(compressed_file)
    assert is_our_graph(graph(tmp_path / "a.onnx", author="me", **{"svd2onnx.method": "auto"}))
    assert not is_our_graph(graph(tmp_path / "b.onnx"))
    assert not is_our_graph(graph(tmp_path / "c.onnx", author="svd2onnx.version", my_svd2onnx="x"))


@pytest.mark.parametrize(
    "content", [b"", b"text", b"\x72", b"\x72\xff\xff\xff\xff\x0f", b"\xff" * 20, b"\x07"]
)
def test_what_is_no_graph_is_not_ours(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a").write_bytes(content)
    assert not is_our_graph(tmp_path / "a")


def test_weights_are_not_read(tmp_path: Path) -> None:
    path = sparse(tmp_path / "large.onnx", 1 << 40)  # a terabyte, which nobody reads
    assert is_our_graph(path)


def test_every_form_of_file_is_known_again(tmp_path: Path, compressed_file: Path) -> None:
    from svd2onnx.graph.file_formats import to_format
    from svd2onnx.values.settings import FileFormat

    whole = tmp_path / "whole.onnx"  # with its weights, which lie in a file beside it
    onnx.save(onnx.load(compressed_file), whole)
    for form in (FileFormat("folded"), FileFormat("matmulnbits"), FileFormat(dtype="float16")):
        to_format(whole, tmp_path / "a.onnx", form)
        assert is_our_graph(tmp_path / "a.onnx")


def test_a_page_is_told_by_its_title(tmp_path: Path, compressed_file: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render(read_report(Path(f"{compressed_file}.report.json"))), encoding="utf-8")
    assert is_our_page(page)
    page.write_text("<html><title>My notes</title> on svd2onnx</html>")
    assert not is_our_page(page)


def test_a_float_graph_is_told_by_a_report_beside_it(tmp_path: Path) -> None:
    reference, output = graph(tmp_path / "float.onnx"), tmp_path / "out.onnx"
    with pytest.raises(OutputError, match=r"float.onnx is there already.*--reference.*--overwrite"):
        check_replaceable(output, reference, None)
    report = tmp_path / "other.onnx.report.json"
    (tmp_path / "float.onnx.data").write_bytes(bytes(100))
    size = reference.stat().st_size + 100
    for text in ("{", "[]", "{}", json.dumps({"format": "svd2onnx-report/1", "float_bytes": size + 1})):
        report.write_text(text)
        with pytest.raises(OutputError, match="did not write it"):
            check_replaceable(output, reference, None)
    report.write_text(json.dumps({"format": "svd2onnx-report/1", "float_bytes": size}))
    check_replaceable(output, reference, None)


def test_files_of_others_stay(tmp_path: Path) -> None:
    taken = graph(tmp_path / "model.onnx")
    page = tmp_path / "page.html"
    page.write_text("<title>Mine</title>")
    with pytest.raises(OutputError, match=r"model.onnx is there already.*name another file with -o"):
        check_replaceable(taken, None, None)
    with pytest.raises(OutputError, match=r"page.html is there already.*--report"):
        check_replaceable(tmp_path / "new.onnx", None, page)
    check_replaceable(tmp_path / "new.onnx", tmp_path / "new.float.onnx", tmp_path / "new.html")

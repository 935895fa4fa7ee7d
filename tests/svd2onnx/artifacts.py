"""Files as compress-export writes them, for tests that package them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from click.testing import CliRunner

from svd2onnx.cli.main import main
from svd2onnx.reporting.report import file_digest
from tests.svd2onnx.conftest import MODEL_FILE

Edit = Callable[[dict[str, Any]], object]


def compress(folder: Path) -> Path:
    """A file with all that compress-export writes beside it, its weights too."""
    source, output = folder / "network.py", folder / "out.onnx"
    source.write_text(MODEL_FILE)
    options = "--provider cpu --threads 1 --method quantize --external-data".split()
    written = ["-o", str(output), "--reference", str(folder / "float.onnx")]
    arguments = ["compress-export", str(source), *written, *options]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output


def copied(graph: Path, folder: Path, name: str = "out.onnx") -> Path:
    """The file and what is beside it, in another folder; its name may change, that of its weights may not."""
    for suffix in (".report.json", ".plan.json"):
        shutil.copyfile(f"{graph}{suffix}", folder / f"{name}{suffix}")
    shutil.copyfile(f"{graph}.data", folder / f"{graph.name}.data")
    return Path(shutil.copyfile(graph, folder / name))


def in_one_file(graph: Path, folder: Path) -> Path:
    """The file with its weights in it."""
    whole = copied(graph, folder)
    model = ir.load(whole)
    for tensor in model.graph.initializers.values():
        assert tensor.const_value is not None
    ir.save(ir.external_data.load_to_model(model), whole)
    Path(f"{whole}.data").unlink()
    edited(whole, lambda report: report.update(sha256=file_digest(whole), data_sha256=None))
    return whole


def edited(graph: Path, edit: Edit, suffix: str = ".report.json") -> Path:
    """``graph``, whose report or plan is changed."""
    path = Path(f"{graph}{suffix}")
    record = json.loads(path.read_text())
    edit(record)
    path.write_text(json.dumps(record))
    return graph

"""Imports point downwards only, and what must be light stays light."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "svd2onnx").glob("**/*.py"))

# Lowest first: a module imports only modules that stand before it.
LAYERS = (
    "errors environment interruption failures progress once self_contained executors device workers "
    "drafts outputs memory spill room scales schema quantize moments descent lowrank convolution "
    "convex_hull layer_statistics layers decoder loading probes agreement gathering calibrate rounding "
    "factors realize promising score activations planner candidates records entries cache recall knapsack "
    "deadline report wording charts page goals modules straight_through teacher student rewrite recover "
    "liveness nodes code_nodes folding convolution_nodes table_nodes stored qdq signature export integer "
    "layer_graphs latency settings sources sources.images sources.inputs sources.network sources.archive "
    "sources.pickles sources.program_text sources.program_safety sources.graph_operators "
    "sources.graph_layers sources.exported sources.safetensor_files sources.state_dict sources.pickled "
    "sources.huggingface_config sources.tokenizer sources.huggingface sources.npz sources.calibration "
    "sources.detect sources.source sources.load folded packed half forms plain batchnorm preparation "
    "clock verify timing building choosing settling pipeline inspection sweep_points study sweep "
    "generation tables plots artifact card triton packaging __init__ options console commands "
    "commands.compress_export commands.sweep commands.inspect commands.bench commands.evaluate "
    "commands.certify commands.generate commands.report commands.package commands.completion cli __main__"
).split()

BLOCK_AND_IMPORT = """
import importlib, pkgutil, sys
for name in ("torch", "onnx", "onnx_ir", "onnxscript", "svd2onnx"):
    sys.modules[name] = None  # importing it raises ImportError
import svd2onnx_runtime
for module in pkgutil.iter_modules(svd2onnx_runtime.__path__):
    print(importlib.import_module(f"svd2onnx_runtime.{module.name}").__name__)
"""

IMPORT_CLI = """
import sys
import svd2onnx.cli
heavy = {"numpy", "rich", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "svd2onnx.pipeline"}
print(*sorted(heavy & set(sys.modules)))
"""


def layer_of(name: str) -> str:
    """The module of LAYERS that holds ``name``, which is dotted and may end in a function or a class."""
    while name and name not in LAYERS:
        name = name.rpartition(".")[0]
    return name or "__init__"


def name_of(path: Path) -> str:
    """The dotted name of a file below the package; that of a folder for its ``__init__.py``."""
    name = ".".join(path.relative_to(ROOT / "svd2onnx").with_suffix("").parts)
    return name.removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module of svd2onnx that a file imports, as it is named in LAYERS."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, rest in (name.partition(".") for name in names):
            if package == "svd2onnx":
                yield layer_of(rest)


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints; a failure shows its traceback."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_lower_layers(path: Path) -> None:
    name = name_of(path)
    assert name in LAYERS, f"place {name} in LAYERS, above all that it imports"
    lower = LAYERS[: LAYERS.index(name)]
    assert set(imports_of(path)) <= set(lower)


def test_imports_are_found_in_each_form(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import svd2onnx.quantize\n"
        "from svd2onnx import layers, compress_export\n"
        "from svd2onnx_runtime import errors\n"
        "from svd2onnx.commands.bench import bench\n"
        "def f():\n    from svd2onnx.schema import QuantSpec\n"
    )
    assert sorted(imports_of(file)) == ["__init__", "commands.bench", "layers", "quantize", "schema"]


def test_the_runtime_imports_without_the_compressor_and_torch() -> None:
    imported = run_python(BLOCK_AND_IMPORT).split()
    files = (ROOT / "runtime" / "svd2onnx_runtime").glob("[!_]*.py")
    assert sorted(imported) == sorted(f"svd2onnx_runtime.{file.stem}" for file in files)


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert run_python(IMPORT_CLI) == ""

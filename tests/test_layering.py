"""Imports point downwards only, and what must be light stays light."""

import ast
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "svd2onnx"
MODULES = sorted(PACKAGE.glob("*/**/*.py"))

# Highest first: a wing imports only itself and wings that stand behind it.
WINGS = (
    "cli study pipeline latency deployment memo graph planning compression retraining calibration sources "
    "tracing network reporting compute values"
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
import svd2onnx.cli.main
heavy = {"numpy", "rich", "torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "svd2onnx.pipeline"}
print(*sorted(heavy & set(sys.modules)))
"""


def name_of(path: Path) -> str:
    """The dotted name of a file within the package; that of a folder for its ``__init__.py``."""
    name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    return name.removesuffix(".__init__")


NAMES = {name_of(path) for path in MODULES}


def imports_of(path: Path) -> Iterator[str]:
    """Yield every module of svd2onnx that a file imports, "" for the package itself."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for package, _, name in (name.partition(".") for name in names):
            if package == "svd2onnx":
                while name and name not in NAMES:  # a function or a class of a module
                    name = name.rpartition(".")[0]
                yield name


def run_python(code: str) -> str:
    """Run code in a fresh interpreter and return what it prints; a failure shows its traceback."""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_every_file_has_a_wing() -> None:
    assert {path.parent.name for path in PACKAGE.glob("*/__init__.py")} == set(WINGS)
    beside = sorted(path.name for path in PACKAGE.iterdir() if path.is_file())
    assert beside == ["__init__.py", "__main__.py", "py.typed"]


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_wing_imports_none_above_it(path: Path) -> None:
    wing = name_of(path).partition(".")[0]
    allowed = WINGS[WINGS.index(wing) :]
    assert {name.partition(".")[0] for name in imports_of(path)} <= set(allowed)


def test_no_files_import_each_other_in_a_circle() -> None:
    graphlib.TopologicalSorter({name_of(path): set(imports_of(path)) for path in MODULES}).prepare()


def positional_arguments(path: Path) -> Iterator[tuple[str, int]]:
    """Each function of a file, and how many arguments it takes by position, "self" not counted."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef):
            names = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
            yield node.name, len([name for name in names if name not in ("self", "cls")])


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_function_takes_more_than_six_arguments_by_position(path: Path) -> None:
    # Commands get theirs by name from click; a module's forward has the arguments of what it stands for.
    found = [
        name
        for name, count in positional_arguments(path)
        if count > 6 and name != "forward" and path.parent.name != "commands"
    ]
    assert not found, "more than six: give them names, or make a value of those that belong together"


def test_imports_are_found_in_each_form(tmp_path: Path) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "import svd2onnx.compression.quantize\n"
        "from svd2onnx import compress_export\n"
        "from svd2onnx.graph import nodes\n"
        "from svd2onnx_runtime import errors\n"
        "from svd2onnx.cli.commands.bench import bench\n"
        "def f():\n    from svd2onnx.values.schema import QuantSpec\n"
    )
    found = ["", "cli.commands.bench", "compression.quantize", "graph.nodes", "values.schema"]
    assert sorted(imports_of(file)) == found


def test_the_runtime_imports_without_the_compressor_and_torch() -> None:
    imported = run_python(BLOCK_AND_IMPORT).split()
    files = (ROOT / "runtime" / "svd2onnx_runtime").glob("[!_]*.py")
    assert sorted(imported) == sorted(f"svd2onnx_runtime.{file.stem}" for file in files)


def test_the_command_line_starts_without_heavy_imports() -> None:
    assert run_python(IMPORT_CLI) == ""

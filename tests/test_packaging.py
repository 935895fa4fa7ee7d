"""What is declared is what is needed, and the wheel holds all that an installed svd2onnx needs."""

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_string
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
OWN = {"svd2onnx", "svd2onnx_runtime"}
DISTRIBUTIONS = {"PIL": "pillow"}
"""Of packages that have another name."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def bounds(requirements: list[str]) -> Iterator[tuple[str, str]]:
    """The name of each requirement with its lowest version."""
    for requirement in requirements:
        found = re.fullmatch(r"([\w.-]+)[>=]=([\d.]+)", requirement)
        assert found, f"{requirement}: expected a lower bound, NAME>=VERSION"
        yield found[1].lower().replace("_", "-"), found[2]


def imported(folder: str) -> set[str]:
    """The top-level packages that the files of ``folder`` import anywhere, without the standard library's."""
    names: set[str] = set()
    for path in (ROOT / folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                names.add((node.module or "").partition(".")[0])
    return names - sys.stdlib_module_names - OWN


def test_the_wheel_holds_both_packages_and_what_is_no_python(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for package, folder in (("svd2onnx", "svd2onnx"), ("svd2onnx_runtime", "runtime/svd2onnx_runtime")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files} <= names
    assert names >= {
        "svd2onnx/reporting/templates/report.html",
        "svd2onnx/deployment/templates/card.md",
        "svd2onnx/py.typed",
        "svd2onnx_runtime/py.typed",
    }
    assert any(name.endswith("entry_points.txt") for name in names)


def test_the_wheel_holds_nothing_else(wheel: zipfile.ZipFile) -> None:
    folders = {name.partition("/")[0] for name in wheel.namelist()}
    assert {folder for folder in folders if not folder.endswith(".dist-info")} == OWN


def test_an_installation_needs_one_of_the_extras_for_onnxruntime(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    metadata = message_from_string(wheel.read(name).decode())
    needed = [text for text in metadata.get_all("Requires-Dist", []) if text.startswith("onnxruntime")]
    assert [re.sub(r">=[\d.]+", "", text) for text in needed] == [
        "onnxruntime; extra == 'cpu'",
        "onnxruntime-gpu; extra == 'gpu'",
    ]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload() == (ROOT / "README.md").read_text(encoding="utf-8")


def test_what_is_imported_is_declared() -> None:
    requirements = list(PROJECT["project"]["dependencies"])
    for extra in PROJECT["project"]["optional-dependencies"].values():
        requirements += extra
    declared = {name for name, _ in bounds(requirements)}
    for folder in ("svd2onnx", "runtime/svd2onnx_runtime"):
        names = {DISTRIBUTIONS.get(name, name).lower().replace("_", "-") for name in imported(folder)}
        assert names <= declared


def test_the_lowest_releases_that_are_tested_are_the_lower_bounds() -> None:
    lines = (ROOT / "constraints-lowest.txt").read_text().splitlines()
    tested = dict(bounds([line for line in lines if re.search("==", line)]))
    declared = dict(bounds(PROJECT["project"]["dependencies"]))
    for extra in ("cpu", "minilm", "plot", "serving", "vision"):
        declared |= dict(bounds(PROJECT["project"]["optional-dependencies"][extra]))
    as_pins = {name: version.split(".") for name, version in declared.items()}
    assert {name: tested[name].split(".")[: len(pin)] for name, pin in as_pins.items()} == as_pins
    assert set(tested) == set(declared)


def test_both_onnxruntimes_are_pinned_to_one_version() -> None:
    pins = dict(re.findall(r"(?m)^(onnxruntime[\w-]*)==(.+)$", (ROOT / "constraints.txt").read_text()))
    assert set(pins) == {"onnxruntime", "onnxruntime-gpu"}
    assert len(set(pins.values())) == 1


def test_pre_commit_runs_what_make_lint_runs() -> None:
    recipe = re.search(r"(?m)^lint:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text())
    assert recipe
    linted = [line.strip().replace("$(BIN)", ".venv/bin") for line in recipe[1].splitlines()]
    hooks = re.findall(r"(?m)^ +entry: (.*)$", (ROOT / ".pre-commit-config.yaml").read_text())
    assert hooks == [line.replace(" --check", "") for line in linted]  # a hook formats, and stops the commit

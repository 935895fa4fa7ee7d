"""The wheel holds all that an installed svd2onnx needs."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_both_packages_and_what_is_no_python(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    for package, folder in (("svd2onnx", "svd2onnx"), ("svd2onnx_runtime", "runtime/svd2onnx_runtime")):
        files = [path for path in (ROOT / folder).rglob("*") if path.is_file() and path.suffix != ".pyc"]
        assert {f"{package}/{path.relative_to(ROOT / folder).as_posix()}" for path in files} <= names
    assert names >= {"svd2onnx/reporting/templates/report.html", "svd2onnx/deployment/templates/card.md"}
    assert any(name.endswith("entry_points.txt") for name in names)

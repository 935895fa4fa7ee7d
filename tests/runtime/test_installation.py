"""Exactly one onnxruntime, or one line with the command that leads there."""

import importlib.metadata
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import svd2onnx_runtime.session as session_module
from svd2onnx_runtime.errors import InstallationError, ProviderError
from svd2onnx_runtime.installation import _providers, onnxruntime
from svd2onnx_runtime.session import resolve_provider

ROOT = Path(__file__).parents[2]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with nothing installed that stands in the place of all of ``sys.path``."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "onnxruntime"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    onnxruntime.cache_clear()
    yield tmp_path
    onnxruntime.cache_clear()  # whatever came out is of that folder
    sys.modules.pop("onnxruntime", None)


def install(site: Path, *distributions: str, package: str | None = "version = 'pretended'") -> None:
    """Record ``distributions`` as pip would, and write the package that they all provide."""
    for name in distributions:
        record = site / f"{name.replace('-', '_')}-1.31.1.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.31.1\n")
        (record / "top_level.txt").write_text("onnxruntime\n")
    if package is not None:
        (site / "onnxruntime").mkdir(exist_ok=True)
        (site / "onnxruntime" / "__init__.py").write_text(package + "\n")


def refusal() -> str:
    with pytest.raises(InstallationError) as caught:
        onnxruntime()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_one_here_is_found() -> None:
    assert onnxruntime().InferenceSession is not None
    assert onnxruntime() is sys.modules["onnxruntime"]


@pytest.mark.parametrize(
    "name", ["onnxruntime", "onnxruntime-gpu", "onnxruntime-directml", "onnxruntime-openvino"]
)
def test_any_one_will_do(site: Path, name: str) -> None:
    install(site, name)
    assert onnxruntime().version == "pretended"


def test_a_package_that_no_distribution_records_will_do(site: Path) -> None:
    install(site)
    assert onnxruntime().version == "pretended"


def test_its_companions_do_not_count(site: Path) -> None:
    install(site, "onnxruntime")
    install(site, "onnxruntime-genai", package=None)
    (site / "onnxruntime_genai-1.31.1.dist-info" / "top_level.txt").write_text("onnxruntime_genai\n")
    assert onnxruntime().version == "pretended"


def test_none_says_what_to_install(site: Path) -> None:
    assert refusal() == (
        'onnxruntime is not installed: run pip install "svd2onnx[cpu]", '
        'or with an NVIDIA GPU pip install "svd2onnx[gpu]"'
    )


@pytest.mark.parametrize(
    ("names", "command"),
    [
        (
            ("onnxruntime", "onnxruntime-gpu"),
            'pip uninstall -y onnxruntime onnxruntime-gpu && pip install "svd2onnx[gpu]" '
            '(or "svd2onnx[cpu]" for the CPU alone)',
        ),
        (
            ("onnxruntime", "onnxruntime-directml"),
            "pip uninstall -y onnxruntime onnxruntime-directml && pip install onnxruntime-directml "
            '(or "svd2onnx[cpu]" for the CPU alone)',
        ),
    ],
    ids=["gpu", "directml"],
)
def test_two_in_one_folder_say_what_to_uninstall(site: Path, names: tuple[str, ...], command: str) -> None:
    install(site, *names)
    assert refusal() == (
        f"expected one onnxruntime, found {' and '.join(names)}, which overwrite each other's files: "
        f"run {command}"
    )


def test_a_second_one_further_down_the_path_is_harmless(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = site / "system"
    system.mkdir()
    install(site, "onnxruntime-gpu")
    install(system, "onnxruntime", package="version = 'of the system'")
    monkeypatch.setattr(sys, "path", [str(site), str(system)])
    assert onnxruntime().version == "pretended"


@pytest.mark.parametrize("left", ["nothing", "a folder"])
def test_files_that_another_uninstallation_took_are_told(site: Path, left: str) -> None:
    """After pip uninstall onnxruntime-gpu beside onnxruntime: recorded, so pip install would do nothing."""
    install(site, "onnxruntime", package=None)
    if left == "a folder":
        (site / "onnxruntime" / "capi").mkdir(parents=True)
    message = refusal()
    assert message.startswith("the files of onnxruntime are gone")
    assert message.endswith('run pip uninstall -y onnxruntime && pip install "svd2onnx[cpu]"')


def test_one_that_cannot_be_imported_is_quoted(site: Path) -> None:
    install(site, "onnxruntime-gpu", package="raise ImportError('libcudart.so.13:\\n no such file')")
    message = refusal()
    assert message.startswith("onnxruntime cannot be imported (libcudart.so.13: no such file): run pip ")
    assert 'pip install "svd2onnx[gpu]"' in message


def test_jobs_for_the_cpu_are_refused_at_their_start_too(site: Path) -> None:
    with pytest.raises(InstallationError, match=re.escape('pip install "svd2onnx[cpu]"')):
        resolve_provider("cpu")


def test_cuda_with_a_gpu_and_the_other_onnxruntime_says_what_to_install(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(
        site,
        "onnxruntime",
        package="__version__ = '1'\ndef get_available_providers(): return ['CPUExecutionProvider']",
    )
    monkeypatch.setattr(session_module, "gpu_count", lambda: 1)
    with pytest.raises(ProviderError, match=re.escape('-y onnxruntime && pip install "svd2onnx[gpu]"')):
        resolve_provider("cuda")


HIDE_AND_RUN = """
import importlib.util, sys
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
import svd2onnx_runtime.installation as installation
installation.distributions = lambda path: []
from svd2onnx.cli.main import main
main(sys.argv[1:])
"""


@pytest.mark.parametrize(
    "command",
    [
        ("certify", "GRAPH"),
        ("bench", "GRAPH", "--reference", "GRAPH"),
        ("compress-export", "TASK", "-o", "OUT", "--provider", "cpu"),
    ],
    ids=lambda command: command[0],
)
def test_commands_end_in_that_line(tmp_path: Path, command: tuple[str, ...]) -> None:
    graph, task = tmp_path / "graph.onnx", tmp_path / "task.py"
    graph.write_bytes(b"no graph, but something")
    task.write_text("raise SystemExit('the model file was run before the installation was checked')\n")
    files = {"GRAPH": graph, "TASK": task, "OUT": tmp_path / "out.onnx"}
    done = subprocess.run(
        [sys.executable, "-c", HIDE_AND_RUN, *(str(files.get(word, word)) for word in command)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith('error: onnxruntime is not installed: run pip install "svd2onnx[cpu]"')
    assert done.stderr.count("\n") == 1


def test_the_check_finds_what_the_standard_library_finds() -> None:
    """``top_level.txt`` alone is read, which is a hundred times faster than packages_distributions()."""
    expected = sorted(set(importlib.metadata.packages_distributions()["onnxruntime"]))
    assert _providers(sys.path) == expected

"""The help in groups, what has no effect is refused, and what is refused does not wait for torch."""

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import cloup
import pytest
from click.testing import CliRunner, Result

from svd2onnx.cli.main import main
from svd2onnx.cli.paths import default_output

ROOT = Path(__file__).parents[3]
COMMANDS = [name for name in main.commands if name != "completion"]


def svd2onnx(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def headings(name: str) -> list[str]:
    text = svd2onnx(name, "--help").stdout
    return re.findall(r"(?m)^(\S.*):$", text.partition("Examples:")[0])


def test_the_options_of_the_main_job_are_in_groups_and_the_most_used_come_first() -> None:
    assert headings("compress-export") == [
        "Common options",
        "Goal",
        "Source and data",
        "Layers",
        "File format",
        "Speed and resources",
        "Caching",
        "Output",
    ]
    command = main.commands["compress-export"]
    assert isinstance(command, cloup.Command)
    first = [option.opts[-1] for option in command.option_groups[0].options]
    assert first == ["--output", "--target-size", "--min-fidelity", "--target-latency", "--calibration"]


@pytest.mark.parametrize("name", COMMANDS)
def test_what_is_written_and_printed_is_the_last_group(name: str) -> None:
    assert (headings(name) or ["Output"])[-1] in ("Output", "Options")


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is_in_a_sentence(name: str) -> None:
    for parameter in main.commands[name].params:
        if isinstance(parameter, click.Option):
            text = (parameter.help or "").partition("  [default")[0]
            assert re.fullmatch(r"(?s)(folder has|auto |[A-Z]).*[.:]?\S\.", text), (parameter.name, text)
            assert not text.startswith("Of "), text


@pytest.mark.parametrize(
    "option", ["name=a", "version=2", "max-batch=4", "instances=2", "threads=1", "dim=x=3"]
)
def test_an_option_of_triton_is_refused_for_a_folder(tmp_path: Path, option: str) -> None:
    result = svd2onnx("package", tmp_path / "a.onnx", "-o", tmp_path / "b", f"--{option}")
    assert result.exit_code == 2
    assert f"--{option.partition('=')[0]} has no effect with --format folder" in result.stderr


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("models/minilm.py", "minilm.svd2onnx.onnx"),
        ("a/network.pt", "network.svd2onnx.onnx"),
        ("bert-v1.5", "bert-v1.5.svd2onnx.onnx"),
    ],
)
def test_the_file_is_named_after_its_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bert-v1.5").mkdir()
    assert default_output(Path(source)) == Path(expected)
    monkeypatch.chdir(tmp_path / "bert-v1.5")
    assert default_output(Path(".")) == Path("bert-v1.5.svd2onnx.onnx")


# What needs no network is refused before torch is imported, which takes seconds.

RUN = """
import sys
from svd2onnx.cli.main import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print("exit", end.code, *sorted({"torch", "onnx", "onnx_ir", "rich"} & set(sys.modules)))
"""


def run_alone(folder: Path, *arguments: str) -> tuple[str, str]:
    """The last line of stdout, which tells the exit code and what is imported, and stderr."""
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "runtime")))
    done = subprocess.run(
        [sys.executable, "-c", RUN, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    return done.stdout.splitlines()[-1], done.stderr


EXPORT = "compress-export n.py "


@pytest.mark.parametrize(
    ("line", "part"),
    [
        ("compress-export missing.py", "no such file or folder: missing.py"),
        ("inspect missing.py", "no such file or folder: missing.py"),
        ("sweep missing.py -o study", "no such file or folder: missing.py"),
        ("sweep n.py -o n.py/study", "n.py is a file"),
        (EXPORT + "--weights no", "--weights must be a folder, and no is none"),
        (EXPORT + "--data n.py", "--data must be a folder, and n.py is none"),
        (EXPORT + "--plan no.json", "--plan no.json: no such file"),
        (EXPORT + "--plan .", "--plan . is a folder"),
        (EXPORT + "--calibration no.npz", "--calibration no.npz: no such file"),
        (EXPORT + "--target-latency 0.5x --latency-table no.json", "--latency-table no.json: no such file"),
        ("compress-export w.safetensors --model no.py", "--model no.py: no such file"),
        ("compress-export w.safetensors", "holds tensors and no network; expected --model FILE.py"),
        (EXPORT + "--model n.py", "--model was given, and n.py is not a state dict"),
        (EXPORT + "--trust-pickle", "--trust-pickle was given, and n.py is not a pickle"),
        (EXPORT + "--checkpoint-key ema", "--checkpoint-key was given, and n.py is not a checkpoint"),
        (EXPORT + "--input-shape 1,3", "--input-shape was given, and n.py tells its inputs itself"),
        (EXPORT + "-o no/a.onnx", "the folder no does not exist"),
        (EXPORT + "-o /proc/a.onnx", "cannot write /proc/a.onnx"),
        (EXPORT + "-o a.onnx --report a.onnx", "two outputs to one file"),
        (EXPORT + "-o n.py --overwrite", "cannot write n.py: it is SOURCE itself"),
        (EXPORT + "-o w.safetensors", "w.safetensors is there already, and svd2onnx did not write it"),
        (EXPORT + "--bits 8", "--bits has no effect with --method auto"),
        (EXPORT + "--target-size 0.15", "did you mean 0.15x?"),
        (EXPORT + "--target-size 6x", "nothing would be compressed"),
        (EXPORT + "--min-fidelity 2", "between 0 and 1"),
        (EXPORT + "--target-latency soon", "a latency is a share"),
        ("bench no.onnx", "GRAPH no.onnx: no such file"),
        ("bench n.py --against a=no.onnx", "graph 'a' no.onnx: no such file"),
        ("certify no.onnx", "no.onnx"),
        ("evaluate n.py --reference no.onnx --task n.py", "--reference no.onnx: no such file"),
        ("generate n.py --task no --prompt x", "--task no: no such file"),
        ("package no.onnx -o x", "GRAPH no.onnx: no such file"),
        ("report no.json", "no.json"),
    ],
    ids=lambda own: own if " " in own else None,
)
def test_it_is_refused_before_torch_is_imported(tmp_path: Path, line: str, part: str) -> None:
    (tmp_path / "n.py").write_text("raise SystemExit('not to be run')")
    (tmp_path / "w.safetensors").write_bytes((2).to_bytes(8, "little") + b"{}")
    end, err = run_alone(tmp_path, *line.split())
    assert end == "exit 1"
    (message,) = err.splitlines()
    assert message.startswith("error: ")
    assert part in message
    assert {path.name for path in tmp_path.iterdir()} == {"n.py", "w.safetensors"}


@pytest.mark.parametrize("line", ["--help", "--version", "compress-export --help", "sweep --help"])
def test_help_does_without_torch(tmp_path: Path, line: str) -> None:
    assert run_alone(tmp_path, *line.split()) == ("exit 0", "")


@pytest.mark.parametrize(
    ("source", "parts"),
    [
        (
            "sentence-transformers/all-MiniLM-L6-v2",
            (
                "`hf download sentence-transformers/all-MiniLM-L6-v2 --local-dir all-MiniLM-L6-v2`",
                "give the folder all-MiniLM-L6-v2",
            ),
        ),
        ("gpt2", ("`hf download gpt2 --local-dir gpt2`",)),
        (
            "resnet50",
            (
                "torch.save(torchvision.models.resnet50(weights='DEFAULT').eval(), 'resnet50.pt')",
                "`resnet50.pt --trust-pickle --input-shape 1,3,224,224`",
            ),
        ),
        ("vit_b_16", ("torchvision.models.vit_b_16(",)),
        ("there/network", ("expected a model file",)),
        ("network.py", ("expected a model file",)),
        ("somewhere/network.safetensors", ("expected a model file",)),
    ],
)
def test_a_name_is_answered_by_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, parts: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there").mkdir()
    result = svd2onnx("compress-export", source)
    assert result.exit_code == 1
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"error: no such file or folder: {source}; ")
    for part in parts:
        assert part in line
    assert ("hf download" in line) == ("hf download" in "".join(parts))

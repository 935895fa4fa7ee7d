"""What commands say in each mode, on a terminal and where there is none."""

import json
import logging
import os
import pty
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

from svd2onnx.cli.console import fail
from svd2onnx.cli.main import main

Write = Callable[..., Path]
COMMANDS = sorted(main.commands)
WORKING = sorted(set(COMMANDS) - {"completion"})

# Three steps, with the bars drawn anew after each.
PROGRESS = """
import sys
from svd2onnx.cli.console import Terminal
with Terminal(sys.stdout, {quiet}).progress() as track:
    for _ in track([1, 2, 3], "Working [x]"):
        pass
    for _ in track(iter([1]), "Reading"):
        pass
"""


def environment(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TERM": "xterm-256color"} | changes


def on_a_terminal(code: str, **changes: str) -> str:
    """What a person sees who runs ``code``: stdout and stderr of a terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=theirs, stderr=theirs, env=environment(**changes)
    ) as process:
        os.close(theirs)
        seen = b""
        while True:
            try:
                part = os.read(ours, 4096)
            except OSError:  # the other side is closed
                break
            if not part:
                break
            seen += part
    os.close(ours)
    assert process.returncode == 0, seen
    return seen.decode()


def test_a_person_sees_progress_with_the_time_left() -> None:
    seen = on_a_terminal(PROGRESS.format(quiet=False))
    for part in ("Working [x]", "/3", "left:", "Reading", "\x1b["):
        assert part in seen


@pytest.mark.parametrize("case", ["quiet", "NO_COLOR"])
def test_progress_can_be_turned_off(case: str) -> None:
    changes = {"NO_COLOR": "1"} if case == "NO_COLOR" else {}
    assert on_a_terminal(PROGRESS.format(quiet=case == "quiet"), **changes) == ""


def test_no_one_sees_no_progress() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRESS.format(quiet=False)],
        capture_output=True,
        env=environment(),
        check=True,
    )
    assert (done.stdout, done.stderr) == (b"", b"")


TABLE = """
import sys
from rich.table import Table
from svd2onnx.cli.console import Terminal
table = Table("column")
table.add_row("[bold]name[/bold]" + "x" * 300)
Terminal(sys.stdout).answer("{}", table)
"""


def test_tables_are_coloured_on_a_terminal_and_whole_lines_in_a_file() -> None:
    assert "\x1b[" in on_a_terminal(TABLE)
    done = subprocess.run([sys.executable, "-c", TABLE], capture_output=True, env=environment(), check=True)
    text = done.stdout.decode()
    assert "\x1b" not in text
    assert "[bold]name[/bold]" + "x" * 300 in text, "on one line, and as it is"


@pytest.fixture
def loud_model(write_model_file: Write) -> Path:
    """A model file that prints."""
    return write_model_file(("def build():\n", "def build():\n    print('building', flush=True)\n"))


def inspect(source: Path, *options: str) -> Any:
    arguments = ["inspect", str(source), "--calibration-samples", "0", *options]
    return CliRunner().invoke(main, arguments)


def test_json_is_alone_on_stdout(loud_model: Path) -> None:
    result = inspect(loud_model, "--json")
    assert [layer["name"] for layer in json.loads(result.stdout)] == ["table", "first", "norm", "second"]
    assert result.stderr == "building\n"


def test_quiet_says_nothing(loud_model: Path) -> None:
    result = inspect(loud_model, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_quiet_still_says_errors(tmp_path: Path) -> None:
    result = inspect(tmp_path / "missing.py", "--quiet")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")


def test_quiet_json_is_the_json_and_nothing_else(loud_model: Path) -> None:
    result = inspect(loud_model, "--quiet", "--json")
    assert result.stderr == ""
    assert json.loads(result.stdout)


def test_the_log_is_on_stderr_and_ends_with_the_command(loud_model: Path) -> None:
    result = inspect(loud_model, "--json", "--log-level", "info")
    assert json.loads(result.stdout)
    assert "INFO svd2onnx.cli.console: Decomposing: 4 in " in result.stderr
    assert "INFO" not in inspect(loud_model, "--json", "--log-level", "error").stderr
    for name in ("svd2onnx", "svd2onnx_runtime"):
        assert logging.getLogger(name).handlers == []
        assert logging.getLogger(name).level == logging.NOTSET


def test_fail_is_one_line_and_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        fail("what, where and what to do")
    assert raised.value.code == 1
    assert capsys.readouterr() == ("", "error: what, where and what to do\n")


def run_module(*arguments: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "svd2onnx", *map(str, arguments)],
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        **options,
    )


@pytest.mark.parametrize("options", [["--help"], ["--json"], []], ids=["help", "json", "table"])
def test_a_reader_that_went_away_ends_it_quietly(model_file: Path, options: list[str]) -> None:
    arguments = ["inspect", model_file, "--calibration-samples", "0", *options]
    with run_module(*arguments, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [["--json"], []], ids=["json", "table"])
def test_a_full_disk_behind_stdout_is_told(model_file: Path, options: list[str]) -> None:
    arguments = ["inspect", model_file, "--calibration-samples", "0", *options]
    with open("/dev/full", "w") as full, run_module(*arguments, stdout=full) as process:
        assert process.stderr is not None
        (line,) = process.stderr.read().splitlines()
    assert line == "error: cannot write the result to standard output: No space left on device"
    assert process.returncode == 1


def test_the_package_runs_as_a_module() -> None:
    with run_module("--version", stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read().startswith("svd2onnx, version ")
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "near"),
    [
        (["inspct"], "inspect"),
        (["compress"], "compress-export"),
        (["inspect", "model.py", "--calibration-sample", "3"], "--calibration-samples"),
        (["compress-export", "model.py", "--taget-size", "3"], "--target-size"),
    ],
    ids=" ".join,
)
def test_a_wrong_word_suggests_the_near_one(arguments: list[str], near: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert "Did you mean" in result.stderr
    assert f"'{near}'" in result.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_help_has_examples_that_are_right(name: str) -> None:
    command = main.commands[name]
    text = CliRunner().invoke(main, [name, "--help"]).stdout
    _, found, examples = text.partition("Examples:\n")
    assert found, text
    lines = [line.strip() for line in examples.splitlines() if line.strip()]
    assert lines
    if name == "completion":
        return  # its own test runs them
    for line in lines:
        program, own, *arguments = shlex.split(line)
        assert (program, own) == ("svd2onnx", name)
        with command.make_context(name, arguments):
            pass  # a wrong option or value would have raised


@pytest.mark.parametrize("name", WORKING)
def test_every_command_has_the_options_of_output(name: str) -> None:
    options = {option for parameter in main.commands[name].params for option in parameter.opts}
    assert options >= {"-q", "--quiet", "--json", "--log-level"}


def test_the_help_lists_commands_in_the_order_of_their_use() -> None:
    text = CliRunner().invoke(main, ["--help"]).stdout
    places = [text.index(f"\n  {name} ") for name in ("inspect", "compress-export", "certify", "completion")]
    assert places == sorted(places)
    assert "..." not in text[places[0] :], "a description is cut off"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_the_shell_takes(shell: str) -> None:
    script = CliRunner().invoke(main, ["completion", shell]).stdout
    assert f"_SVD2ONNX_COMPLETE={shell}_complete" in script
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"no {shell} here to read the script")
    subprocess.run([program, "-n"], input=script, text=True, check=True)


def test_completion_knows_commands_options_and_values() -> None:
    def completed(words: str) -> str:
        asking = {"_SVD2ONNX_COMPLETE": "bash_complete", "COMP_WORDS": words}
        asking["COMP_CWORD"] = str(len(words.split(" ")) - 1)
        return subprocess.run(
            [sys.executable, "-m", "svd2onnx"],
            env=environment(**asking),
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert completed("svd2onnx comp").split() == ["plain,compress-export", "plain,completion"]
    assert "plain,--target-size" in completed("svd2onnx compress-export --tar").split()
    assert completed("svd2onnx compress-export --bits ").split() == ["plain,8", "plain,4", "plain,2"]


def test_commands_are_commands() -> None:
    """With a name that is typed, and one line for the list."""
    for name, command in main.commands.items():
        assert isinstance(command, click.Command)
        assert "_" not in name
        assert command.short_help

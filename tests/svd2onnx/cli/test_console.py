"""What commands say in each mode, on a terminal and where there is none."""

import json
import logging
import os
import pty
import re
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

from svd2onnx.cli.console import fail, tell
from svd2onnx.cli.main import main

Write = Callable[..., Path]
COMMANDS = sorted(main.commands)
WORKING = sorted(set(COMMANDS) - {"completion"})

PROGRESS = """
import sys
from svd2onnx.cli.console import Terminal
terminal = Terminal(sys.stdout, {quiet})
with terminal.shown(), terminal.progress(["Reading", "Drawing [x]"]) as track:
    for _ in track(iter([1]), "Reading"):
        pass
    for _ in track([1, 2, 3], "Drawing [x]"):
        pass
"""


def environment(**changes: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name not in {"NO_COLOR", "FORCE_COLOR"}}
    return own | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "TERM": "xterm-256color"} | changes


def on_a_terminal(code: str, status: int = 0, **changes: str) -> str:
    """What a person sees who runs ``code``, which exits with ``status``: stdout and stderr of a terminal."""
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
    assert process.returncode == status, seen
    return seen.decode()


def in_the_end(seen: str) -> list[str]:
    """The lines that are left of what a terminal was sent: those that are not drawn over again."""
    lines = [""]
    for part in re.findall(r"\x1b\[[0-9;?]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", seen):
        if part == "\n":
            lines.append("")
        elif part.startswith("\x1b[") and part.endswith("A"):  # up, where the line is erased
            lines.pop()
        elif part == "\x1b[2K":
            lines[-1] = ""
        elif part.isprintable():
            lines[-1] += part
    return [line.rstrip() for line in lines if line.strip()]


def test_a_person_sees_stages_that_stay() -> None:
    seen = on_a_terminal(PROGRESS.format(quiet=False))
    assert "\x1b[" in seen
    assert "Loading libraries, 0:00" in seen
    lines = [re.sub(r"\d\.\d s", "S s", line) for line in in_the_end(seen)]
    assert lines == ["[1/2] Reading           S s", "[2/2] Drawing [x]  3/3  S s"]


FAILING = """
from svd2onnx.cli.console import spoken
from svd2onnx.cli.main import main
from svd2onnx_runtime.errors import Svd2OnnxError
@main.command()
@spoken
def draw(terminal):
    with terminal.progress() as track:
        for number in track([1, 2], "Drawing"):
            if number == 2:
                raise Svd2OnnxError("what, " * 10 + "a/long/path/that/is/not/cut/" * 3)
main(["draw"])
"""


def test_an_error_stands_below_the_progress_in_whole_words() -> None:
    progress, *error = in_the_end(on_a_terminal(FAILING, status=1, COLUMNS="60"))
    assert progress.startswith("Drawing  1/2  ")
    assert error[0] == "error: " + "what, " * 8 + "what,"
    assert "".join(error[1:]).replace(" ", "") == "what," + "a/long/path/that/is/not/cut/" * 3


STARTING = """
import sys
from svd2onnx.cli import console
started = console.Terminal.shown
def shown(terminal):
    assert not {"torch", "numpy", "onnxruntime"} & set(sys.modules)
    return started(terminal)
console.Terminal.shown = shown
from svd2onnx.cli.main import main
main(["certify", "missing.onnx", "--provider", "cpu"])
"""


def test_something_is_on_the_screen_before_libraries_load() -> None:
    seen = on_a_terminal(STARTING, status=1)
    assert seen.index("Loading libraries, 0:00") < seen.index("error: ")
    assert [line.split(": ")[0] for line in in_the_end(seen)] == ["error"], "and it goes"


def test_a_message_is_one_line_in_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    tell("word " * 100)
    assert capsys.readouterr().err == f"{'word ' * 99}word\n"


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

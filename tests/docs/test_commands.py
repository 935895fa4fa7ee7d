"""Every command in the documents is one that its program takes: it exists, its options, their values."""

import ast
import importlib
import importlib.util
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import click
import pytest

from svd2onnx.cli.main import main
from svd2onnx.values.settings import Settings
from tests.docs.documents import DOCUMENTS, ROOT, commands_of, inline_codes

COMMANDS = [
    pytest.param(words, id=f"{path.relative_to(ROOT)}:{line} {' '.join(words[:3])}")
    for path in DOCUMENTS
    for line, words in commands_of(path)
]
KNOWN = (
    "svd2onnx",
    "python",
    "make",
    "npm",
    "node",
    "cmake",
    "curl",
    "cd",
    "export",
    "mkdir",
    "ln",
    "docker",
    "oras",
    "sha256sum",
    "ray",
)
# What a placeholder in a document may stand for.
MEANT = {"OPERATOR": "folded", "DTYPE": "float16", "PORT": "8000"}


def parse(
    command: click.Command, name: str, arguments: list[str], parent: click.Context | None = None
) -> None:
    """Parse as the program would, without running anything; click.UsageError where it would refuse."""
    meant = [MEANT.get(argument, argument) for argument in arguments]
    try:
        context = command.make_context(name, list(meant), parent)
    except click.exceptions.Exit:  # --help, --version
        return
    if isinstance(command, click.Group):
        _, rest, _ = command.make_parser(context).parse_args(list(meant))
        name, own, rest = command.resolve_command(context, rest)
        parse(own, name, rest, context)


def test_the_documents_hold_commands() -> None:
    assert sum(words[0] == "svd2onnx" for (words,) in (param.values for param in COMMANDS)) > 20


@pytest.mark.parametrize("words", COMMANDS)
def test_a_command_is_taken_as_it_stands(words: list[str]) -> None:
    program, *arguments = words
    if program == "svd2onnx":
        parse(main, program, arguments)
    elif program == "python" and arguments[:1] == ["-m"]:
        check_module(arguments[1], arguments[2:])
    elif program == "pip":
        check_module("pip", arguments)
    elif program == "python" and arguments[0].endswith(".py"):
        check_script(arguments[0], arguments[1:])
    elif program == "make":
        assert re.search(rf"(?m)^{arguments[0]}:", (ROOT / "Makefile").read_text())
    elif "/" in program:
        assert (ROOT / program).is_file() or program.startswith("build/")
    else:
        assert program in KNOWN or not re.fullmatch(r"[a-z][\w-]*", program), f"what is {program}?"


def check_module(name: str, arguments: list[str]) -> None:
    if name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for own in re.findall(r"\.\[(.*?)\]", " ".join(arguments)):
            assert set(own.split(",")) <= set(extras)
    elif name.startswith("benchmarks."):
        commands = [
            value
            for value in vars(importlib.import_module(name)).values()
            if isinstance(value, click.Command)
        ]
        if commands:
            # Their sources must exist: those that the documents name do, from the project's folder.
            parse(commands[0], name, [str(ROOT / a) if a.startswith("models/") else a for a in arguments])
        else:
            importlib.import_module(name)._parser().parse_args(arguments)
    else:
        assert name == "svd2onnx" or importlib.util.find_spec(name) is not None


def check_script(script: str, arguments: list[str]) -> None:
    """The script is in the project, or the document wrote it; a click command takes its arguments."""
    if "/" not in script:
        return
    path = ROOT / script
    assert path.is_file()
    for option in arguments:
        if option.startswith("--"):
            assert f'"{option}"' in path.read_text()


OPTIONS = {
    option
    for command in (main, *main.commands.values())
    for parameter in command.params
    for option in (*parameter.opts, *parameter.secondary_opts, "--help")
}
# Of the other programs that the documents name.
OTHERS = {
    *("--no-deps", "--no-index", "--max-bytes", "--max-dim", "--ignore-scripts", "--batches", "--fresh"),
    *("--only", "--devices"),
}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_an_option_in_the_text_exists(path: Path) -> None:
    for code in inline_codes(path):
        words = code.split()
        if words[:1] == ["svd2onnx"] and len(words) > 1 and re.fullmatch(r"[a-z-]+", words[1]):
            assert words[1] in main.commands or words[1] == "--help", code
        if words[:1] == ["svd2onnx"] or code.startswith("-"):
            for option in re.findall(r"(?<!\S)--[a-z][\w-]*", code):
                assert option in OPTIONS | OTHERS, f"{code}: no command takes {option}"


@pytest.mark.parametrize(
    "words", [param for param in COMMANDS if param.values[0][:2] == ["svd2onnx", "compress-export"]]
)
def test_settings_of_a_command_go_together(words: list[str]) -> None:
    """No option of a document is one that has no effect, or contradicts another."""
    command = main.commands["compress-export"]
    context = command.make_context(words[1], [MEANT.get(word, word) for word in words[2:]])
    names = {field.name for field in fields(Settings)}
    Settings(**{name: value for name, value in context.params.items() if name in names})


@pytest.mark.parametrize("words", [param for param in COMMANDS if "svd2onnx" in param.values[0]])
def test_a_model_file_takes_what_it_is_given(words: list[str]) -> None:
    for file in (word for word in words if word.startswith("models/")):
        functions = {
            node.name: {argument.arg for argument in node.args.args}
            for node in ast.parse((ROOT / file).read_text()).body
            if isinstance(node, ast.FunctionDef)
        }
        assert {"weights"} <= functions["build"] or "--weights" not in words
        assert {"random_weights"} <= functions["build"] or "--random-weights" not in words
        # Files of images take theirs from models/images.py.
        assert {"data"} <= functions.get("inputs", {"data"}) or "--data" not in words

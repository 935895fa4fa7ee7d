"""Write docs/reference.md from the code: the commands with their options, and the public Python API.

The commands are click's own description of themselves; the API is what ``__all__`` of the two packages names,
with signatures and docstrings as they stand in the source. Run it by ``make reference``; a test fails where
the file is not what this gives.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import cloup

from svd2onnx.cli.main import main

OUTPUT = Path(__file__).with_name("reference.md")
PACKAGES = ("svd2onnx", "svd2onnx_runtime")
HEADER = """\
# Reference

Written from the code by `make reference`; do not edit it here.
"""


def reference() -> str:
    """The text of the whole file."""
    parts = [HEADER, "## Commands\n", *_commands(main, _context(main, "svd2onnx", None))]
    for name in PACKAGES:
        parts += _package(importlib.import_module(name))
    return "\n".join(parts)


def _commands(group: click.Group, context: click.Context) -> Iterator[str]:
    """The group itself, then its commands by name, and theirs."""
    yield _command(group, context)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        own = _context(command, name, context)
        if isinstance(command, click.Group):
            yield from _commands(command, own)
        else:
            yield _command(command, own)


def _context(command: click.Command, name: str, parent: click.Context | None) -> click.Context:
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def _command(command: click.Command, context: click.Context) -> str:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    text = inspect.cleandoc(command.help or "").replace("\b\n", "")
    lines = [f"### {context.command_path}\n", f"```text\n{usage}\n```\n", f"{text}\n"]
    for title, options in _groups(command, context):
        # All take --help, of which click keeps the names that it had when it was first asked for.
        records = [
            record for own in options if "--help" not in own.opts and (record := own.get_help_record(context))
        ]
        if records:
            lines += [f"**{title}**\n", "| option | meaning |", "|---|---|"]
            lines += [
                f"| `{_cell(option)}` | {_cell(' '.join(meaning.split()))} |" for option, meaning in records
            ]
            lines.append("")
    return "\n".join(lines)


def _groups(command: click.Command, context: click.Context) -> Iterator[tuple[str, Sequence[click.Option]]]:
    """The options under the headings under which ``--help`` shows them."""
    if not isinstance(command, cloup.Command):
        yield "Options", [own for own in command.get_params(context) if isinstance(own, click.Option)]
        return
    yield from ((group.title, group.options) for group in command.option_groups)
    rest = command.get_default_option_group(context, not command.option_groups)
    yield rest.title, rest.options


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _package(package: ModuleType) -> Iterator[str]:
    yield f"## Python: {package.__name__}\n"
    yield f"{_markdown(package)}\n"
    for name in sorted(package.__all__, key=str.lower):
        value = _public(package, name)
        yield f"### {package.__name__}.{name}\n"
        if inspect.isclass(value) or inspect.isfunction(value):
            yield f"```python\n{_outline(value)}\n```\n"
            yield f"{_markdown(value)}\n"


def _public(package: ModuleType, name: str) -> Any:
    """What ``__all__`` means; a function in a submodule of its name hides behind that once it is loaded."""
    value = getattr(package, name)
    return getattr(value, name) if inspect.ismodule(value) else value


def _markdown(documented: Any) -> str:
    """The docstring, with Google's "Raises:" as a paragraph and reStructuredText's code as Markdown's."""
    text = re.sub(r"(?m)::$", ":", inspect.getdoc(documented) or "")
    text = re.sub(r"(?m)^(Raises|Returns|Args|Yields):\n((?:    .*(?:\n|\Z))+)", _section, text)
    return text.replace("``", "`").rstrip()


def _section(match: re.Match[str]) -> str:
    entries = re.split(r"\n(?=\S)", textwrap.dedent(match[2]).strip())
    return f"{match[1]}:\n\n" + "\n".join("- " + " ".join(entry.split()) for entry in entries) + "\n"


def _outline(value: Any) -> str:
    """The definition without its body: a function's signature, a class's fields and public methods."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(value))).body
    if isinstance(node, ast.FunctionDef):
        return _signature(node)
    assert isinstance(node, ast.ClassDef)
    bases = f"({', '.join(map(ast.unparse, node.bases))})" if node.bases else ""
    lines = [ast.unparse(entry) for entry in node.body if isinstance(entry, ast.AnnAssign)]
    lines += [
        _signature(entry)
        for entry in node.body
        if isinstance(entry, ast.FunctionDef) and not entry.name.startswith("_")
    ]
    return f"class {node.name}{bases}:\n" + textwrap.indent("\n".join(lines or ["..."]), "    ")


def _signature(node: ast.FunctionDef) -> str:
    """``def name(...) -> type``, one parameter a line where it would be long; a property is marked as one."""
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    kinds = {ast.unparse(decorator) for decorator in node.decorator_list} & {"property", "classmethod"}
    decorators = "".join(f"@{kind}\n" for kind in sorted(kinds))
    line = f"def {node.name}({ast.unparse(node.args)}){returns}"
    if len(line) > 100:
        call = ast.parse(f"def f({ast.unparse(node.args)}): ...").body[0]
        assert isinstance(call, ast.FunctionDef)
        line = (
            f"def {node.name}(\n"
            + textwrap.indent(",\n".join(_parameters(call.args)), "    ")
            + f",\n){returns}"
        )
    return decorators + line


def _parameters(arguments: ast.arguments) -> Iterator[str]:
    """Each parameter as it is written, and the bare star between them."""
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    yield from map(_parameter, positional, defaults)
    if arguments.vararg:
        yield f"*{ast.unparse(arguments.vararg)}"
    elif arguments.kwonlyargs:
        yield "*"
    yield from map(_parameter, arguments.kwonlyargs, arguments.kw_defaults)
    if arguments.kwarg:
        yield f"**{ast.unparse(arguments.kwarg)}"


def _parameter(parameter: ast.arg, default: ast.expr | None) -> str:
    text = ast.unparse(parameter)
    return text if default is None else f"{text} = {ast.unparse(default)}"


if __name__ == "__main__":
    OUTPUT.write_text(reference(), encoding="utf-8")

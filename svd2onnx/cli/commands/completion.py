"""completion: the script that lets a shell complete commands, options and files."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

from svd2onnx.cli.options import command, examples


@command(
    short_help="Let a shell complete commands and options.",
    epilog=examples(
        'eval "$(svd2onnx completion bash)"                       # in ~/.bashrc',
        'eval "$(svd2onnx completion zsh)"                        # in ~/.zshrc',
        "svd2onnx completion fish > ~/.config/fish/completions/svd2onnx.fish",
    ),
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script with which SHELL completes the commands and options of svd2onnx."""
    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(context.find_root().command, {}, "svd2onnx", "_SVD2ONNX_COMPLETE").source())

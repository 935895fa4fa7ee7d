"""What commands tell: results on stdout, all else on stderr, and one line where they fail.

mode        stdout                        stderr
(none)      tables, for people            progress, if a person is there
--json      the result, and nothing else  likewise
--quiet     nothing                       nothing but errors

Colours and progress are for terminals, and off where NO_COLOR is set. Tables that no terminal limits are as
wide as they need to be, one line to a row; messages are wrapped where a terminal is narrower than they are.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import sys
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TextIO, TypeVar

import click

from svd2onnx.compute.progress import Track, silent

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from svd2onnx.cli.progress import ProgressDisplay

T = TypeVar("T")
LEVELS = ("debug", "info", "warning", "error")
_PACKAGES = ("svd2onnx", "svd2onnx_runtime")
_WIDE = 1000
"""Columns where there is no terminal: more than any table needs."""

logger = logging.getLogger(__name__)


def tell(message: str) -> None:
    """Say ``message`` on stderr: on one line, or wrapped at words to the width of a terminal."""
    line = " ".join(message.split())
    if sys.stderr.isatty():
        width = _console(sys.stderr).width
        # What is longer than a line, such as a path, stays whole so that it can be copied.
        line = textwrap.fill(
            line, width, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    sys.stderr.write(f"{line}\n")  # click.echo would write past the progress, into its line


def fail(message: str) -> NoReturn:
    """End the command with ``message`` as its error on stderr, and exit code 1."""
    tell(f"error: {message}")
    sys.exit(1)


@dataclass
class Terminal:
    """Where one command tells what it does and what came of it; ``results`` is the stdout of the process."""

    results: TextIO
    quiet: bool = False
    as_json: bool = False
    _display: ProgressDisplay | None = field(default=None, init=False)

    def answer(self, record: str, *shown: RenderableType) -> None:
        """Give the result, as JSON or as what people are shown.

        A reader that went away ends the command quietly.
        """
        self._stop()
        try:
            if self.as_json:
                click.echo(record.rstrip("\n"), file=self.results)
            elif not self.quiet:
                console = _console(self.results)
                for one in shown:
                    console.print(one, crop=False)
        except BrokenPipeError:
            _abandon(self.results)
            sys.exit(1)
        except OSError as error:
            _abandon(self.results)
            fail(f"cannot write the result to standard output: {error.strerror}")

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Show a person at a terminal at once that the command runs, until it has its result or fails."""
        if not self.quiet and sys.stderr.isatty() and not os.environ.get("NO_COLOR"):
            from svd2onnx.cli.progress import ProgressDisplay

            self._display = ProgressDisplay(_console(sys.stderr))
            self._display.start()
        try:
            yield
        finally:
            self._stop()

    @contextlib.contextmanager
    def progress(self, stages: Sequence[str] = ()) -> Iterator[Track]:
        """Lines with the time left where a person sees them; ``stages`` are expected, in this order.

        The finished ones stay on the screen. A failure comes below them, on a line of its own.
        """
        if self._display is None:
            yield functools.partial(_logged, silent)
            return
        self._display.expect(stages)
        try:
            yield functools.partial(_logged, self._display.track)
        finally:
            self._stop()

    def _stop(self) -> None:
        if self._display is not None:
            self._display.stop()
            self._display = None


def spoken(command: Callable[..., None]) -> Callable[..., None]:
    """Give ``command`` the options of output, and a ``terminal`` that follows them."""

    @click.option("-q", "--quiet", is_flag=True, help="Say nothing but errors.")
    @click.option("--json", "as_json", is_flag=True, help="Give the result as JSON, alone on stdout.")
    @click.option("--log-level", type=click.Choice(LEVELS), help="Log the work to stderr, from this level.")
    @functools.wraps(command)
    def speaking(*, quiet: bool, as_json: bool, log_level: str | None, **arguments: Any) -> None:
        terminal = Terminal(sys.stdout, quiet, as_json)
        with contextlib.ExitStack() as stack:
            if log_level:
                stack.enter_context(_logging(log_level))
            if quiet:  # what a model file prints is no error
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            elif as_json:
                stack.enter_context(contextlib.redirect_stdout(sys.stderr))
            stack.enter_context(terminal.shown())
            command(terminal=terminal, **arguments)

    return speaking


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    limited = stream.isatty() or "COLUMNS" in os.environ
    # Names of layers and files are shown as they are, whatever brackets and colons they hold.
    return Console(file=stream, width=None if limited else _WIDE, markup=False, emoji=False)


def _logged(track: Track, sequence: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Tracks, and logs how long it took."""
    started, count = time.perf_counter(), 0
    for item in track(sequence, description, total):
        yield item
        count += 1
    logger.info("%s: %d in %.1f s", description, count, time.perf_counter() - started)


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever stderr is at the time: above the progress, where it is shown."""

    @property
    def stream(self) -> TextIO:
        return sys.stderr

    @stream.setter
    def stream(self, _stream: TextIO) -> None: ...


@contextlib.contextmanager
def _logging(level: str) -> Iterator[None]:
    """The package's own messages on stderr."""
    handler = _StderrHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in _PACKAGES]
    before = [own.level for own in loggers]
    for own in loggers:
        own.addHandler(handler)
        own.setLevel(level.upper())
    try:
        yield
    finally:
        for own, old in zip(loggers, before, strict=True):
            own.removeHandler(handler)
            own.setLevel(old)


def _abandon(stream: TextIO) -> None:
    """Let what is still buffered go nowhere, so that the interpreter does not fail on it at its end."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())

"""What a person sees while a command works: finished stages with their time, and a line for what goes on.

    [1/8] Reading calibration data  21/21   0.1 s
    [2/8] Calibrating               64/64    12 s
    [3/8] Quantizing 18/38, 0:51, about 60 s left

A stage that is done again, as when files are made until one is good enough, adds to its line and keeps its
number. A stage that nobody expected has no number.
"""

from __future__ import annotations

import math
import operator
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
_LEAST_S = 1.0
"""Of a stage before it says what is left."""


@dataclass
class Stage:
    """One stage: how much of it is done (of ``total``, if that is known), and times in seconds."""

    name: str
    total: int | None
    started: float
    done: int = 0
    advanced: float = 0.0
    seconds: float = 0.0

    @property
    def count(self) -> str:
        """Such as "18/38"; nothing for a stage of one step."""
        if self.total is None:
            return str(self.done)
        return "" if self.total == 1 else f"{self.done}/{self.total}"

    def line(self, now: float) -> str:
        """Such as "Quantizing 18/38, 0:51, about 60 s left"."""
        parts = [f"{self.name} {self.count}".rstrip(), clock(now - self.started)]
        if self.total and self.done and now - self.started >= _LEAST_S:
            whole = (self.advanced - self.started) / self.done * self.total
            left = whole - (now - self.started)
            parts += [f"about {rounded(left)} left"] if left > 0 else []
        return ", ".join(parts)


class ProgressDisplay:
    """Lines on a terminal that are drawn anew while the command works; what is left at the end stays.

    Args:
        console: of the terminal.
        now: the time in seconds.
    """

    def __init__(self, console: Console, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._expected: Sequence[str] = ()
        self._between, self._since = "Loading libraries", now()
        self._active: list[Stage] = []
        self._finished: dict[str, Stage] = {}
        self._ended = False
        self._live = Live(console=console, get_renderable=self.lines)

    def start(self) -> None:
        """Draw the first line at once."""
        self._live.start(refresh=True)

    def stop(self) -> None:
        """Leave the finished stages on the screen, and nothing else."""
        for stage in list(self._active):
            self._finish(stage)
        self._ended = True
        self._live.transient = not self._finished
        self._live.stop()

    def expect(self, stages: Sequence[str]) -> None:
        """The names of the stages in their order, which are counted by it. The network is loaded first."""
        self._expected = stages
        self._pause("Loading the network")

    def track(self, sequence: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
        """See ``svd2onnx.compute.progress.Track``."""
        now = self._now()
        stage = Stage(description, total or operator.length_hint(sequence) or None, now, advanced=now)
        self._active.append(stage)
        try:
            for item in sequence:
                yield item
                stage.done += 1
                stage.advanced = self._now()
            if not stage.done:
                self._active.remove(stage)  # there was nothing to do
        finally:
            self._finish(stage)

    def lines(self) -> Group:
        """What is on the screen now."""
        finished = Table.grid(padding=(0, 2, 0, 0))
        for justify in ("left", "left", "right"):
            finished.add_column(justify=justify, no_wrap=True)
        for stage in list(self._finished.values()):
            label = f"{self._number(stage.name)}{stage.name}"
            finished.add_row(Text(label), stage.count, duration(stage.seconds), style="dim")
        now = self._now()
        going = [self._number(stage.name) + stage.line(now) for stage in list(self._active)]
        if not going and not self._ended:
            going = [f"{self._between}, {clock(now - self._since)}"]
        shown = [finished] if finished.row_count else []
        return Group(*shown, *(Text(line, no_wrap=True, overflow="ellipsis") for line in going))

    def _number(self, name: str) -> str:
        """Such as "[3/8] "; blank for what is not expected among stages that are."""
        if not self._expected:
            return ""
        whole = str(len(self._expected))
        if name not in self._expected:
            return " " * (2 * len(whole) + 4)
        return f"[{self._expected.index(name) + 1:>{len(whole)}}/{whole}] "

    def _finish(self, stage: Stage) -> None:
        if stage not in self._active:
            return  # stopped before
        self._active.remove(stage)
        stage.seconds = self._now() - stage.started
        if earlier := self._finished.get(stage.name):
            stage.seconds += earlier.seconds
            stage.done += earlier.done
            if stage.total is not None:
                stage.total += earlier.total or 0
        self._finished[stage.name] = stage
        self._pause("Working")

    def _pause(self, between: str) -> None:
        """``between`` is what is done until the next stage begins."""
        self._between, self._since = between, self._now()


def clock(seconds: float) -> str:
    """Such as "0:51" or "1:02:03"."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def duration(seconds: float) -> str:
    """Such as "1.2 s", "12 s", "2 min 28 s" or "1 h 04 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def rounded(seconds: float) -> str:
    """Up, as far as an estimate deserves: "40 s", "2 min" or "1.6 h"."""
    if seconds <= 90:
        return f"{max(1, math.ceil(seconds / 5)) * 5} s"
    if seconds <= 90 * 60:
        return f"{math.ceil(seconds / 60)} min"
    return f"{seconds / 3600:.1f} h"

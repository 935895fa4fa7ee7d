"""What the display shows at each moment, by a clock that the test sets."""

import io

import pytest
from rich.console import Console

from svd2onnx.cli.progress import ProgressDisplay, clock, duration, rounded


class Screen:
    """A display on no terminal, and its clock."""

    def __init__(self, *stages: str) -> None:
        self.time = 100.0
        self.display = ProgressDisplay(Console(file=io.StringIO(), width=80), now=lambda: self.time)
        if stages:
            self.display.expect(stages)

    @property
    def lines(self) -> list[str]:
        console = Console(width=80, markup=False)
        with console.capture() as captured:
            console.print(self.display.lines())
        return [line.rstrip() for line in captured.get().splitlines()]

    def work(self, name: str, steps: int, seconds: float) -> None:
        for _ in self.display.track(range(steps), name):
            self.time += seconds / steps


def test_the_first_line_tells_what_is_loaded_and_how_long() -> None:
    screen = Screen()
    screen.time += 3.9
    assert screen.lines == ["Loading libraries, 0:03"]
    screen.display.expect(["Reading"])
    assert screen.lines == ["Loading the network, 0:00"]


def test_a_stage_tells_its_number_its_count_and_what_is_left() -> None:
    screen = Screen("Calibrating", "Quantizing")
    screen.work("Calibrating", 64, 12)
    steps = iter(screen.display.track(range(38), "Quantizing"))
    for _ in range(18 + 1):
        next(steps)
        screen.time += 3
    assert screen.lines == [
        "[1/2] Calibrating  64/64  12 s",
        "[2/2] Quantizing 18/38, 0:57, about 60 s left",
    ]


def test_nothing_is_said_of_what_is_left_before_something_is_done() -> None:
    screen = Screen()
    for _ in screen.display.track(["a", "b"], "Drawing"):
        screen.time += 9
        assert "left" not in screen.lines[0] or "1/2" in screen.lines[0]
    assert screen.lines == ["Drawing  2/2  18 s", "Working, 0:00"]


def test_a_stage_of_unknown_length_counts_and_one_of_a_single_step_does_not() -> None:
    screen = Screen()
    for _ in screen.display.track(iter(lambda: 1, 1), "Reading"):
        pass
    unknown = iter(screen.display.track((own for own in "ab"), "Reading"))
    next(unknown), next(unknown)
    single = iter(screen.display.track(["file"], "Exporting"))
    next(single)
    assert screen.lines == ["Reading 1, 0:00", "Exporting, 0:00"]


def test_a_stage_that_comes_again_adds_to_its_line_and_keeps_its_number() -> None:
    screen = Screen("Quantizing", "Exporting")
    for steps in (38, 4):
        screen.work("Quantizing", steps, 20)
        screen.work("Exporting", 1, 30)
    assert screen.lines == [
        "[1/2] Quantizing  42/42        40 s",
        "[2/2] Exporting   2/2    1 min 00 s",
        "Working, 0:00",
    ]


def test_a_stage_that_nobody_expected_has_no_number() -> None:
    screen = Screen("Reading", "Calibrating")
    screen.work("Surprising", 1, 1)
    screen.work("Calibrating", 1, 1)
    assert screen.lines[:2] == ["      Surprising     1.0 s", "[2/2] Calibrating    1.0 s"]


def test_stages_within_a_stage_stand_below_it() -> None:
    screen = Screen()
    for _ in screen.display.track([1, 2], "Sweeping"):
        screen.work("Quantizing", 3, 3)
    assert screen.lines[:2] == ["Quantizing  6/6  6.0 s", "Sweeping    2/2  6.0 s"]


def test_a_stage_without_work_leaves_no_line_and_one_that_stopped_early_does() -> None:
    screen = Screen()
    screen.work("Dropping", 0, 1)
    steps = iter(screen.display.track(range(300), "Retraining"))
    next(steps), next(steps)
    steps.close()  # type: ignore[attr-defined]
    assert screen.lines[0] == "Retraining  1/300  0.0 s"
    assert len(screen.lines) == 2


def test_the_end_leaves_what_was_reached_and_nothing_that_goes_on() -> None:
    screen = Screen()
    steps = iter(screen.display.track(range(38), "Quantizing"))
    next(steps), next(steps)
    screen.time += 5
    screen.display.stop()
    steps.close()  # type: ignore[attr-defined]
    assert screen.lines == ["Quantizing  1/38  5.0 s"]


@pytest.mark.parametrize(
    ("seconds", "exact", "short", "about"),
    [
        (0, "0:00", "0.0 s", "5 s"),
        (9.96, "0:09", "10 s", "10 s"),
        (59.6, "0:59", "1 min 00 s", "60 s"),
        (148, "2:28", "2 min 28 s", "3 min"),
        (3723, "1:02:03", "1 h 02 min", "63 min"),
        (7200, "2:00:00", "2 h 00 min", "2.0 h"),
    ],
)
def test_times(seconds: float, exact: str, short: str, about: str) -> None:
    assert (clock(seconds), duration(seconds), rounded(seconds)) == (exact, short, about)

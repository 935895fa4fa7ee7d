"""Signals unwind a run once, end it at a second one, and leave ignored signals alone."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from svd2onnx.cli.interruption import Interrupted, interruptible

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

CHILD = """
import os, signal, sys, threading, time
from svd2onnx.cli.interruption import Interrupted, interruptible, leave
try:
    with interruptible():
        try:
            print("ready", flush=True)
            time.sleep(600)
        finally:
            print("unwound", flush=True)
            if "again" in sys.argv:
                time.sleep(600)
except Interrupted as stop:
    print(stop.line, flush=True)
    if "busy" in sys.argv:
        threading.Thread(target=time.sleep, args=(600,)).start()
    leave(stop.exit_code)
"""


def interrupted(number: int, *arguments: str, ignored: bool = False) -> tuple[int, list[str]]:
    """The exit code and the lines of a child that gets a signal, or two of them (``again``)."""

    def prepare() -> None:
        for own in SIGNALS:
            signal.signal(own, signal.SIG_DFL)
        if ignored:
            signal.signal(number, signal.SIG_IGN)

    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=prepare,
    )
    with child:
        assert child.stdout is not None
        lines = [child.stdout.readline().strip()]
        child.send_signal(number)
        if ignored:
            child.send_signal(signal.SIGTERM)
        if "again" in arguments:
            lines.append(child.stdout.readline().strip())
            child.send_signal(number)
        lines += child.stdout.read().split("\n")
        return child.wait(), [line for line in lines if line]


@pytest.mark.parametrize("number", SIGNALS, ids=lambda number: number.name)
def test_a_signal_unwinds_and_gives_its_exit_code(number: signal.Signals) -> None:
    code, lines = interrupted(number)
    assert code == 128 + number
    assert lines == ["ready", "unwound", f"interrupted by {number.name}"]


def test_a_second_signal_ends_the_process_at_once() -> None:
    assert interrupted(signal.SIGINT, "again") == (130, ["ready", "unwound"])


def test_workers_are_not_waited_for() -> None:
    assert interrupted(signal.SIGTERM, "busy")[0] == 143


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    code, lines = interrupted(signal.SIGHUP, ignored=True)
    assert code == 143
    assert lines[-1] == "interrupted by SIGTERM"


def test_handlers_are_as_before_when_the_block_ends() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with interruptible():
        pass
    assert [signal.getsignal(number) for number in SIGNALS] == before


def test_what_a_library_raises_in_its_place_becomes_it() -> None:
    def library() -> None:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Interrupted:
            error = KeyboardInterrupt()
            error.add_note("parts are kept")
            raise error from None

    with pytest.raises(Interrupted) as caught, interruptible():
        library()
    assert caught.value.line == "interrupted by SIGTERM; parts are kept"
    with pytest.raises(KeyboardInterrupt) as caught, interruptible():
        raise KeyboardInterrupt
    assert not isinstance(caught.value, Interrupted)


def test_another_thread_leaves_signals_alone() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen = []

    def work() -> None:
        with interruptible():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]


def test_libraries_that_catch_exceptions_let_it_pass() -> None:
    assert not issubclass(Interrupted, Exception)
    assert Interrupted(signal.SIGINT).exit_code == 130

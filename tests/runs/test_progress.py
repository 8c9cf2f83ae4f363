"""Progress on a terminal and off it."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import rlprune_jax
from rlprune_jax.runs.progress import show_progress


def count(every):
    with show_progress("counting", total=3, every=every) as advance:
        for _ in range(3):
            advance(note="loss 0.5")


def test_quick_work_says_nothing(capfd):
    count(every=60.0)
    assert capfd.readouterr() == ("", "")


def test_plain_lines_go_to_standard_error(capfd):
    count(every=0.0)
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines()[-1] == "counting: 3/3 after 0 s loss 0.5"
    assert len(captured.err.splitlines()) == 3


def test_interruption_passes_through():
    with pytest.raises(KeyboardInterrupt), show_progress("counting", total=3) as advance:
        advance()
        raise KeyboardInterrupt


PROGRAM = """
from rlprune_jax.runs.progress import show_progress
try:
    with show_progress("counting", total=3) as advance:
        advance(2, note="loss 0.5")
        raise KeyboardInterrupt
except KeyboardInterrupt:
    print("stopped")
"""


def test_a_terminal_gets_a_bar_and_its_cursor_back():
    parent, child = pty.openpty()
    environment = {**os.environ, "PYTHONPATH": str(Path(rlprune_jax.__file__).parents[1])}
    environment |= {"TERM": "xterm", "COLUMNS": "120"}
    subprocess.run(
        [sys.executable, "-c", PROGRAM], stdout=child, stderr=child, env=environment, check=True
    )
    os.close(child)
    shown = b""
    try:
        while piece := os.read(parent, 4096):
            shown += piece
    except OSError:  # Linux says so when the other end is closed.
        pass
    os.close(parent)
    assert b"counting" in shown and b"2/3" in shown and b"loss 0.5" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")
    assert b"stopped" in shown

"""Ctrl-C and SIGTERM end a process at once, wherever it is, with one line."""

import contextlib
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import rlprune_jax
from rlprune_jax.runs.interruption import interruptible

PACKAGE = Path(rlprune_jax.__file__).parent
LINE = "interrupted; the same command goes on from the last checkpoint\n"

# Loaded from its file, so that no test waits for the face of the whole package; and with the
# handler that a shell in the background may have taken away.
START = f"""
import signal, sys, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path.insert(0, {str(PACKAGE / "runs")!r})
import interruption
from interruption import interruptible
sys.path.pop(0)
"""

LOOP = """
with interruptible("checkpoint"):
    print("ready", flush=True)
    while True:
        pass
"""

SLEEP = """
with interruptible("checkpoint"):
    print("ready", flush=True)
    time.sleep(60)
"""

JOIN = """
with interruptible("checkpoint"):
    thread = threading.Thread(target=time.sleep, args=(60,), daemon=False)
    thread.start()
    print("ready", flush=True)
    thread.join()
"""

IMPORT = """
with interruptible("checkpoint"):
    print("ready", flush=True)
    import jax, optax, scipy.stats, orbax.checkpoint
    time.sleep(60)
"""

SWALLOWS = """
with interruptible("checkpoint"):
    print("ready", flush=True)
    while True:
        try:
            time.sleep(60)
        except BaseException:
            pass
"""

CALLBACK = """
with interruptible("checkpoint"):
    import jax, jax.numpy as jnp

    def wait(x):
        print("ready", flush=True)
        time.sleep(60)
        return x

    like = jax.ShapeDtypeStruct((), jnp.float32)
    jax.block_until_ready(jax.jit(lambda x: jax.pure_callback(wait, like, x))(jnp.float32(0)))
"""

# Takes 15 seconds to compile on 2 cores.
COMPILE = """
with interruptible("checkpoint"):
    import jax, jax.numpy as jnp

    def slow(x):
        for step in range(400):
            x = jnp.sin(x @ x) + step * jnp.sort(x, axis=0)
        return x

    lowered = jax.jit(slow).lower(jnp.ones((64, 64)))
    print("ready", flush=True)
    lowered.compile()
    print("compiled", flush=True)
"""


@contextlib.contextmanager
def started(program, tmp_path, **streams):
    # With Python's usual buffer, and nothing compiled before.
    environment = {**os.environ, "JAX_COMPILATION_CACHE_DIR": str(tmp_path), "PYTHONUNBUFFERED": ""}
    command = [sys.executable, "-c", START + program]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | streams
    with subprocess.Popen(command, env=environment, text=True, **pipes) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def interrupt(process, number, wait=0.2):
    """Send a signal; return seconds to the end, exit code, rest of the output and errors."""
    time.sleep(wait)
    began = time.monotonic()
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    return time.monotonic() - began, process.returncode, out, errors


@pytest.mark.parametrize(
    "program, number, code",
    [
        (LOOP, signal.SIGINT, 130),
        (LOOP, signal.SIGTERM, 143),
        (SLEEP, signal.SIGINT, 130),
        (JOIN, signal.SIGINT, 130),
        (JOIN, signal.SIGTERM, 143),
        (SWALLOWS, signal.SIGINT, 130),
        (IMPORT, signal.SIGINT, 130),
        (CALLBACK, signal.SIGINT, 130),
        (COMPILE, signal.SIGINT, 130),
        (COMPILE, signal.SIGTERM, 143),
    ],
)
def test_one_line_and_the_end(tmp_path, program, number, code):
    with started(program, tmp_path) as process:
        # A second into the compilation, and in the middle of the imports.
        wait = {COMPILE: 1.0, IMPORT: 0.4}.get(program, 0.1)
        seconds, *found = interrupt(process, number, wait)
    assert found == [code, "", LINE]
    assert seconds < 5  # 0.02 to 0.05 on 2 idle cores; a compilation would take 15


def test_what_was_printed_is_flushed(tmp_path):
    program = SLEEP.replace("time.sleep(60)", "print('unflushed', end=''); time.sleep(60)")
    with started(program, tmp_path) as process:
        assert interrupt(process, signal.SIGTERM)[1:] == (143, "unflushed", LINE)


def test_a_reader_that_reads_nothing_cannot_keep_the_process(tmp_path):
    # The pipe is full, and the main thread is stuck in writing to it.
    program = SLEEP.replace("time.sleep(60)", "print('x' * 10**7)")
    with started(program, tmp_path) as process:
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=10) == 130
        assert process.stderr.read() == LINE


def test_a_terminal_gets_its_cursor_back(tmp_path):
    parent, child = pty.openpty()
    with started(SLEEP, tmp_path, stderr=child) as process:
        assert interrupt(process, signal.SIGINT)[1] == 130
    os.close(child)
    shown = os.read(parent, 4096)
    os.close(parent)
    assert shown == b"\r\n\x1b[?25h" + LINE.replace("\n", "\r\n").encode()


def test_an_interrupt_raised_by_code_ends_the_same_way(tmp_path):
    program = 'print("ready", flush=True)\nwith interruptible():\n    raise KeyboardInterrupt\n'
    with started(program, tmp_path) as process:
        out, errors = process.communicate(timeout=60)
    assert (process.returncode, out, errors) == (130, "", "interrupted\n")


def test_a_signal_that_is_ignored_stays_ignored(tmp_path):
    program = """
signal.signal(signal.SIGINT, signal.SIG_IGN)
with interruptible("checkpoint"):
    print("ready", flush=True)
    time.sleep(0.5)
print("done")
"""
    with started(program, tmp_path) as process:
        assert interrupt(process, signal.SIGINT, 0.1)[1:] == (0, "done\n", "")


def state():
    before = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(before)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return before, handlers, threading.active_count()


def test_nothing_is_left_behind():
    before = state()
    with interruptible("checkpoint"):
        assert state() != before
    assert state() == before
    with pytest.raises(KeyError), interruptible("checkpoint"):
        raise KeyError
    assert state() == before


def test_signals_of_others_pass():
    caught = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: caught.append(number))
    try:
        with interruptible("checkpoint"):
            os.kill(os.getpid(), signal.SIGUSR1)
            time.sleep(0.05)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert caught == [signal.SIGUSR1]


def test_other_threads_are_refused():
    found = []

    def enter():
        try:
            with interruptible():
                pass
        except ValueError as error:
            found.append(str(error))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == ["interruptible must be entered in the main thread, which gets the signals"]


SAVES = """
from interruption import end_if_asked, is_ending, saving

with interruptible("checkpoint"):
    with saving():
        print("ready", flush=True)
        while True:
            time.sleep(STEP)
            if is_ending():
                print("saved", flush=True)
                end_if_asked()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_polite_signal_waits_for_a_save(tmp_path, number):
    program = SAVES.replace("STEP", "0.3")
    with started(program, tmp_path) as process:
        seconds, *found = interrupt(process, number, 0.1)
    assert found == [128 + number, "saved\n", LINE]
    assert seconds < 20


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once(tmp_path, second):
    with started(SAVES.replace("STEP", "60"), tmp_path) as process:
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        seconds, *found = interrupt(process, second, 0.1)
    assert found == [143, "", LINE]
    assert seconds < 20


def test_ctrl_c_waits_for_no_save(tmp_path):
    with started(SAVES.replace("STEP", "60"), tmp_path) as process:
        seconds, *found = interrupt(process, signal.SIGINT, 0.1)
    assert found == [130, "", LINE]
    assert seconds < 20


def test_a_save_that_takes_too_long_is_not_waited_for(tmp_path):
    program = "interruption._GRACE_SECONDS = 0.5\n" + SAVES.replace("STEP", "60")
    with started(program, tmp_path) as process:
        seconds, *found = interrupt(process, signal.SIGTERM, 0.1)
    assert found == [143, "", LINE]
    assert 0.4 < seconds < 20


def test_a_process_that_ends_is_interrupted_too(tmp_path):
    program = """
import atexit
atexit.register(lambda: (print("ready", flush=True), time.sleep(60)))
with interruptible(final=True):
    pass
"""
    with started(program, tmp_path) as process:
        assert interrupt(process, signal.SIGINT, 0.1)[1:] == (130, "", "interrupted\n")


def test_an_interrupt_before_the_first_handler_is_one_line(tmp_path):
    program = """
sys.path.insert(0, PLACE)
import rlprune_jax.cli
print("ready", flush=True)
time.sleep(60)
""".replace("PLACE", repr(str(PACKAGE.parent)))
    with started(program, tmp_path) as process:
        assert interrupt(process, signal.SIGINT, 0.1)[1:] == (130, "", "interrupted\n")

"""End a program at Ctrl-C, SIGTERM and SIGHUP, wherever it is.

Imports the standard library only, so that a command can use it before it imports JAX.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

# Windows has no SIGHUP.
_POLITE = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_SIGNALS = (signal.SIGINT, *_POLITE)
_FLUSH_SECONDS = 1.0
_ECHO = 128
"""Marks what Python's handler sends, after what C has sent of the same signal."""
_GRACE_SECONDS = 8.0
"""How long a checkpoint may take after a polite signal; what sends it kills after 10 or more."""


class _Ending:
    """What the watching thread and the main thread tell each other.

    Signals belong to the process, so this does too.
    """

    def __init__(self) -> None:
        self.savers = 0
        self.asked = threading.Event()
        self.number = 0
        self.line = ""


_ending = _Ending()


@contextlib.contextmanager
def saving() -> Iterator[None]:
    """Let a polite signal wait for a save.

    Use it around a loop that calls ``end_if_asked`` after each save. SIGTERM and SIGHUP then end
    the process there, or after some seconds wherever it is. Ctrl-C waits for nothing.

    Example:
        >>> with saving():
        ...     for step in range(2):
        ...         if is_ending():
        ...             pass  # save what is done
        ...         end_if_asked()
    """
    _ending.savers += 1
    try:
        yield
    finally:
        _ending.savers -= 1
    end_if_asked()


def is_ending() -> bool:
    """Return whether a signal waits for a save."""
    return _ending.asked.is_set()


def end_if_asked() -> None:
    """End the process where a signal waits for a save."""
    if is_ending():
        _end(_ending.number, _ending.line)


@contextlib.contextmanager
def interruptible(saved: str = "", *, final: bool = False) -> Iterator[None]:
    """End the process with one line when interrupted.

    Use it around the work of a command, imports included. Ctrl-C (SIGINT) ends the process with
    exit code 130, SIGTERM with 143 and SIGHUP with 129, without a traceback: also while XLA
    compiles, inside a callback, or while a thread is joined. Ctrl-C does so at once; the others let
    a loop under ``saving`` save what it has done, for at most some seconds, unless a second signal
    comes. No ``finally`` block runs, so what is written to disk must be safe against kill -9, as
    checkpoints and run directories are. A signal that the process was started to ignore, as under
    ``nohup``, stays ignored.

    Args:
        saved: what the same command goes on from, such as ``"checkpoint"``; without it the line
            promises nothing.
        final: whether the process ends after the block; handlers then stay, so that Ctrl-C is
            answered while it ends, too.

    Raises:
        ValueError: this is not the main thread, the only one that may handle signals.

    Example:
        >>> with interruptible("checkpoint"):
        ...     print("trained")
        trained
    """
    if threading.current_thread() is not threading.main_thread():
        raise ValueError("interruptible must be entered in the main thread, which gets the signals")
    promise = f"; the same command goes on from the last {saved}" if saved else ""
    line = f"interrupted{promise}"
    # Python's own handlers wait until the main thread runs Python again, which a compilation
    # delays by minutes. What is sent here from C reaches the watching thread at once.
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    watcher = threading.Thread(target=_watch, args=(receiver, line), daemon=True)

    def forward(number: int, frame: FrameType | None) -> None:
        # Once more, should an event loop have taken the descriptor away meanwhile.
        with contextlib.suppress(OSError):
            sender.send(bytes([number | _ECHO]))

    before = signal.set_wakeup_fd(sender.fileno(), warn_on_full_buffer=False)
    handlers = {
        number: signal.signal(number, forward)
        for number in _SIGNALS
        # None is a handler of C, which Python could not put back.
        if signal.getsignal(number) not in (signal.SIG_IGN, None)
    }
    watcher.start()
    try:
        yield
    except KeyboardInterrupt:  # raised by code, not by the signal
        _end(signal.SIGINT, line)
    finally:
        if not final:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before)
            sender.close()
            watcher.join()
            receiver.close()


def _watch(receiver: socket.socket, line: str) -> None:
    """Wait for a signal of ours, then end the process."""
    while received := receiver.recv(1):
        # Signals with handlers of others are announced here, too.
        number = received[0] & ~_ECHO
        if number not in _SIGNALS:
            continue
        if number in _POLITE and _ending.savers:
            _ending.number, _ending.line = number, line
            _ending.asked.set()
            _wait_for_another(receiver)
        _end(number, line)


def _wait_for_another(receiver: socket.socket) -> None:
    """Return after the grace, or at once where another signal comes."""
    began = time.monotonic()
    while (left := _GRACE_SECONDS - (time.monotonic() - began)) > 0:
        receiver.settimeout(left)
        try:
            again = receiver.recv(1)
        except TimeoutError:
            return
        if not again or again[0] in _SIGNALS:
            return


def _end(number: int, line: str) -> None:
    # What holds the streams may be stuck itself: a full pipe must not keep the process alive.
    speaker = threading.Thread(target=_say, args=(line,), daemon=True)
    speaker.start()
    speaker.join(_FLUSH_SECONDS)
    # No destructors: those of XLA crash while another thread compiles.
    os._exit(128 + number)


def _say(line: str) -> None:
    # The original stream: a progress bar replaces `sys.stderr` by one of its own.
    errors = sys.__stderr__
    with contextlib.suppress(OSError, ValueError):
        if errors is not None:
            # A progress bar hides the cursor and leaves it at the end of its line.
            errors.write(f"\n\x1b[?25h{line}\n" if errors.isatty() else f"{line}\n")
            errors.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            if stream is not None:
                stream.flush()

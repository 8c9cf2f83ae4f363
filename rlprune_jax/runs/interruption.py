"""End a program at Ctrl-C and SIGTERM at once, wherever it is.

Imports the standard library only, so that a command can use it before it imports JAX.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_FLUSH_SECONDS = 1.0


@contextlib.contextmanager
def interruptible(saved: str = "") -> Iterator[None]:
    """End the process with one line when interrupted.

    Use it around the work of a command, imports included. Ctrl-C (SIGINT) ends the process with
    exit code 130 and SIGTERM with 143, at once and without a traceback: also while XLA compiles,
    inside a callback, or while a thread is joined. No ``finally`` block runs, so what is written to
    disk must be safe against kill -9, as checkpoints and run directories are. A signal that the
    process was started to ignore, as under ``nohup``, stays ignored.

    Args:
        saved: what the same command goes on from, such as ``"checkpoint"``; without it the line
            promises nothing.

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
            sender.send(bytes([number]))

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
        if received[0] in _SIGNALS:
            _end(received[0], line)


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

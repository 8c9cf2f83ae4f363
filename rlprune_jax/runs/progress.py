"""Progress on the terminal: a bar for people, an occasional line for log files."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Advance = Callable[..., None]
"""``advance(steps=1, note="")``: so many steps more are done; the note stands beside the bar."""


@contextlib.contextmanager
def progress(description: str, total: int, *, every: float = 15.0) -> Iterator[Advance]:
    """Shows how far a loop has come, on standard error; standard output stays for results.

    On a terminal a bar with elapsed and remaining time. Elsewhere one plain line every ``every``
    seconds, and nothing at all for what ends sooner. An exception or Ctrl-C passes through and
    leaves the terminal in order.

    Args:
        description: what is being done, such as ``"dense training"``.
        total: number of steps.
        every: seconds between plain lines.

    Example:
        >>> with progress("counting", total=3) as advance:
        ...     for count in range(3):
        ...         advance(note=f"at {count}")
    """
    if sys.stdout.isatty() and sys.stderr.isatty():
        with _bar(description, total) as advance:
            yield advance
    else:
        yield _lines(description, total, every)


@contextlib.contextmanager
def _bar(description: str, total: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as bars:
        task = bars.add_task(description, total=total, note="")

        def advance(steps: int = 1, note: str = "") -> None:
            bars.update(task, advance=steps, note=note)

        yield advance


def _lines(description: str, total: int, every: float) -> Advance:
    start = last = time.monotonic()
    done = 0

    def advance(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= every:
            last = now
            line = f"{description}: {done}/{total} after {now - start:.0f} s {note}".rstrip()
            print(line, file=sys.stderr, flush=True)

    return advance

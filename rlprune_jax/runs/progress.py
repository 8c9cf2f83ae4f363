"""Show progress by a bar on terminals and lines in log files."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from rlprune_jax.checks import require_count, require_range


class Tick(Protocol):
    """Take note of steps that are done."""

    def __call__(self, steps: int = 1, note: str = "") -> None:
        """Move the bar by some steps.

        Args:
            steps: number of steps done since the last call.
            note: what to show beside the bar.
        """


@contextlib.contextmanager
def show_progress(description: str, total: int, *, every: float = 15.0) -> Iterator[Tick]:
    """Show how far a loop has come.

    Use it around whatever takes longer than a few seconds. It writes to standard error, so that
    standard output stays for results: on a terminal a bar with elapsed and remaining time,
    elsewhere one plain line every ``every`` seconds, and nothing at all for what ends sooner. An
    exception passes through and leaves the terminal in order.

    Args:
        description: what is being done, such as ``"dense training"``.
        total: number of steps.
        every: seconds between plain lines.

    Raises:
        ValueError: ``total`` is no count, or ``every`` below 0.

    Example:
        >>> with show_progress("counting", total=3) as tick:
        ...     for count in range(3):
        ...         tick(note=f"at {count}")
    """
    require_count("total", total, 0)
    require_range("every", every, 0.0)
    if all(stream is not None and stream.isatty() for stream in (sys.stdout, sys.stderr)):
        with _bar(description, total) as tick:
            yield tick
    else:
        yield _lines(description, total, every)


@contextlib.contextmanager
def _bar(description: str, total: int) -> Iterator[Tick]:
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

        def tick(steps: int = 1, note: str = "") -> None:
            bars.update(task, advance=steps, note=note)

        yield tick


def _lines(description: str, total: int, every: float) -> Tick:
    start = last = time.monotonic()
    done = 0

    def tick(steps: int = 1, note: str = "") -> None:
        nonlocal done, last
        done += steps
        now = time.monotonic()
        if now - last >= every:
            last = now
            line = f"{description}: {done}/{total} after {now - start:.0f} s {note}".rstrip()
            print(line, file=sys.stderr, flush=True)

    return tick

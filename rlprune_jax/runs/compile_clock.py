"""Measure the seconds spent compiling, as JAX itself reports them."""

import contextlib
from types import TracebackType
from typing import Self

import jax


class CompileClock:
    """Add up the seconds of compilation inside a ``with`` block.

    Use it to tell the time of a computation from that of compiling it. Several may run at a time,
    and nothing stays registered with JAX afterwards.

    Attributes:
        seconds: f64, of tracing, lowering and compiling so far; after the block, within it.

    Example:
        >>> with CompileClock() as clock:
        ...     _ = jax.jit(lambda x: x + 1)(1.0)
        >>> clock.seconds > 0
        True
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._running = False

    def __enter__(self) -> Self:
        self._running = True
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Should a version of JAX not be able to forget the listener, it at least stops counting.
        self._running = False
        # An assertion: somebody has cleared all listeners meanwhile.
        with contextlib.suppress(AttributeError, AssertionError, ValueError):
            jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if self._running and event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs

"""Seconds spent compiling, as JAX itself reports them."""

import jax


class CompileClock:
    """Adds up compilation from its creation on.

    Attributes:
        seconds: of tracing, lowering and compiling so far.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **kwargs: str | int) -> None:
        if event.startswith("/jax/core/compile/"):
            self.seconds += duration_secs

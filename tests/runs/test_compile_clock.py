"""The clock counts compilation, inside its block only, and leaves no listener."""

import jax
import jax.numpy as jnp
import pytest

from rlprune_jax.runs.compile_clock import CompileClock

EVENT = "/jax/core/compile/backend_compile_duration"


def listeners():
    from jax._src import monitoring

    return list(monitoring._event_duration_secs_listeners)


def test_compilation_is_counted_inside_the_block():
    before = listeners()
    with CompileClock() as clock:
        jax.jit(lambda x: jnp.sin(x) * 3)(jnp.ones(3))
        assert clock.seconds > 0
    inside = clock.seconds
    jax.jit(lambda x: jnp.cos(x) * 5)(jnp.ones(3))
    assert clock.seconds == inside
    assert listeners() == before


def test_only_compilation_counts():
    with CompileClock() as clock:
        jax.monitoring.record_event_duration_secs(EVENT, 2.0)
        jax.monitoring.record_event_duration_secs("/jax/other", 3.0)
    jax.monitoring.record_event_duration_secs(EVENT, 5.0)
    assert clock.seconds == 2.0


def test_clocks_are_independent_and_survive_errors():
    before = listeners()
    with CompileClock() as outer:
        jax.monitoring.record_event_duration_secs(EVENT, 1.0)
        with pytest.raises(KeyError), CompileClock() as inner:
            jax.monitoring.record_event_duration_secs(EVENT, 2.0)
            raise KeyError
        jax.monitoring.record_event_duration_secs(EVENT, 4.0)
    assert (outer.seconds, inner.seconds) == (7.0, 2.0)
    assert listeners() == before


def test_a_clock_goes_on_in_a_second_block():
    clock = CompileClock()
    for _ in range(2):
        with clock:
            jax.monitoring.record_event_duration_secs(EVENT, 1.5)
    assert clock.seconds == 3.0


def test_it_stops_where_jax_cannot_forget_a_listener(monkeypatch):
    with CompileClock() as clock, monkeypatch.context() as patch:
        forget = jax.monitoring.unregister_event_duration_listener
        patch.delattr(jax.monitoring, "unregister_event_duration_listener")
        clock.__exit__(None, None, None)
        jax.monitoring.record_event_duration_secs(EVENT, 1.0)
        assert clock.seconds == 0.0
        forget(clock._listen)

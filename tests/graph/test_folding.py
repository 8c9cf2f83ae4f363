"""Values that constants tell, against what JAX computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.graph.folding import fold
from rlprune_jax.graph.program import Literal, trace_program

CASES = {
    "index_arithmetic": lambda: jnp.where(jnp.arange(5) < 0, jnp.arange(5) + 5, 2 * jnp.arange(5)),
    "remainder": lambda: jax.lax.rem(jnp.array([7, -7]), jnp.array([3, 3])),
    "truncated": lambda: jax.lax.div(jnp.array([7, -7]), jnp.array([2, 2])),
    "powers": lambda: jnp.float32(3) ** 2 + jax.lax.integer_pow(jnp.float32(2), -2),
    "roots": lambda: jax.lax.rsqrt(jnp.float32(16)) + jnp.sqrt(jnp.float32(9)),
    "moved": lambda: jnp.arange(6).reshape(2, 3).T[::-1].reshape(-1)[1:5:2],
    "joined": lambda: jnp.concatenate([jnp.arange(2), jnp.arange(3)[None].squeeze(0)]),
    "degrees": lambda: jnp.float32(64) - jnp.int32(1).astype(jnp.float32),
    "logic": lambda: (jnp.arange(4) > 1) & ~(jnp.arange(4) == 3) | (jnp.arange(4) == 0),
}


@pytest.mark.parametrize("name", CASES)
def test_folding_computes_what_jax_computes(name):
    program, _ = trace_program(CASES[name])
    values = {slot: np.asarray(value) for slot, value in program.constants.items()}
    for equation in program.equations:
        operands = [
            np.asarray(atom.value) if isinstance(atom, Literal) else values[atom]
            for atom in equation.inputs
        ]
        value = fold(equation, operands)
        assert value is not None, equation.name
        values[equation.outputs[0]] = value
    (output,) = program.outputs
    expected = np.asarray(CASES[name]())
    np.testing.assert_allclose(values[output], expected, rtol=1e-6)
    assert values[output].dtype == expected.dtype


def test_what_is_large_divides_by_zero_or_is_unknown_is_left():
    for function in (
        lambda: jnp.broadcast_to(jnp.float32(1), (1 << 10, 1 << 10)),
        lambda: jax.lax.div(jnp.int32(1), jnp.int32(0)),
        lambda: jnp.sin(jnp.float32(1)),
    ):
        program, _ = trace_program(function)
        (equation,) = program.equations
        assert fold(equation, [np.asarray(atom.value) for atom in equation.inputs]) is None

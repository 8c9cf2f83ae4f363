"""Jobs that several tests of studies run, in this process and in others."""

import jax
import jax.numpy as jnp

from rlprune_jax.sealed import open_arrays
from rlprune_jax.study import grid

AXES = {"scale": [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0, 5.5], "rate": [0.1, 0.2]}


def job(hparams, key):
    """A short descent with noise, so that every number and the seed matter."""
    start, noise = jax.random.split(key)
    x = jax.random.normal(start, (4,)) * hparams["scale"]
    steps = jax.random.normal(noise, (5, 4))
    x, _ = jax.lax.scan(
        lambda x, n: (x - hparams["rate"] * (jnp.tanh(x) + 0.1 * n), None), x, steps
    )
    return {"loss": jnp.sum(x * x), "largest": jnp.max(x)}


def settings():
    return grid(AXES)


def read_cells(file):
    """The cells of a chunk's file."""
    return open_arrays(file.read_bytes(), file, "chunk")["cell"]

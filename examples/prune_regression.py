"""Prune a regression of your own, bare functions of JAX: python examples/prune_regression.py."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_diabetes

import rlprune_jax as rp

x, y = load_diabetes(return_X_y=True)
x, y = (x / x.std(0)).astype(np.float32), ((y - y.mean()) / y.std()).astype(np.float32)[:, None]
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 280), (280, 361), (361, 442)))
optimizer = optax.adamw(1e-3, weight_decay=1e-2)


def apply(layers, x):
    for layer in layers[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    return x @ layers[-1]["w"] + layers[-1]["b"]


def fresh():
    widths, keys = (10, 64, 64, 1), jax.random.split(jax.random.key(0), 3)
    return [
        {"w": jax.random.normal(key, (a, b)) * (2 / a) ** 0.5, "b": jnp.zeros(b)}
        for a, b, key in zip(widths, widths[1:], keys, strict=False)
    ]


@jax.jit
def step(layers, opt_state, x, y):
    gradient = jax.grad(lambda layers: jnp.mean((apply(layers, x) - y) ** 2))(layers)
    updates, opt_state = optimizer.update(gradient, opt_state, layers)
    return optax.apply_updates(layers, updates), opt_state


def load(folder):  # in any other process
    return rp.Network(apply, fresh(), x[:1]).load_slim(folder)


if __name__ == "__main__":
    layers, rng = fresh(), np.random.default_rng(0)
    opt_state = optimizer.init(layers)
    for _ in range(200):
        rows = rng.integers(0, 280, 64)
        layers, opt_state = step(layers, opt_state, x[rows], y[rows])

    network = rp.Network(apply, layers, x[:1])
    task = rp.regression(train, held_out, test)
    result = rp.prune(network, task, "params=0.1", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_regression")

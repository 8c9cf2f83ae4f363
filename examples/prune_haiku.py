"""Prune a Haiku classifier of your own: python examples/prune_haiku.py."""

import haiku as hk
import jax
import optax
from sklearn.datasets import load_digits

import rlprune_jax as rp


@hk.transform_with_state
def net(x, training):
    for width in (16, 32):
        x = hk.Conv2D(width, 3, stride=2, with_bias=False)(x)
        x = jax.nn.relu(hk.BatchNorm(True, True, decay_rate=0.9)(x, training))
    return hk.Linear(10)(hk.dropout(hk.next_rng_key(), 0.1 * training, x.mean((1, 2))))


x, y = load_digits(return_X_y=True)
x, y = x.reshape(-1, 8, 8, 1).astype("float32") / 16, y.astype("int32")
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797)))
optimizer = optax.adam(3e-3)
start = dict(zip(("params", "state"), net.init(jax.random.key(0), x[:1], True), strict=True))


def apply_train(variables, x, key, training=True):
    outputs, state = net.apply(variables["params"], variables["state"], key, x, training)
    return outputs, {"state": state}


def apply(variables, x):
    return apply_train(variables, x, jax.random.key(0), training=False)[0]


@jax.jit
def step(variables, opt_state, x, y, key):
    def loss(params):
        logits, changed = apply_train({**variables, "params": params}, x, key)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed

    gradient, changed = jax.grad(loss, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradient, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state


def load(folder):  # in any other process
    return rp.Network(apply, start, x[:1], apply_train=apply_train).load_slim(folder)


if __name__ == "__main__":
    variables, opt_state = start, optimizer.init(start["params"])
    for key in jax.random.split(jax.random.key(1), 200):
        rows = jax.random.randint(key, (64,), 0, 1197)
        variables, opt_state = step(variables, opt_state, x[rows], y[rows], key)
    network = rp.Network(apply, variables, x[:1], apply_train=apply_train)
    task = rp.classification(train, held_out, test)
    result = rp.prune(network, task, "macs=0.4", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_haiku")

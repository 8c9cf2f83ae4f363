"""Prune an Equinox classifier of your own: python examples/prune_equinox.py."""

import equinox as eqx
import jax
import optax
from sklearn.datasets import load_digits

import rlprune_jax as rp


class Net(eqx.Module):
    blocks: list
    head: eqx.nn.Linear

    def __init__(self, key):
        keys, sizes = jax.random.split(key, 3), ((1, 16), (16, 32))
        convs = [eqx.nn.Conv2d(*sizes[i], 3, stride=2, padding=1, key=keys[i]) for i in range(2)]
        norms = [eqx.nn.BatchNorm(n, "batch", mode="ema", momentum=0.9) for _, n in sizes]
        self.blocks = list(zip(convs, norms, strict=True))
        self.head = eqx.nn.Linear(32, 10, key=keys[2])

    def __call__(self, x, state):
        for conv, norm in self.blocks:
            x, state = norm(jax.nn.relu(conv(x)), state)
        return self.head(x.mean((1, 2))), state


x, y = load_digits(return_X_y=True)
x, y = x.reshape(-1, 1, 8, 8).astype("float32") / 16, y.astype("int32")
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797)))
optimizer, start = optax.adam(3e-3), eqx.nn.make_with_state(Net)(jax.random.key(0))


@eqx.filter_jit
def step(net, state, opt_state, x, y):
    def loss(net):
        logits, after = jax.vmap(net, (0, None), (0, None), axis_name="batch")(x, state)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), after

    gradient, state = eqx.filter_grad(loss, has_aux=True)(net)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return eqx.apply_updates(net, updates), state, opt_state


def load(folder):  # in any other process
    return rp.Network.from_equinox(start[0], x[:1], state=start[1]).load_slim(folder)


if __name__ == "__main__":
    (net, state), opt_state = start, optimizer.init(eqx.filter(start[0], eqx.is_array))
    for key in jax.random.split(jax.random.key(1), 200):
        rows = jax.random.randint(key, (64,), 0, 1197)
        net, state, opt_state = step(net, state, opt_state, x[rows], y[rows])

    network = rp.Network.from_equinox(net, x[:1], state=state)
    task = rp.classification(train, held_out, test)
    result = rp.prune(network, task, "macs=0.4", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_equinox")

"""Prune a Flax Linen classifier of your own: python examples/prune_linen.py."""

import flax.linen as nn
import jax
import optax
from sklearn.datasets import load_digits

import rlprune_jax as rp


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, training=False):
        for width in (16, 32):
            x = nn.Conv(width, (3, 3), use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not training, momentum=0.9)(x))
            x = nn.max_pool(x, (2, 2), (2, 2))
        x = nn.Dropout(0.1, deterministic=not training)(x.mean((1, 2)))
        return nn.Dense(10)(x)


x, y = load_digits(return_X_y=True)
x, y = x.reshape(-1, 8, 8, 1).astype("float32") / 16, y.astype("int32")
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797)))
net, optimizer = Net(), optax.adam(3e-3)
start = net.init(jax.random.key(0), x[:1])


@jax.jit
def step(variables, opt_state, x, y, key):
    def loss(params):
        options = {"training": True, "mutable": ["batch_stats"], "rngs": {"dropout": key}}
        logits, changed = net.apply({**variables, "params": params}, x, **options)
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean(), changed

    gradient, changed = jax.grad(loss, has_aux=True)(variables["params"])
    updates, opt_state = optimizer.update(gradient, opt_state)
    return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state


def load(folder):  # in any other process
    return rp.Network.from_linen(net, start, x[:1]).load_slim(folder)


if __name__ == "__main__":
    variables, opt_state = start, optimizer.init(start["params"])
    for key in jax.random.split(jax.random.key(1), 200):
        rows = jax.random.randint(key, (64,), 0, 1197)
        variables, opt_state = step(variables, opt_state, x[rows], y[rows], key)

    network = rp.Network.from_linen(net, variables, x[:1])
    task = rp.classification(train, held_out, test)
    result = rp.prune(network, task, "macs=0.4", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_linen")

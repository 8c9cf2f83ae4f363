"""Prune a Flax NNX classifier of your own: python examples/prune_nnx.py."""

import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits

import rlprune_jax as rp


class Net(nnx.Module):
    def __init__(self, rngs):
        convs = [nnx.Conv(*size, (3, 3), rngs=rngs) for size in ((1, 16), (16, 32))]
        norms = [nnx.BatchNorm(width, momentum=0.9, rngs=rngs) for width in (16, 32)]
        self.convs, self.norms = nnx.List(convs), nnx.List(norms)
        self.dropout, self.head = nnx.Dropout(0.1, rngs=rngs), nnx.Linear(32, 10, rngs=rngs)

    def __call__(self, x):
        for conv, norm in zip(self.convs, self.norms, strict=True):
            x = nnx.max_pool(nnx.relu(norm(conv(x))), (2, 2), (2, 2))
        return self.head(self.dropout(x.mean((1, 2))))


x, y = load_digits(return_X_y=True)
x, y = x.reshape(-1, 8, 8, 1).astype("float32") / 16, y.astype("int32")
train, held_out, test = ((x[a:b], y[a:b]) for a, b in ((0, 1197), (1197, 1497), (1497, 1797)))


@nnx.jit
def step(net, optimizer, x, y):
    def loss(net):
        return optax.softmax_cross_entropy_with_integer_labels(net(x), y).mean()

    optimizer.update(net, nnx.grad(loss)(net))


def fit(net, steps):
    optimizer, rng = nnx.Optimizer(net, optax.adam(3e-3), wrt=nnx.Param), np.random.default_rng(0)
    net.train()
    for _ in range(steps):
        rows = rng.integers(0, 1197, 64)
        step(net, optimizer, x[rows], y[rows])
    net.eval()
    return net


def load(folder):  # in any other process
    return rp.Network.from_nnx(Net(nnx.Rngs(0)), x[:1]).load_slim(folder)


if __name__ == "__main__":
    network = rp.Network.from_nnx(fit(Net(nnx.Rngs(0)), 200), x[:1])
    task = rp.classification(train, held_out, test)
    result = rp.prune(network, task, "macs=0.4", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_nnx")
    net = fit(result.network.module, 20)  # an nnx.Module again, for your own loop
    print(f"trained further: {(net(test[0]).argmax(-1) == test[1]).mean():.2%}")

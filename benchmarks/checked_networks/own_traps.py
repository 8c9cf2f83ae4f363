"""Small networks in which one number, axis or order is easily taken for another."""

import jax
import jax.numpy as jnp
import numpy as np

from checked_networks.case import Built, Cases, parameters, rows, tokens, weights
from checked_networks.own_transformers import layer_norm, llama_block, rms_norm

CASES = Cases("own")


def _plain(apply, inputs: tuple[jax.Array, ...] = (), **shapes: tuple[int, ...]) -> Built:
    return Built(apply=apply, variables=parameters(3, **shapes), inputs=inputs or (rows(6),))


@CASES("trap")
def all_sizes_alike() -> Built:
    """A decoder in which width, hidden width, heads in all and positions are 16."""
    side = 16
    names = ("q", "k", "v", "o", "gate", "up", "down")
    variables = {
        **parameters(3, **{name: (side, side) for name in names}),
        **parameters(50, norm1=(side,), norm2=(side,), norm=(side,)),
        "embed": 4 * weights(side, side, seed=1),
        "position": weights(side, side, seed=2),
        "head": weights(side, side, seed=4),
    }

    def apply(v, x):
        x = llama_block(v, v["embed"][x] + v["position"])
        return rms_norm(x, v["norm"]).mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(side, side),))


@CASES("trap")
def means_of_equal_lengths() -> Built:
    """Means over positions and over units, both 12; one divided by a number that is neither."""

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        x = x - x.mean(1, keepdims=True)
        x = x - 0.5 * x.mean(2, keepdims=True)
        x = jax.nn.relu(x @ v["b"])
        x = x - x.sum(-1, keepdims=True) / 12.5
        return (x.sum(1) / 12) @ v["c"]

    return _plain(apply, (rows(12, 6),), a=(6, 12), b=(12, 12), c=(12, 5))


@CASES("trap")
def statistics_by_hand() -> Built:
    """Sample variance (one less), moments in one pass, a root of the width, a norm."""

    def apply(v, x):
        x = x @ v["a"]
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, ddof=1, keepdims=True) + 1e-3)
        x = jax.nn.relu(x) @ v["b"]
        mean, square = x.mean(-1, keepdims=True), (x * x).mean(-1, keepdims=True)
        x = (x - mean) * jax.lax.rsqrt(square - mean**2 + 1e-3)
        x = jax.nn.relu(x) @ v["c"]
        x = x / jnp.linalg.norm(x, axis=-1, keepdims=True) * x.shape[-1] ** 0.5 * v["scale"]
        return jax.nn.relu(x) @ v["d"]

    return _plain(apply, a=(6, 12), b=(12, 14), c=(14, 16), scale=(16,), d=(16, 5))


@CASES("trap")
def norm_over_positions_and_units() -> Built:
    """A layer norm over two axes, and one over two layers side by side."""

    def apply(v, x):
        x = x @ v["a"]
        x = (x - x.mean((1, 2), keepdims=True)) / (x.std((1, 2), keepdims=True) + 0.1)
        y = jnp.concatenate([x @ v["b"], jnp.tanh(x @ v["c"])], axis=-1)
        y = layer_norm(y, v["scale"], v["bias"])
        return jax.nn.relu(y @ v["d"]).mean(1) @ v["e"]

    return _plain(
        apply,
        (rows(7, 6),),
        a=(6, 12),
        b=(12, 10),
        c=(12, 8),
        scale=(18,),
        bias=(18,),
        d=(18, 9),
        e=(9, 5),
    )


@CASES("trap")
def group_norm_by_hand() -> Built:
    """Groups of units by a reshape, each with a mean of its own; groups as the last axis too."""

    def apply(v, x):
        x = (x @ v["a"]).reshape(x.shape[0], 4, 3)
        x = (x - x.mean(-1, keepdims=True)) / jnp.sqrt(x.var(-1, keepdims=True) + 1e-3)
        x = jax.nn.relu(x.reshape(x.shape[0], 12) * v["scale"]) @ v["b"]
        x = x.reshape(x.shape[0], 4, 5)
        x = x / jnp.sqrt((x**2).mean(1, keepdims=True) + 1e-3)
        return x.reshape(x.shape[0], 20) @ v["c"]

    return _plain(apply, a=(6, 12), scale=(12,), b=(12, 20), c=(20, 5))


@CASES("trap")
def extremes_over_units() -> Built:
    """Maximum, minimum, product, logsumexp, any and all over units."""

    def apply(v, x):
        x = jnp.tanh(x @ v["a"])
        parts = [x.max(-1), x.min(-1), (1 + 0.1 * x).prod(-1), jax.nn.logsumexp(x, -1)]
        parts += [(x > 0.9).any(-1).astype(x.dtype), (x > -0.9).all(-1).astype(x.dtype)]
        parts += [jnp.abs(x).max(-1), (x > 0).sum(-1).astype(x.dtype)]
        return jnp.stack(parts, -1) @ v["b"]

    return _plain(apply, a=(6, 12), b=(8, 5))


@CASES("trap")
def orders_of_units() -> Built:
    """Sorted, cumulated and ranked units, which stay, beside rolled and turned ones, which go."""

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        y = jnp.sort(x @ v["b"], axis=-1) + jnp.cumsum(x @ v["c"], axis=-1)
        best, _ = jax.lax.top_k(x @ v["d"], 3)
        z = jnp.roll(x @ v["e"], 3, axis=-1) + (x @ v["e"])[:, ::-1]
        return y @ v["f"] + best @ v["g"] + jax.nn.relu(z) @ v["h"]

    return _plain(
        apply,
        a=(6, 12),
        b=(12, 10),
        c=(12, 10),
        d=(12, 9),
        e=(12, 8),
        f=(10, 5),
        g=(3, 5),
        h=(8, 5),
    )


@CASES("trap")
def static_indices() -> Built:
    """Units permuted, selected and doubled by index arrays that are constants."""
    order = np.random.default_rng(0).permutation(12)
    some, doubled = np.array([0, 2, 3, 7, 11]), np.array([0, 0, 1, 2, 2, 4, 5, 5])

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])[:, order]
        y = jax.nn.relu(x @ v["b"])
        return y[:, some] @ v["c"] + jnp.take(y, doubled, axis=-1) @ v["d"]

    return _plain(apply, a=(6, 12), b=(12, 12), c=(5, 4), d=(8, 4))


@CASES("trap")
def units_written_in_place() -> Built:
    """Some units set or added to by constant places, some by a slice whose start is known."""

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        x = x.at[:, 2].set(1.0).at[:, jnp.array([0, 5])].add(0.5)
        y = jnp.zeros((x.shape[0], 16)).at[:, 2:14].set(x @ v["b"])
        y = jax.lax.dynamic_update_slice(y, x[:, :3], (0, 4))
        return jax.nn.relu(y) @ v["c"]

    return _plain(apply, a=(6, 10), b=(10, 12), c=(16, 5))


@CASES("trap")
def repeated_and_tiled() -> Built:
    """Units repeated, tiled, broadcast to heads, padded and stacked with themselves."""

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        y = jnp.repeat(x, 2, axis=-1) @ v["b"] + jnp.tile(x, 2) @ v["c"]
        z = jnp.broadcast_to(x[:, None], (x.shape[0], 3, x.shape[1])).reshape(x.shape[0], -1)
        w = jnp.pad(x, ((0, 0), (1, 2))) @ v["e"]
        s = jnp.stack([x, 2 * x], axis=-1).reshape(x.shape[0], -1)
        return (jax.nn.relu(y) + z @ v["d"] + w + s @ v["f"]) @ v["g"]

    return _plain(
        apply, a=(6, 8), b=(16, 10), c=(16, 10), d=(24, 10), e=(11, 10), f=(16, 10), g=(10, 5)
    )


@CASES("trap")
def fake_quantised() -> Built:
    """Weights and activations rounded with scales that are maxima over units, straight through."""

    def quantised(x, axis):
        scale = jnp.abs(x).max(axis, keepdims=True) / 127 + 1e-6
        return x + jax.lax.stop_gradient(jnp.round(x / scale) * scale - x)

    def apply(v, x):
        x = jax.nn.relu(x @ quantised(v["a"], 0))
        x = jax.nn.relu(quantised(x, -1) @ v["b"])
        return x @ quantised(v["c"], 1)

    return _plain(apply, a=(6, 12), b=(12, 10), c=(10, 5))


@CASES("trap")
def scan_outputs_flattened() -> Built:
    """States of all steps flattened into features; a scan over units' own axis; a nested carry."""

    def apply(v, x):
        def step(carry, each):
            h, seen = carry
            h = jnp.tanh(each @ v["x"] + h @ v["h"])
            return (h, (seen[0] + h, seen[1] + 1)), h

        zero = jnp.zeros((x.shape[0], 8))
        start = (zero, (zero, jnp.zeros(())))
        (_, seen), y = jax.lax.scan(step, start, x.swapaxes(0, 1))
        y = y.swapaxes(0, 1).reshape(x.shape[0], -1)
        mean = seen[0] / seen[1]
        total, _ = jax.lax.scan(lambda s, w: (s + jnp.tanh(w), None), mean[:, 0] * 0, mean.T)
        return jax.nn.relu(y @ v["y"]) @ v["o"] + mean @ v["m"] + total[:, None]

    return _plain(apply, (rows(5, 6),), x=(6, 8), h=(8, 8), y=(40, 10), o=(10, 4), m=(8, 4))


@CASES("trap")
def branches_that_permute() -> Built:
    """Branches whose units come in another order, a branch that is a constant, nested choices."""

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        x = jax.lax.cond(x[0, 0] > 0, lambda x: x[:, ::-1], lambda x: 2 * x, x)
        y = x @ v["b"]
        y = jax.lax.cond(
            y.sum() > 0,
            lambda y: jax.lax.cond(y[0, 0] > 0, jnp.tanh, jnp.sin, y),
            lambda y: jnp.ones_like(y),
            y,
        )
        return y @ v["c"]

    return _plain(apply, a=(6, 12), b=(12, 10), c=(10, 5))


@CASES("trap")
def weights_of_weights() -> Built:
    """Kernels made of kernels: a mixture, a Kronecker product, a product of three."""

    def apply(v, x):
        mix = jax.nn.softmax(v["mix"])
        x = jax.nn.relu(x @ jnp.einsum("k,kio->io", mix, v["kernels"]))
        x = jax.nn.relu(x @ jnp.kron(v["left"], v["right"]))
        x = jax.nn.relu(x @ (v["u"] @ jnp.diag(v["s"]) @ v["w"]))
        return x @ v["c"]

    return _plain(
        apply,
        mix=(3,),
        kernels=(3, 6, 12),
        left=(3, 4),
        right=(4, 5),
        u=(20, 6),
        s=(6,),
        w=(6, 14),
        c=(14, 5),
    )


@CASES("trap")
def contrastive_batch() -> Built:
    """Similarities of all examples of the batch with each other, whose matrix is the output."""

    def apply(v, x, y):
        x, y = (jax.nn.relu(each @ v["a"]) @ v["b"] for each in (x, y))
        x, y = (each / (jnp.linalg.norm(each, axis=-1, keepdims=True) + 1e-3) for each in (x, y))
        return jax.nn.log_softmax(jnp.exp(v["t"]) * x @ y.T, axis=-1)

    return _plain(apply, (rows(6), rows(6)[::-1]), a=(6, 16), b=(16, 12), t=(1,))

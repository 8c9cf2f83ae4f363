"""Random convolutional networks: a list of steps drawn by hypothesis, run by one Linen module."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import strategies as st

ACTIVATIONS = {
    "relu": nn.relu,
    "gelu": nn.gelu,
    "silu": nn.silu,
    "tanh": jnp.tanh,
    "elu": nn.elu,
    "leaky_relu": nn.leaky_relu,
    "hard_swish": nn.hard_swish,
}

Step = tuple[str, Any]


def _simple_steps() -> st.SearchStrategy[Step]:
    width = st.integers(2, 6)
    return st.one_of(
        st.tuples(
            st.just("conv"), st.tuples(width, st.sampled_from([1, 3]), st.sampled_from([1, 2]))
        ),
        st.tuples(st.just("grouped"), st.tuples(st.sampled_from([2, 4]), st.integers(1, 3))),
        st.tuples(st.just("depthwise"), st.integers(1, 2)),
        st.tuples(st.just("activation"), st.sampled_from(sorted(ACTIVATIONS))),
        st.tuples(
            st.just("norm"),
            st.sampled_from(
                ["batch", "group", "layer", "instance", "rms", "unit", "softmax", "whole"]
            ),
        ),
        st.tuples(st.just("pool"), st.sampled_from(["max", "avg", "same"])),
        st.tuples(st.just("excite"), st.integers(1, 3)),
        st.tuples(st.just("gate"), st.none()),
        st.tuples(st.just("swap"), st.none()),
        st.tuples(st.just("shuffle"), st.none()),
        st.tuples(st.just("dropout"), st.none()),
        st.tuples(st.just("widen"), st.integers(1, 2)),
        st.tuples(st.just("scale"), st.none()),
        st.tuples(st.just("attention"), st.integers(1, 2)),
        st.tuples(st.just("mix"), st.integers(1, 2)),
        st.tuples(st.just("heads"), st.sampled_from(["indexed", "repeated", "moved"])),
        st.tuples(st.just("loop"), st.sampled_from(["scan", "recurrent", "map"])),
        st.tuples(st.just("permute"), st.sampled_from(["gather", "reverse", "repeat", "depth"])),
        st.tuples(st.just("branch"), st.booleans()),
        st.tuples(st.just("fold"), st.none()),
    )


def architectures() -> st.SearchStrategy[tuple[Step, ...]]:
    """Draw the body of a network; branches hold bodies of their own."""
    steps = st.recursive(
        _simple_steps(),
        lambda inner: st.tuples(
            st.sampled_from(["residual", "concat", "product", "remat"]),
            st.lists(inner, min_size=1, max_size=3).map(tuple),
        ),
        max_leaves=4,
    )
    return st.lists(steps, min_size=2, max_size=7).map(tuple)


class RandomNetwork(nn.Module):
    """Stem, the steps, and a linear head after a mean or a flatten."""

    steps: tuple[Step, ...]
    head: str = "mean"
    width: int = 4

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = nn.Conv(self.width, (3, 3))(x)
        for step in self.steps:
            x = _run(step, x, train)
        if self.head == "mean":
            x = jnp.mean(x, axis=(1, 2))
        elif self.head == "max":
            x = jnp.max(x, axis=(1, 2))
        else:
            x = x.reshape(x.shape[0], -1)
        if self.head == "deep":
            x = nn.relu(nn.Dense(5)(x))
        return nn.Dense(3)(x)


def _run(step: Step, x: jax.Array, train: bool) -> jax.Array:
    kind, option = step
    channels = x.shape[-1]
    match kind:
        case "conv":
            width, size, stride = option
            return nn.Conv(width, (size, size), strides=stride)(x)
        case "grouped":
            groups, each = option
            x = nn.Conv(groups * 2, (1, 1))(x) if channels % groups else x
            return nn.Conv(groups * each, (3, 3), feature_group_count=groups)(x)
        case "depthwise":
            return nn.Conv(channels * option, (3, 3), feature_group_count=channels)(x)
        case "activation":
            return ACTIVATIONS[option](x)
        case "norm" if option == "batch":
            return nn.BatchNorm(use_running_average=not train)(x)
        case "norm" if option == "group":
            return nn.GroupNorm(num_groups=2 if channels % 2 == 0 else 1)(x)
        case "norm" if option == "instance":
            return nn.GroupNorm(num_groups=None, group_size=1)(x)
        case "norm" if option == "rms":
            return nn.RMSNorm()(x)
        case "norm" if option == "unit":
            return x / (jnp.linalg.norm(x, axis=-1, keepdims=True) + 1e-6) * channels**0.5
        case "norm" if option == "softmax":
            return nn.softmax(x, axis=-1) * channels
        case "norm" if option == "whole":
            return nn.GroupNorm(num_groups=1)(x)
        case "norm":
            return nn.LayerNorm()(x)
        case "heads":
            return _attend(option, x)
        case "loop":
            return _loop(option, x)
        case "permute" if option == "gather":
            return x[..., np.random.default_rng(channels).permutation(channels)]
        case "permute" if option == "reverse":
            return x[..., ::-1]
        case "permute" if option == "repeat":
            return jnp.repeat(x, 2, axis=-1)
        case "permute" if channels % 4 == 0:
            parts = x.reshape(*x.shape[:3], 2, 2, channels // 4).transpose(0, 1, 3, 2, 4, 5)
            return parts.reshape(len(x), 2 * x.shape[1], 2 * x.shape[2], channels // 4)
        case "branch":
            first, second = (nn.Dense(channels)(x) for _ in range(2))
            chosen = jax.lax.cond(
                jnp.asarray(option),
                lambda a, b: jnp.tanh(a),
                lambda a, b: a + b.max(-1, keepdims=True),
                first,
                second,
            )
            return x + chosen
        case "pool":
            if option == "same":
                return nn.max_pool(x, (3, 3), padding="SAME")
            if min(x.shape[1:3]) < 2:
                return x
            return (nn.max_pool if option == "max" else nn.avg_pool)(x, (2, 2), (2, 2))
        case "excite":
            squeezed = nn.relu(nn.Dense(option)(jnp.mean(x, axis=(1, 2), keepdims=True)))
            return x * nn.sigmoid(nn.Dense(channels)(squeezed))
        case "gate" if channels % 2 == 0:
            return nn.glu(x, axis=-1)
        case "swap" if channels % 2 == 0:
            first, second = jnp.split(x, 2, axis=-1)
            return jnp.concatenate([second, first], axis=-1)
        case "shuffle" if channels % 2 == 0:
            parts = x.reshape(*x.shape[:3], 2, channels // 2)
            return jnp.swapaxes(parts, 3, 4).reshape(x.shape)
        case "dropout":
            return nn.Dropout(0.3, deterministic=not train)(x)
        case "widen":
            return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (option, option)))
        case "scale":
            return x * 0.5 + jnp.float32(0.1)
        case "attention":
            positions = x.reshape(x.shape[0], x.shape[1] * x.shape[2], channels)
            attention = nn.MultiHeadDotProductAttention(option, qkv_features=4, out_features=4)
            return attention(positions).reshape(*x.shape[:3], 4)
        case "mix":
            flat = nn.tanh(nn.Dense(x.shape[1] * x.shape[2] * option)(x.reshape(x.shape[0], -1)))
            return flat.reshape(*x.shape[:3], option)
        case "fold" if x.shape[1] % 2 == x.shape[2] % 2 == 0:
            height, width = x.shape[1] // 2, x.shape[2] // 2
            parts = x.reshape(x.shape[0], height, 2, width, 2, channels)
            return parts.transpose(0, 1, 3, 2, 4, 5).reshape(-1, height, width, 4 * channels)
        case "residual":
            branch = _run_all(option, x, train)
            if branch.shape[1] > x.shape[1]:
                return branch
            if branch.shape != x.shape:
                x = nn.Conv(branch.shape[-1], (1, 1))(_shrink(x, branch.shape))
            return x + branch
        case "product":
            branch = _run_all(option, x, train)
            if branch.shape[1] > x.shape[1]:
                return branch
            if branch.shape != x.shape:
                x = nn.Conv(branch.shape[-1], (1, 1))(_shrink(x, branch.shape))
            return x * jnp.tanh(branch)
        case "concat":
            branch = _run_all(option, x, train)
            if branch.shape[1] > x.shape[1]:
                return branch
            return jnp.concatenate([_shrink(x, branch.shape), branch], axis=-1)
        case "remat":
            return nn.remat(_Body, static_argnums=(2,))(option)(x, train)
        case _:
            return x


def _attend(kind: str, x: jax.Array) -> jax.Array:
    """Attend with two heads of width two, written in one of the usual ways."""
    positions = x.reshape(len(x), -1, x.shape[-1])
    length = positions.shape[1]
    if kind == "indexed":
        parts = nn.Dense(12)(positions).reshape(len(x), length, 3, 2, 2)
        query, key, value = (parts[:, :, i] for i in range(3))
    else:
        query = nn.Dense(4)(positions).reshape(len(x), length, 2, 2)
        key, value = (nn.Dense(2)(positions).reshape(len(x), length, 1, 2) for _ in range(2))
        if kind == "moved":
            key, value = (nn.Dense(4)(positions).reshape(len(x), length, 2, 2) for _ in range(2))
        else:
            key, value = (jnp.repeat(each, 2, axis=2) for each in (key, value))
    weights = nn.softmax(jnp.einsum("bthd,bshd->bhts", query, key) / 2**0.5, axis=-1)
    read = jnp.einsum("bhts,bshd->bthd", weights, value).reshape(len(x), length, 4)
    return nn.Dense(x.shape[-1])(read).reshape(x.shape) + x


class _Step(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array, _: None = None) -> tuple[jax.Array, None]:
        return x + nn.Dense(x.shape[-1])(jnp.tanh(nn.Dense(3)(nn.LayerNorm()(x)))), None


def _loop(kind: str, x: jax.Array) -> jax.Array:
    if kind == "scan":
        options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}, "length": 2}
        return nn.scan(_Step, **options)()(x, None)[0]
    if kind == "recurrent":
        rows = x.reshape(len(x), -1, x.shape[-1])
        return x + nn.RNN(nn.GRUCell(x.shape[-1]))(rows).reshape(x.shape)
    kernel = nn.Dense(3)(x)
    return jnp.concatenate([x, jax.lax.map(lambda row: jnp.tanh(row) * row.max(), kernel)], -1)


class _Body(nn.Module):
    steps: tuple[Step, ...]

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        return _run_all(self.steps, x, train)


def _run_all(steps: tuple[Step, ...], x: jax.Array, train: bool) -> jax.Array:
    for step in steps:
        x = _run(step, x, train)
    return x


def _shrink(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Take every so many positions until the map has the size of ``shape``."""
    strides = [-(-old // new) for old, new in zip(x.shape[1:3], shape[1:3], strict=True)]
    x = x[:, :: strides[0], :: strides[1]]
    return x[:, : shape[1], : shape[2]]


def has_modes(steps: tuple[Step, ...]) -> bool:
    """Tell whether train mode differs from evaluation."""
    return any(
        kind == "dropout"
        or (kind == "norm" and option == "batch")
        or (kind in ("residual", "concat", "product", "remat") and has_modes(option))
        for kind, option in steps
    )

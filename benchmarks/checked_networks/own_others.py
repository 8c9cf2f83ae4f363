"""Multilayer perceptrons, mixtures, loops, branches and other ways to write a network."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checked_networks.case import (
    Built,
    Cases,
    images,
    linen,
    parameters,
    rows,
    tokens,
    weights,
)
from checked_networks.case import nnx as built_nnx
from checked_networks.own_transformers import (
    LinenAttentionBlock,
    layer_norm,
    llama_block,
    llama_parameters,
    rms_norm,
)

CASES = Cases("own")


class Mlp(nn.Module):
    """Dense layers with a norm each."""

    norm: str = "none"

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        for width in (20, 16):
            x = nn.Dense(width)(x)
            if self.norm == "batch":
                x = nn.BatchNorm(use_running_average=not train)(x)
            elif self.norm == "layer":
                x = nn.LayerNorm()(x)
            elif self.norm == "group":
                x = nn.GroupNorm(num_groups=4)(x)
            x = nn.relu(x)
        return nn.Dense(10)(x)


for _norm in ("none", "batch", "layer", "group"):
    CASES.add(
        f"mlp_norm_{_norm}", "mlp", partial(linen, Mlp(_norm), rows(6), train=_norm == "batch")
    )


class Mixer(nn.Module):
    """MLPs over positions and over channels in turn."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.Conv(16, (4, 4), strides=4)(x)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        for _ in range(2):
            y = nn.LayerNorm()(x).swapaxes(1, 2)
            y = nn.Dense(x.shape[1])(nn.gelu(nn.Dense(20)(y)))
            x = x + y.swapaxes(1, 2)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(40)(nn.LayerNorm()(x))))
        return nn.Dense(10)(nn.LayerNorm()(x).mean(1))


@CASES("mlp")
def mlp_mixer() -> Built:
    """MLP-Mixer of Flax Linen."""
    return linen(Mixer(), images(), train=False)


@CASES("mlp")
def gmlp() -> Built:
    """A spatial gate: half the channels are normalised and mixed over positions."""
    width, hidden, length = 12, 24, 7
    variables = {
        "embed": weights(29, width) * 4,
        "blocks": [
            parameters(
                20 * (1 + i),
                scale=(width,),
                bias=(width,),
                up=(width, hidden),
                gate_scale=(hidden // 2,),
                gate_bias=(hidden // 2,),
                space=(length, length),
                space_bias=(length,),
                down=(hidden // 2, width),
            )
            for i in range(2)
        ],
        **parameters(7, head=(width, 10)),
    }

    def apply(v, x):
        x = v["embed"][x]
        for b in v["blocks"]:
            y = jax.nn.gelu(layer_norm(x, b["scale"], b["bias"]) @ b["up"])
            y, gate = jnp.split(y, 2, axis=-1)
            gate = layer_norm(gate, b["gate_scale"], b["gate_bias"])
            gate = jnp.einsum("bsc,st->btc", gate, b["space"]) + b["space_bias"][:, None]
            x = x + (y * gate) @ b["down"]
        return x.mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


@CASES("mlp")
def lora() -> Built:
    """A low-rank update merged into its kernel, and one beside it."""
    variables = parameters(
        3, a=(6, 16), l=(6, 3), m=(3, 16), b=(16, 20), l2=(16, 3), m2=(3, 20), c=(20, 10)
    )

    def apply(v, x):
        x = jax.nn.relu(x @ (v["a"] + v["l"] @ v["m"]))
        x = jax.nn.relu(x @ v["b"] + 0.5 * (x @ v["l2"]) @ v["m2"])
        return x @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("mlp")
def weight_norm() -> Built:
    """Kernels of a learnt length for each output; spectral division by a Frobenius norm."""
    variables = parameters(3, a=(6, 16), scale=(16,), b=(16, 20), c=(20, 10))

    def apply(v, x):
        a = v["scale"] * v["a"] / jnp.sqrt((v["a"] ** 2).sum(0) + 1e-6)
        x = jax.nn.relu(x @ a)
        return jax.nn.relu(x @ (v["b"] / jnp.sqrt((v["b"] ** 2).sum()))) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("mlp")
def highway_and_maxout() -> Built:
    """Highway gates, maxout over pieces by reshape, softmax over units, standardised features."""
    variables = parameters(
        3, a=(6, 16), t=(16, 16), h=(16, 16), m=(16, 24), w=(12, 12), o=(12, 14), c=(14, 10)
    )

    def apply(v, x):
        x = jnp.tanh(x @ v["a"])
        gate = jax.nn.sigmoid(x @ v["t"])
        x = gate * jax.nn.relu(x @ v["h"]) + (1 - gate) * x
        x = (x @ v["m"]).reshape(x.shape[0], 12, 2).max(-1)
        x = jax.nn.softmax(x @ v["w"], axis=-1) * 5
        x = x @ v["o"]
        x = (x - x.mean(-1, keepdims=True)) / (x.std(-1, keepdims=True) + 1e-3)
        return jax.nn.relu(x) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("mlp")
def fourier_features_and_siren() -> Built:
    """A coordinate network: sines of fixed frequencies, sine layers, a skip of its input."""
    variables = parameters(3, a=(12, 16), b=(22, 20), c=(20, 3))
    frequencies = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)

    def apply(v, x):
        turned = x @ frequencies
        features = jnp.concatenate([jnp.sin(turned), jnp.cos(turned)], axis=-1)
        y = jnp.sin(features @ v["a"])
        return jnp.sin(jnp.concatenate([y, x], axis=-1) @ v["b"]) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("mlp")
def hypernetwork() -> Built:
    """A network whose output is another's kernel."""
    variables = parameters(3, a=(6, 12), make=(12, 6 * 8), b=(8, 16), c=(16, 10))

    def apply(v, x):
        kernel = (jax.nn.relu(x @ v["a"]) @ v["make"]).reshape(x.shape[0], 6, 8)
        y = jax.nn.relu(jnp.einsum("bi,bio->bo", x, kernel))
        return jax.nn.relu(y @ v["b"]) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("mlp")
def deep_and_wide_recommender() -> Built:
    """Embeddings of several tables, crossed by dots, and a deep tower; an autoencoder's loss."""
    variables = {
        "tables": [weights(11, 8, seed=i) * 3 for i in range(3)],
        **parameters(3, bottom=(6, 8), a=(14, 16), b=(16, 12), wide=(6, 1), c=(12, 1)),
    }

    def apply(v, dense, ids):
        rows_ = [table[ids[:, i]] for i, table in enumerate(v["tables"])]
        low = jax.nn.relu(dense @ v["bottom"])
        every = jnp.stack([low, *rows_], axis=1)
        crossed = jnp.einsum("bic,bjc->bij", every, every)[:, *np.triu_indices(4, 1)]
        x = jnp.concatenate([low, crossed], axis=-1)
        x = jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"])
        return jax.nn.sigmoid(x @ v["c"] + dense @ v["wide"])

    return Built(apply=apply, variables=variables, inputs=(rows(6), tokens(3, 11)))


@CASES("mlp")
def variational_autoencoder() -> Built:
    """An encoder to means and log variances, split; a decoder that shares kernels, transposed."""
    variables = parameters(3, a=(14, 16), stats=(16, 12), up=(6, 16), up_bias=(16,), out_bias=(14,))

    def apply(v, x):
        mean, log_variance = jnp.split(jax.nn.relu(x @ v["a"]) @ v["stats"], 2, axis=-1)
        z = mean + jnp.exp(0.5 * log_variance) * 0.1
        return jax.nn.relu(z @ v["up"] + v["up_bias"]) @ v["a"].T + v["out_bias"]

    return Built(apply=apply, variables=variables, inputs=(rows(14),))


def _expert_parameters(seed: int, experts: int, width: int, hidden: int) -> dict[str, jax.Array]:
    return {
        "router": weights(width, experts, seed=seed),
        "up": jnp.stack([weights(width, hidden, seed=seed + i) for i in range(experts)]),
        "gate": jnp.stack([weights(width, hidden, seed=seed + 20 + i) for i in range(experts)]),
        "down": jnp.stack([weights(hidden, width, seed=seed + 40 + i) for i in range(experts)]),
    }


def _mixture(mix) -> Built:
    variables = {
        "embed": weights(29, 12) * 4,
        "norm": parameters(1, norm=(12,))["norm"],
        **_expert_parameters(2, 4, 12, 20),
        "head": weights(12, 29, seed=99),
    }

    def apply(v, x):
        x = v["embed"][x]
        y = rms_norm(x, v["norm"])
        y = mix(v, y.reshape(-1, y.shape[-1])).reshape(y.shape)
        return (x + y) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


def dense_mixture(v: dict, x: jax.Array) -> jax.Array:
    """Run every expert on every token, weighted by a softmax."""
    weight = jax.nn.softmax(x @ v["router"], axis=-1)
    y = jnp.einsum("tc,ech->teh", x, v["up"]) * jax.nn.silu(jnp.einsum("tc,ech->teh", x, v["gate"]))
    return jnp.einsum("teh,ehc,te->tc", y, v["down"], weight)


def top_k_mixture(v: dict, x: jax.Array) -> jax.Array:
    """Run every expert, weighted by the best two of the router's alone (by one-hot)."""
    logits, chosen = jax.lax.top_k(x @ v["router"], 2)
    weight = jax.nn.softmax(logits, axis=-1)
    weight = jnp.einsum("tk,tke->te", weight, jax.nn.one_hot(chosen, v["router"].shape[-1]))
    y = jnp.einsum("tc,ech->teh", x, v["up"])
    y = jax.nn.silu(jnp.einsum("tc,ech->teh", x, v["gate"])) * y
    return jnp.einsum("te,tec->tc", weight, jnp.einsum("teh,ehc->tec", y, v["down"]))


def ragged_mixture(v: dict, x: jax.Array) -> jax.Array:
    """Sort tokens by their expert and multiply by ``ragged_dot``."""
    logits = x @ v["router"]
    chosen = jnp.argmax(logits, axis=-1)
    order = jnp.argsort(chosen)
    sizes = jnp.bincount(chosen, length=v["up"].shape[0])
    y = x[order]
    up = jax.lax.ragged_dot(y, v["up"], sizes)
    y = jax.nn.silu(jax.lax.ragged_dot(y, v["gate"], sizes)) * up
    y = jax.lax.ragged_dot(y, v["down"], sizes)[jnp.argsort(order)]
    return y * jax.nn.softmax(logits, axis=-1).max(-1, keepdims=True)


for _mix in (dense_mixture, top_k_mixture, ragged_mixture):
    CASES.add(f"moe_{_mix.__name__}", "moe", partial(_mixture, _mix))


@CASES("moe")
def soft_moe() -> Built:
    """Slots that are averages of tokens, each for an expert under ``vmap``."""
    variables = {
        "slots": weights(12, 4, 2),
        **{k: v for k, v in _expert_parameters(2, 4, 12, 20).items() if k in ("up", "down")},
        **parameters(5, embed=(6, 12), head=(12, 10)),
    }

    def apply(v, x):
        x = x @ v["embed"]
        logits = jnp.einsum("btc,ces->btes", x, v["slots"])
        dispatch = jax.nn.softmax(logits, axis=1)
        combine = jax.nn.softmax(logits.reshape(*logits.shape[:2], -1), -1).reshape(logits.shape)
        slots = jnp.einsum("btc,btes->ebsc", x, dispatch)
        y = jax.vmap(lambda up, down, s: jax.nn.gelu(s @ up) @ down)(v["up"], v["down"], slots)
        return (x + jnp.einsum("ebsc,btes->btc", y, combine)).mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(7, 6),))


@CASES("loop")
def cond_of_branches() -> Built:
    """One of two branches by ``lax.cond``, the dearer one with a layer more; one by ``switch``."""
    variables = parameters(
        3,
        a=(6, 12),
        one=(12, 12),
        two=(12, 20),
        three=(20, 12),
        four=(12, 8),
        five=(12, 8),
        c=(8, 10),
    )

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])
        x = jax.lax.cond(
            x.sum() > 0,
            lambda x: jax.nn.relu(x @ v["two"]) @ v["three"],
            lambda x: x @ v["one"],
            x,
        )
        number = (x[0, 0] > 0).astype(jnp.int32)
        branches = [lambda x: x @ v["four"], lambda x: jax.nn.relu(x @ v["five"])]
        return jax.nn.relu(jax.lax.switch(number, branches, jax.nn.relu(x))) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("loop")
def while_until_halting() -> Built:
    """A layer applied until its state settles (``while_loop``), between two plain layers."""
    variables = parameters(3, a=(6, 12), w=(12, 12), b=(12, 16), c=(16, 10))

    def apply(v, x):
        x = jax.nn.relu(x @ v["a"])

        def more(carry):
            step, _, moved = carry
            return (step < 5) & (moved > 1e-4)

        def body(carry):
            step, z, _ = carry
            new = jnp.tanh(0.5 * z @ v["w"] + x)
            return step + 1, new, jnp.abs(new - z).max()

        _, x, _ = jax.lax.while_loop(more, body, (0, jnp.zeros_like(x), jnp.float32(1)))
        return jax.nn.relu(x @ v["b"]) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("loop")
def map_over_images() -> Built:
    """A network applied to patches by ``lax.map`` inside of a larger one."""
    variables = parameters(3, a=(6, 16), b=(16, 12), c=(12, 20), d=(20, 10))

    def apply(v, x):
        patches = x.swapaxes(0, 1)
        y = jax.lax.map(lambda each: jax.nn.relu(jax.nn.relu(each @ v["a"]) @ v["b"]), patches)
        return jax.nn.relu(y.mean(0) @ v["c"]) @ v["d"]

    return Built(apply=apply, variables=variables, inputs=(rows(5, 6),))


@CASES("loop")
def map_over_images_batched() -> Built:
    """The same in batches of two, so that the last is smaller."""
    variables = parameters(3, a=(6, 16), b=(16, 12), c=(12, 20), d=(20, 10))

    def apply(v, x):
        patches = x.swapaxes(0, 1)
        step = lambda each: jax.nn.relu(jax.nn.relu(each @ v["a"]) @ v["b"])  # noqa: E731
        y = jax.lax.map(step, patches, batch_size=2)
        return jax.nn.relu(y.mean(0) @ v["c"]) @ v["d"]

    return Built(apply=apply, variables=variables, inputs=(rows(5, 6),))


class ScanMlp(nn.Module):
    """A residual layer as the body of a scan."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        y = nn.relu(nn.Dense(40)(x))
        return x + nn.Dense(16)(y), y.mean()


class ScanNetwork(nn.Module):
    """Stem, six scanned layers, head."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.relu(nn.Dense(16)(x))
        layers = nn.scan(
            ScanMlp, variable_axes={"params": 0}, split_rngs={"params": True}, length=6
        )
        x, means = layers()(x, None)
        return nn.Dense(10)(nn.relu(nn.Dense(24)(x))) + means.sum()


@CASES("loop")
def scan_over_layers() -> Built:
    """Residual layers by ``nn.scan``, whose outputs are read too."""
    return linen(ScanNetwork(), rows(6), train=False)


class NnxScanBlock(nnx.Module):
    """A residual layer of NNX."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.up, self.down = nnx.Linear(16, 40, rngs=rngs), nnx.Linear(40, 16, rngs=rngs)
        self.norm = nnx.LayerNorm(16, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return x + self.down(nnx.relu(self.up(self.norm(x))))


class NnxScanNetwork(nnx.Module):
    """Layers made by ``nnx.vmap`` and run by ``nnx.scan``."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.stem, self.head = nnx.Linear(6, 16, rngs=rngs), nnx.Linear(16, 10, rngs=rngs)
        make = nnx.split_rngs(splits=4)(nnx.vmap(NnxScanBlock, in_axes=0, out_axes=0))
        self.blocks = make(rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        run = nnx.scan(lambda block, x: block(x), in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
        return self.head(run(self.blocks, nnx.relu(self.stem(x))))


@CASES("loop")
def scan_over_layers_nnx() -> Built:
    """Layers of Flax NNX by ``nnx.scan``."""
    return built_nnx(NnxScanNetwork(nnx.Rngs(0)), rows(6), train=False)


@CASES("loop")
def scan_of_scan() -> Built:
    """Layers scanned over, each of which scans over positions."""
    variables = {
        "embed": weights(6, 12),
        "x": jnp.stack([weights(12, 12, seed=i) for i in range(3)]),
        "h": jnp.stack([weights(12, 12, seed=10 + i) for i in range(3)]),
        "head": weights(12, 10, seed=9),
    }

    def apply(v, x):
        def layer(x, w):
            def step(h, each):
                h = jnp.tanh(each @ w["x"] + h @ w["h"])
                return h, h

            _, y = jax.lax.scan(step, jnp.zeros_like(x[0]), x)
            return x + y, None

        x, _ = jax.lax.scan(layer, (x @ v["embed"]).swapaxes(0, 1), {"x": v["x"], "h": v["h"]})
        return x[-1] @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(5, 6),))


@CASES("loop")
def scan_that_rolls_its_carry() -> Built:
    """A carry whose units change places at each step: only whole cycles can go."""
    variables = parameters(3, a=(6, 12), w=(12, 12), c=(12, 10))

    def apply(v, x):
        def body(carry, _):
            one, other = carry
            return (other, jnp.tanh(one @ v["w"])), None

        start = jax.nn.relu(x @ v["a"])
        (one, other), _ = jax.lax.scan(body, (start, 2 * start), None, length=3)
        return (one + jnp.roll(other, 1, axis=-1)) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("loop")
def early_exits() -> Built:
    """Three heads, the outputs of all, and auxiliary sums that nobody reads."""
    variables = parameters(
        3, a=(6, 16), b=(16, 20), c=(20, 12), head1=(16, 10), head2=(20, 10), head3=(12, 10)
    )

    def apply(v, x):
        outputs = []
        for name, head in zip("abc", ("head1", "head2", "head3"), strict=True):
            x = jax.nn.relu(x @ v[name])
            outputs.append(x @ v[head])
        return {"exits": outputs, "mean": sum(outputs) / 3}

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


@CASES("graph network")
def message_passing() -> Built:
    """Messages gathered along edges and summed by ``segment_sum``; pooled by a maximum."""
    variables = parameters(
        3, embed=(6, 12), message=(24, 16), update=(28, 12), norm=(12,), mid=(12, 16), head=(16, 10)
    )
    generator = np.random.default_rng(0)
    senders, receivers = (jnp.asarray(generator.integers(0, 7, 15)) for _ in range(2))

    def apply(v, x):
        x = x @ v["embed"]
        for _ in range(2):
            pair = jnp.concatenate([x[:, senders], x[:, receivers]], axis=-1)
            message = jax.nn.relu(pair @ v["message"]).swapaxes(0, 1)
            total = jax.ops.segment_sum(message, receivers, 7).swapaxes(0, 1)
            x = rms_norm(x + jnp.concatenate([x, total], -1) @ v["update"], v["norm"])
        return jax.nn.relu(x.max(1) @ v["mid"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(7, 6),))


@CASES("graph network")
def graph_attention() -> Built:
    """Attention over neighbours with an additive score, heads concatenated."""
    heads, width = 4, 6
    variables = parameters(
        3,
        w=(6, heads, width),
        left=(heads, width),
        right=(heads, width),
        out=(heads * width, 12),
        head=(12, 10),
    )
    adjacency = np.random.default_rng(0).random((7, 7)) < 0.5
    np.fill_diagonal(adjacency, True)

    def apply(v, x):
        z = jnp.einsum("btc,chd->bthd", x, v["w"])
        left, right = ((z * v[name]).sum(-1) for name in ("left", "right"))
        scores = jax.nn.leaky_relu(left[:, :, None] + right[:, None])
        scores = jnp.where(jnp.asarray(adjacency)[None, :, :, None], scores, -1e9)
        y = jnp.einsum("btsh,bshd->bthd", jax.nn.softmax(scores, axis=2), z)
        y = jax.nn.elu(y.reshape(*y.shape[:2], heads * width))
        return jax.nn.relu(y @ v["out"]).mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(7, 6),))


@CASES("transformer")
def parallel_block_and_registers() -> Built:
    """PaLM's parallel block, register tokens, tied embedding scaled by the root of the width."""
    variables = {
        "embed": weights(29, 16) * 4,
        "registers": weights(1, 2, 16, seed=1) * 4,
        "block": llama_parameters(40),
        **parameters(60, norm=(16,)),
    }

    def apply(v, x):
        x = v["embed"][x] * 16**0.5
        registers = jnp.broadcast_to(v["registers"], (x.shape[0], 2, v["registers"].shape[-1]))
        x = jnp.concatenate([registers, x], axis=1)
        x = llama_block(v["block"], x)
        return rms_norm(x[:, 2:], v["norm"]) @ v["embed"].T

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


class Perceiver(nn.Module):
    """Latents that attend to the input, then to themselves."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        latents = self.param("latents", nn.initializers.normal(), (5, 16))
        z = jnp.broadcast_to(latents, (x.shape[0], *latents.shape))
        attention = nn.MultiHeadDotProductAttention(num_heads=4, qkv_features=32)
        z = z + attention(nn.LayerNorm()(z), nn.LayerNorm()(nn.Dense(20)(x)))
        for _ in range(2):
            z = LinenAttentionBlock()(z, train)
        return nn.Dense(10)(nn.LayerNorm()(z).mean(1))


@CASES("transformer")
def perceiver() -> Built:
    """Perceiver of Flax Linen."""
    return linen(Perceiver(), rows(7, 6))

"""Transformers as people write them, in plain JAX, Linen, NNX and Equinox."""

from functools import partial

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from checked_networks.case import (
    Built,
    Cases,
    equinox,
    images,
    linen,
    parameters,
    rows,
    tokens,
    weights,
)
from checked_networks.case import nnx as built_nnx

CASES = Cases("own")
VOCABULARY, WIDTH, HEADS, HEAD, HIDDEN = 29, 16, 4, 8, 40


class LinenAttentionBlock(nn.Module):
    """Norm first, Flax's own attention, a feed-forward layer of GELU."""

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        y = nn.LayerNorm()(x)
        causal = nn.make_causal_mask(jnp.ones(x.shape[:2]))
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS, qkv_features=HEADS * HEAD)(
            y, mask=causal
        )
        y = nn.gelu(nn.Dense(HIDDEN)(nn.LayerNorm()(x)))
        y = nn.Dropout(0.2, deterministic=not train)(y)
        return x + nn.Dense(WIDTH)(y)


class LinenGpt(nn.Module):
    """Token and position embeddings, blocks, a norm, a head of its own."""

    layers: int = 2

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        position = self.param("position", nn.initializers.normal(), (x.shape[1], WIDTH))
        x = nn.Embed(VOCABULARY, WIDTH)(x) + position
        for _ in range(self.layers):
            x = LinenAttentionBlock()(x, train)
        return nn.Dense(VOCABULARY, use_bias=False)(nn.LayerNorm()(x))


@CASES("transformer")
def gpt_linen() -> Built:
    """GPT of Flax Linen."""
    return linen(LinenGpt(), tokens())


class ScannedBlock(nn.Module):
    """The block as the body of a scan over layers."""

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        return LinenAttentionBlock()(x), None


class ScannedGpt(nn.Module):
    """Layers stacked by ``nn.scan``, their parameters with an axis of layers in front."""

    remat: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        embed = nn.Embed(VOCABULARY, WIDTH)
        block = nn.remat(ScannedBlock) if self.remat else ScannedBlock
        layers = nn.scan(block, variable_axes={"params": 0}, split_rngs={"params": True}, length=5)
        x, _ = layers()(embed(x), None)
        return embed.attend(nn.LayerNorm()(x))


@CASES("transformer")
def gpt_linen_scan() -> Built:
    """GPT whose layers are scanned, with a tied embedding."""
    return linen(ScannedGpt(), tokens(), train=False)


@CASES("transformer")
def gpt_linen_scan_remat() -> Built:
    """The same under ``nn.remat``."""
    return linen(ScannedGpt(remat=True), tokens(), train=False)


def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Divide by the root of the mean square."""
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5) * scale


def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Subtract the mean, divide by the deviation."""
    centred = x - x.mean(-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * scale + bias


def rotate(x: jax.Array) -> jax.Array:
    """Rotate halves of each head by the position, x f32[b, t, h, d]."""
    length, width = x.shape[1], x.shape[-1]
    frequency = 10000.0 ** (-jnp.arange(0, width, 2) / width)
    angle = jnp.arange(length)[:, None] * frequency
    cosine, sine = jnp.cos(angle)[:, None, :], jnp.sin(angle)[:, None, :]
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate(
        [first * cosine - second * sine, second * cosine + first * sine], axis=-1
    )


def rotate_pairs(x: jax.Array) -> jax.Array:
    """Rotate neighbouring pairs of each head by the position, x f32[b, t, h, d]."""
    length, width = x.shape[1], x.shape[-1]
    frequency = 10000.0 ** (-np.arange(0, width, 2) / width)
    angle = np.arange(length)[:, None] * frequency
    cosine, sine = jnp.asarray(np.cos(angle), x.dtype), jnp.asarray(np.sin(angle), x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    cosine, sine = cosine[:, None, :], sine[:, None, :]
    turned = jnp.stack([even * cosine - odd * sine, odd * cosine + even * sine], axis=-1)
    return turned.reshape(x.shape)


def causal_softmax(scores: jax.Array) -> jax.Array:
    """Mask the future, f32[..., t, s], and take the softmax."""
    length = scores.shape[-1]
    mask = jnp.tril(jnp.ones((length, length), bool))
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)


def llama_block(v: dict, x: jax.Array, turn=rotate) -> jax.Array:
    """Attend with grouped queries, then a gated feed-forward layer."""
    y = rms_norm(x, v["norm1"])
    batch, length, _ = y.shape
    q = turn((y @ v["q"]).reshape(batch, length, -1, HEAD))
    k = turn((y @ v["k"]).reshape(batch, length, -1, HEAD))
    w = (y @ v["v"]).reshape(batch, length, -1, HEAD)
    repeats = q.shape[2] // k.shape[2]
    k, w = (jnp.repeat(each, repeats, axis=2) for each in (k, w))
    scores = causal_softmax(jnp.einsum("bthd,bshd->bhts", q, k) / HEAD**0.5)
    y = jnp.einsum("bhts,bshd->bthd", scores, w).reshape(batch, length, -1)
    x = x + y @ v["o"]
    y = rms_norm(x, v["norm2"])
    return x + (jax.nn.silu(y @ v["gate"]) * (y @ v["up"])) @ v["down"]


def llama_parameters(seed: int = 0, kv_heads: int = 2) -> dict[str, jax.Array]:
    """Draw the parameters of a block."""
    return parameters(
        seed,
        norm1=(WIDTH,),
        q=(WIDTH, HEADS * HEAD),
        k=(WIDTH, kv_heads * HEAD),
        v=(WIDTH, kv_heads * HEAD),
        o=(HEADS * HEAD, WIDTH),
        norm2=(WIDTH,),
        gate=(WIDTH, HIDDEN),
        up=(WIDTH, HIDDEN),
        down=(HIDDEN, WIDTH),
    )


def _llama(turn, kv_heads: int, tied: bool = False) -> Built:
    variables = {
        "embed": weights(VOCABULARY, WIDTH) * 4,
        "blocks": [llama_parameters(20 * (1 + i), kv_heads) for i in range(2)],
        "norm": parameters(7, norm=(WIDTH,))["norm"],
    }
    if not tied:
        variables["head"] = weights(WIDTH, VOCABULARY, seed=3)

    def apply(v, x):
        x = v["embed"][x]
        for block in v["blocks"]:
            x = llama_block(block, x, turn)
        x = rms_norm(x, v["norm"])
        return x @ (v["embed"].T if tied else v["head"])

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


@CASES("transformer")
def llama_grouped_queries() -> Built:
    """RMSNorm, rotary halves, grouped queries by repeat, SwiGLU, in plain JAX."""
    return _llama(rotate, 2)


@CASES("transformer")
def llama_multi_query() -> Built:
    """One key-value head for all queries, rotary pairs."""
    return _llama(rotate_pairs, 1)


@CASES("transformer")
def llama_tied() -> Built:
    """As many key-value heads as heads, a tied embedding."""
    return _llama(rotate, HEADS, tied=True)


@CASES("transformer")
def llama_scan() -> Built:
    """LLaMA's blocks stacked and run by ``lax.scan`` under ``jax.checkpoint``."""
    blocks = [llama_parameters(20 * (1 + i)) for i in range(5)]
    variables = {
        "embed": weights(VOCABULARY, WIDTH) * 4,
        "blocks": jax.tree.map(lambda *each: jnp.stack(each), *blocks),
        "head": weights(WIDTH, VOCABULARY, seed=3),
    }

    def apply(v, x):
        def body(x, block):
            return jax.checkpoint(llama_block)(block, x), None

        x, _ = jax.lax.scan(body, v["embed"][x], v["blocks"])
        return x @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


@CASES("transformer")
def grouped_queries_by_einsum() -> Built:
    """Grouped queries as a five-axis einsum, without repeating keys."""
    variables = {**llama_parameters(), "embed": weights(VOCABULARY, WIDTH) * 4}
    variables["head"] = weights(WIDTH, VOCABULARY, seed=3)

    def apply(v, x):
        x = v["embed"][x]
        batch, length, _ = x.shape
        y = rms_norm(x, v["norm1"])
        q = (y @ v["q"]).reshape(batch, length, 2, HEADS // 2, HEAD)
        k = (y @ v["k"]).reshape(batch, length, 2, HEAD)
        w = (y @ v["v"]).reshape(batch, length, 2, HEAD)
        scores = causal_softmax(jnp.einsum("btkgd,bskd->bkgts", q, k) / HEAD**0.5)
        y = jnp.einsum("bkgts,bskd->btkgd", scores, w).reshape(batch, length, HEADS * HEAD)
        x = x + y @ v["o"]
        y = rms_norm(x, v["norm2"])
        return (x + (jax.nn.silu(y @ v["gate"]) * (y @ v["up"])) @ v["down"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(tokens(),))


def attend(q: jax.Array, k: jax.Array, w: jax.Array) -> jax.Array:
    """Attend, all f32[b, h, t, d]; return f32[b, t, h * d]."""
    scores = jax.nn.softmax(q @ k.swapaxes(-1, -2) / q.shape[-1] ** 0.5, axis=-1)
    y = (scores @ w).transpose(0, 2, 1, 3)
    return y.reshape(*y.shape[:2], -1)


def qkv_indexed(y: jax.Array) -> tuple[jax.Array, ...]:
    """Take heads as timm does, by indices."""
    batch, length, _ = y.shape
    parts = y.reshape(batch, length, 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)
    return parts[0], parts[1], parts[2]


def qkv_unpacked(y: jax.Array) -> tuple[jax.Array, ...]:
    """Take heads as timm does, by unpacking."""
    batch, length, _ = y.shape
    q, k, w = y.reshape(batch, length, 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)
    return q, k, w


def qkv_unstacked(y: jax.Array) -> tuple[jax.Array, ...]:
    """Take heads by ``jnp.unstack``."""
    batch, length, _ = y.shape
    parts = y.reshape(batch, length, 3, HEADS, HEAD)
    return tuple(each.swapaxes(1, 2) for each in jnp.unstack(parts, axis=2))


def qkv_split(y: jax.Array) -> tuple[jax.Array, ...]:
    """Split into thirds first, heads then."""
    batch, length, _ = y.shape
    return tuple(
        each.reshape(batch, length, HEADS, HEAD).swapaxes(1, 2) for each in jnp.split(y, 3, -1)
    )


def qkv_sliced(y: jax.Array) -> tuple[jax.Array, ...]:
    """Slice the thirds out, heads first within each, as GPT-2 of some does."""
    batch, length, width = y.shape
    third = width // 3
    parts = (y[..., :third], y[..., third : 2 * third], y[..., 2 * third :])
    return tuple(each.reshape(batch, length, HEADS, -1).transpose(0, 2, 1, 3) for each in parts)


def qkv_heads_first(y: jax.Array) -> tuple[jax.Array, ...]:
    """Take heads first and the three of each head next, as GPT-NeoX does."""
    batch, length, _ = y.shape
    parts = y.reshape(batch, length, HEADS, 3 * HEAD)
    q, k, w = jnp.split(parts, 3, axis=-1)
    return q.swapaxes(1, 2), k.swapaxes(1, 2), w.swapaxes(1, 2)


def _fused(heads) -> Built:
    variables = {
        "patch": weights(4, 4, 3, WIDTH),
        "token": weights(1, 1, WIDTH, seed=1),
        "position": weights(1, 17, WIDTH, seed=2) * 2,
        "blocks": [
            parameters(
                30 + 20 * i,
                scale1=(WIDTH,),
                bias1=(WIDTH,),
                qkv=(WIDTH, 3 * HEADS * HEAD),
                qkv_bias=(3 * HEADS * HEAD,),
                proj=(HEADS * HEAD, WIDTH),
                scale2=(WIDTH,),
                bias2=(WIDTH,),
                up=(WIDTH, HIDDEN),
                up_bias=(HIDDEN,),
                down=(HIDDEN, WIDTH),
                layer_scale=(WIDTH,),
            )
            for i in range(2)
        ],
        **parameters(90, scale=(WIDTH,), bias=(WIDTH,), head=(WIDTH, 10)),
    }

    def apply(v, x):
        x = jax.lax.conv_general_dilated(
            x, v["patch"], (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        token = jnp.broadcast_to(v["token"], (x.shape[0], *v["token"].shape[1:]))
        x = jnp.concatenate([token, x], axis=1) + v["position"]
        for b in v["blocks"]:
            y = layer_norm(x, b["scale1"], b["bias1"])
            x = x + attend(*heads(y @ b["qkv"] + b["qkv_bias"])) @ b["proj"]
            y = jax.nn.gelu(layer_norm(x, b["scale2"], b["bias2"]) @ b["up"] + b["up_bias"])
            x = x + b["layer_scale"] * (y @ b["down"])
        return layer_norm(x[:, 0], v["scale"], v["bias"]) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(images(),))


for _heads in (qkv_indexed, qkv_unpacked, qkv_unstacked, qkv_split, qkv_sliced, qkv_heads_first):
    CASES.add(f"vit_{_heads.__name__}", "transformer", partial(_fused, _heads))


class NnxBlock(nnx.Module):
    """Norm first, NNX's own attention."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.norm1, self.norm2 = (nnx.LayerNorm(WIDTH, rngs=rngs) for _ in range(2))
        self.attention = nnx.MultiHeadAttention(HEADS, WIDTH, HEADS * HEAD, decode=False, rngs=rngs)
        self.up, self.down = (
            nnx.Linear(WIDTH, HIDDEN, rngs=rngs),
            nnx.Linear(HIDDEN, WIDTH, rngs=rngs),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        x = x + self.attention(self.norm1(x))
        return x + self.down(nnx.gelu(self.up(self.norm2(x))))


class NnxTransformer(nnx.Module):
    """Embedding, two blocks, RMSNorm, mean over positions, head."""

    def __init__(self, rngs: nnx.Rngs) -> None:
        self.embed = nnx.Embed(VOCABULARY, WIDTH, rngs=rngs)
        self.blocks = nnx.List([NnxBlock(rngs) for _ in range(2)])
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.head = nnx.Linear(WIDTH, 10, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(axis=1))


@CASES("transformer")
def encoder_nnx() -> Built:
    """Encoder of Flax NNX."""
    return built_nnx(NnxTransformer(nnx.Rngs(0)), tokens(), train=False)


class EquinoxBlock(eqx.Module):
    """Equinox's own attention and norms, of one example."""

    norm1: eqx.nn.LayerNorm
    norm2: eqx.nn.RMSNorm
    attention: eqx.nn.MultiheadAttention
    mlp: eqx.nn.MLP

    def __init__(self, key: jax.Array) -> None:
        first, second = jax.random.split(key)
        self.norm1, self.norm2 = eqx.nn.LayerNorm(WIDTH), eqx.nn.RMSNorm(WIDTH)
        self.attention = eqx.nn.MultiheadAttention(
            HEADS, WIDTH, qk_size=HEAD, vo_size=HEAD, key=first
        )
        self.mlp = eqx.nn.MLP(WIDTH, WIDTH, HIDDEN, 1, activation=jax.nn.gelu, key=second)

    def __call__(self, x: jax.Array) -> jax.Array:
        y = jax.vmap(self.norm1)(x)
        x = x + self.attention(y, y, y)
        return x + jax.vmap(self.mlp)(jax.vmap(self.norm2)(x))


class EquinoxTransformer(eqx.Module):
    """Projection of patches, two blocks, head."""

    embed: eqx.nn.Linear
    blocks: list[EquinoxBlock]
    head: eqx.nn.Linear

    def __init__(self, key: jax.Array) -> None:
        keys = jax.random.split(key, 4)
        self.embed, self.head = (
            eqx.nn.Linear(12, WIDTH, key=keys[0]),
            eqx.nn.Linear(WIDTH, 10, key=keys[1]),
        )
        self.blocks = [EquinoxBlock(each) for each in keys[2:]]

    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.vmap(self.embed)(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=0))


@CASES("transformer")
def encoder_equinox() -> Built:
    """Encoder of Equinox, vmapped over the batch."""
    return equinox(EquinoxTransformer(jax.random.key(0)), rows(7, 12), train=False)


def _windows(x: jax.Array, size: int) -> jax.Array:
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(-1, size * size, channels)


def _unwindowed(x: jax.Array, size: int, batch: int, height: int, width: int) -> jax.Array:
    x = x.reshape(batch, height // size, width // size, size, size, -1)
    return x.transpose(0, 1, 3, 2, 4, 5).reshape(batch, height, width, -1)


@CASES("transformer")
def swin_windows() -> Built:
    """Attention in shifted windows with a relative position bias, then merged patches."""
    size = 2
    index = np.arange(size)
    relative = (index[:, None] - index[None, :] + size - 1)[:, None, :, None] * (2 * size - 1) + (
        index[:, None] - index[None, :] + size - 1
    )[None, :, None, :]
    relative = relative.transpose(0, 1, 2, 3).reshape(size * size, size * size)
    variables = {
        "patch": weights(2, 2, 3, WIDTH),
        "blocks": [
            parameters(
                30 + 20 * i,
                scale1=(WIDTH,),
                bias1=(WIDTH,),
                qkv=(WIDTH, 3 * HEADS * HEAD),
                table=((2 * size - 1) ** 2, HEADS),
                proj=(HEADS * HEAD, WIDTH),
                scale2=(WIDTH,),
                bias2=(WIDTH,),
                up=(WIDTH, HIDDEN),
                down=(HIDDEN, WIDTH),
            )
            for i in range(2)
        ],
        **parameters(
            90,
            merge_scale=(4 * WIDTH,),
            merge_bias=(4 * WIDTH,),
            merge=(4 * WIDTH, 2 * WIDTH),
            head=(2 * WIDTH, 10),
        ),
    }

    def apply(v, x):
        x = jax.lax.conv_general_dilated(
            x, v["patch"], (2, 2), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        for shift, b in zip((0, 1), v["blocks"], strict=True):
            batch, height, width, _ = x.shape
            y = jnp.roll(layer_norm(x, b["scale1"], b["bias1"]), (-shift, -shift), (1, 2))
            y = _windows(y, size) @ b["qkv"]
            q, k, w = y.reshape(*y.shape[:2], 3, HEADS, HEAD).transpose(2, 0, 3, 1, 4)
            scores = q @ k.swapaxes(-1, -2) / HEAD**0.5
            bias = b["table"][relative.reshape(-1)].reshape(size * size, size * size, HEADS)
            scores = jax.nn.softmax(scores + bias.transpose(2, 0, 1), axis=-1)
            y = (scores @ w).transpose(0, 2, 1, 3).reshape(-1, size * size, HEADS * HEAD)
            y = _unwindowed(y @ b["proj"], size, batch, height, width)
            x = x + jnp.roll(y, (shift, shift), (1, 2))
            y = jax.nn.gelu(layer_norm(x, b["scale2"], b["bias2"]) @ b["up"])
            x = x + y @ b["down"]
        corners = [x[:, i::2, j::2] for j in range(2) for i in range(2)]
        x = layer_norm(jnp.concatenate(corners, -1), v["merge_scale"], v["merge_bias"])
        return (x @ v["merge"]).mean((1, 2)) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(images(8),))


@CASES("transformer")
def cross_attention() -> Built:
    """An encoder and a decoder that attends to it (T5's bias of relative positions)."""

    def attention(v, x, y, bias=None):
        q, k, w = (
            jnp.einsum("btc,chd->bhtd", each, v[name])
            for each, name in ((x, "q"), (y, "k"), (y, "v"))
        )
        scores = q @ k.swapaxes(-1, -2)
        if bias is not None:
            scores = scores + bias
        return jnp.einsum("bhtd,hdc->btc", jax.nn.softmax(scores, -1) @ w, v["o"])

    def attention_parameters(seed):
        return parameters(
            seed,
            q=(WIDTH, HEADS, HEAD),
            k=(WIDTH, HEADS, HEAD),
            v=(WIDTH, HEADS, HEAD),
            o=(HEADS, HEAD, WIDTH),
            norm=(WIDTH,),
        )

    variables = {
        "embed": weights(VOCABULARY, WIDTH) * 4,
        "bias": weights(7, 7, HEADS),
        "encoder": attention_parameters(1),
        "decoder": attention_parameters(11),
        "cross": attention_parameters(21),
        **parameters(31, up=(WIDTH, HIDDEN), down=(HIDDEN, WIDTH), norm=(WIDTH,)),
    }

    def apply(v, source, target):
        bias = v["bias"].transpose(2, 0, 1)[None]
        x = v["embed"][source]
        x = x + attention(v["encoder"], rms_norm(x, v["encoder"]["norm"]), x, bias)
        x = rms_norm(x, v["norm"])
        y = v["embed"][target]
        z = rms_norm(y, v["decoder"]["norm"])
        y = y + attention(v["decoder"], z, z)
        y = y + attention(v["cross"], rms_norm(y, v["cross"]["norm"]), x)
        y = y + jax.nn.relu(y @ v["up"]) @ v["down"]
        return rms_norm(y, v["norm"]) @ v["embed"].T

    return Built(apply=apply, variables=variables, inputs=(tokens(), tokens(5)))


@CASES("transformer")
def linear_attention() -> Built:
    """Attention without softmax: keys and values summed over positions by ``cumsum``."""
    variables = parameters(
        5,
        embed=(12, WIDTH),
        q=(WIDTH, HEADS, HEAD),
        k=(WIDTH, HEADS, HEAD),
        v=(WIDTH, HEADS, HEAD),
        o=(HEADS, HEAD, WIDTH),
        norm=(WIDTH,),
        head=(WIDTH, 10),
    )

    def apply(v, x):
        x = x @ v["embed"]
        y = rms_norm(x, v["norm"])
        q, k, w = (jnp.einsum("btc,chd->bthd", y, v[name]) for name in "qkv")
        q, k = jax.nn.elu(q) + 1, jax.nn.elu(k) + 1
        state = jnp.cumsum(jnp.einsum("bthd,bthe->bthde", k, w), axis=1)
        total = jnp.cumsum(k, axis=1)
        y = jnp.einsum("bthd,bthde->bthe", q, state)
        y = y / jnp.einsum("bthd,bthd->bth", q, total)[..., None]
        return (x + jnp.einsum("bthd,hdc->btc", y, v["o"])).mean(1) @ v["head"]

    return Built(apply=apply, variables=variables, inputs=(rows(7, 12),))


@CASES("transformer")
def query_key_norm() -> Built:
    """RMSNorm of each head's queries and keys, a cap of logits, ``dot_product_attention``."""
    variables = parameters(
        5,
        embed=(12, WIDTH),
        q=(WIDTH, HEADS * HEAD),
        k=(WIDTH, HEADS * HEAD),
        v=(WIDTH, HEADS * HEAD),
        q_norm=(HEAD,),
        k_norm=(HEAD,),
        o=(HEADS * HEAD, WIDTH),
        norm=(WIDTH,),
        head=(WIDTH, 10),
    )

    def apply(v, x):
        x = x @ v["embed"]
        y = rms_norm(x, v["norm"])
        q, k, w = ((y @ v[name]).reshape(*y.shape[:2], HEADS, HEAD) for name in "qkv")
        q, k = rms_norm(q, v["q_norm"]), rms_norm(k, v["k_norm"])
        y = jax.nn.dot_product_attention(q, k, w, is_causal=True)
        y = x + y.reshape(*y.shape[:2], HEADS * HEAD) @ v["o"]
        return 30 * jnp.tanh(y @ v["head"] / 30)

    return Built(apply=apply, variables=variables, inputs=(rows(7, 12),))

"""A decoder of tokens in the way of LLaMA, small unless told."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlprune_jax.models.checks import check_at_least_one, check_tokens
from rlprune_jax.models.initializers import variance_scaling
from rlprune_jax.models.layers import scaled

_INIT = variance_scaling(1.0, "fan_avg", "uniform")


class Llama(nn.Module):
    """Predict the next token by grouped queries and rotary positions.

    Use it to prune a language model as they are written now: RMS norms, rotary positions, several
    queries for each head of keys and values, a gated MLP, an embedding that also gives the logits,
    and one program for all layers. The width of the embedding, key-value heads, queries of each,
    the width of queries and keys (by pairs, which are turned together), that of values, and the
    hidden units of the MLPs are axes of their own in the kernels, so each is a unit that pruning
    can remove. Layers in one program have one width.

    Attributes:
        num_classes: tokens of the vocabulary.
        depth: number of layers.
        heads: of the queries; a multiple of ``kv_heads``.
        kv_heads: of the keys and values.
        head_width: channels of a head, even; the embedding has ``heads * head_width``.
        mlp_ratio: hidden units of an MLP over the embedding's size, rounded.
        width: multiplier of ``head_width``, rounded, at least two channels.
        base: wavelength of the slowest rotation, over 2 pi, in tokens.
        scan: whether the layers are one program that runs ``depth`` times, with their variables
            stacked; otherwise each has its own.

    Reference: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023, with
    the grouped queries of Ainslie et al., "GQA", EMNLP 2023; Llama 3.2 1B has ``depth=16``,
    ``heads=32``, ``kv_heads=8``, ``head_width=64``, ``mlp_ratio=4`` and ``base=500_000``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = Llama(num_classes=50, depth=3, width=1 / 8)
        >>> tokens = jnp.zeros((2, 16), int)
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), tokens)
        >>> jax.eval_shape(network.apply, variables, tokens).shape
        (2, 16, 50)
        >>> variables["params"]["layers"]["key"]["kernel"].shape
        (3, 16, 2, 4)
    """

    num_classes: int
    depth: int = 4
    heads: int = 4
    kv_heads: int = 2
    head_width: int = 32
    mlp_ratio: float = 8 / 3
    width: float = 1.0
    base: float = 10_000.0
    scan: bool = True

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Map tokens i32[B, T] to logits f32[B, T, num_classes] of those that follow.

        Args:
            tokens: of each sequence.
            train: changes nothing here.

        Raises:
            ValueError: an option below 1, a bad ``width``, heads that the key-value heads do not
                divide, an odd ``head_width``, or tokens of the wrong rank.
            TypeError: the tokens are no integers.
        """
        del train
        check_at_least_one(self, "depth", "heads", "kv_heads", "head_width")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads={self.heads} must be a multiple of kv_heads={self.kv_heads}, so that each "
                "head of keys and values serves as many queries"
            )
        if self.head_width % 2:
            raise ValueError(
                f"head_width={self.head_width} must be even: channels are turned in pairs"
            )
        if not self.mlp_ratio > 0:
            raise ValueError(f"mlp_ratio={self.mlp_ratio} must be above 0")
        check_tokens(tokens)
        channels = 2 * scaled(self.head_width // 2, self.width)
        size = self.heads * channels
        shape = (self.kv_heads, self.heads // self.kv_heads, channels)
        hidden = max(1, round(size * self.mlp_ratio))
        small = nn.initializers.normal(0.02)
        embed = nn.Embed(self.num_classes, size, embedding_init=small, name="embed")
        x = embed(tokens)
        if self.scan:
            layers = nn.scan(
                _Layer,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.depth,
            )
            x, _ = layers(shape, hidden, self.base, name="layers")(x, None)
        else:
            for number in range(1, self.depth + 1):
                x, _ = _Layer(shape, hidden, self.base, name=f"layer{number}")(x, None)
        return embed.attend(nn.RMSNorm(epsilon=1e-5, name="norm")(x))


class _Layer(nn.Module):
    """Causal attention and a gated MLP, each on what a norm gives and beside a shortcut.

    Attributes:
        shape: key-value heads, queries of each, and channels of a head.
        hidden: units of the MLP.
        base: as in ``Llama``.
    """

    shape: tuple[int, int, int]
    hidden: int
    base: float

    @nn.compact
    def __call__(self, x: jax.Array, _: None) -> tuple[jax.Array, None]:
        y = nn.RMSNorm(epsilon=1e-5, name="norm1")(x)
        x = x + self._attention(y, x.shape[-1])
        y = nn.RMSNorm(epsilon=1e-5, name="norm2")(x)
        gated = nn.silu(self._dense(self.hidden, "gate")(y)) * self._dense(self.hidden, "up")(y)
        return x + self._dense(x.shape[-1], "down")(gated), None

    def _attention(self, y: jax.Array, size: int) -> jax.Array:
        groups, _, channels = self.shape
        query = rotate(self._dense(self.shape, "query")(y), self.base)
        key = rotate(self._dense((groups, channels), "key")(y), self.base)
        value = self._dense((groups, channels), "value")(y)
        scores = jnp.einsum("btghc,bsgc->bghts", query, key) / jnp.sqrt(channels)
        positions = jnp.arange(y.shape[1])
        seen = positions[:, None] >= positions
        weights = nn.softmax(jnp.where(seen, scores, jnp.finfo(scores.dtype).min))
        mixed = jnp.einsum("bghts,bsgc->btghc", weights, value)
        return self._dense(size, "out", axis=(-3, -2, -1))(mixed)

    def _dense(
        self, features: int | tuple[int, ...], name: str, axis: int | tuple[int, ...] = -1
    ) -> nn.DenseGeneral:
        return nn.DenseGeneral(features, axis, use_bias=False, kernel_init=_INIT, name=name)


def rotate(x: jax.Array, base: float) -> jax.Array:
    """Turn pairs of channels by angles of the position.

    Channel ``i`` of the first half and channel ``i`` of the second are a pair, turned by
    ``position * base ** (-2 i / C)``. The dot of a turned query and a turned key depends on the
    distance of their positions alone.

    Args:
        x: f32[B, T, ..., C], C even.
        base: wavelength of the slowest rotation, over 2 pi, in tokens.

    Returns:
        The same shape.

    Reference: Su et al., "RoFormer", 2021.

    Example:
        >>> import jax.numpy as jnp
        >>> turned = rotate(jnp.array([[[1.0, 0.0], [1.0, 0.0]]]), 10_000.0)
        >>> [round(float(channel), 2) for channel in turned[0, 1]]
        [0.54, 0.84]
    """
    pairs = x.shape[-1] // 2
    rates = base ** (-jnp.arange(pairs) / pairs)
    angles = jnp.arange(x.shape[1])[:, None] * rates
    angles = angles.reshape(x.shape[1], *(1,) * (x.ndim - 3), pairs)
    cosine, sine = jnp.cos(angles).astype(x.dtype), jnp.sin(angles).astype(x.dtype)
    first, second = jnp.split(x, 2, axis=-1)
    turned = [first * cosine - second * sine, second * cosine + first * sine]
    return jnp.concatenate(turned, axis=-1)

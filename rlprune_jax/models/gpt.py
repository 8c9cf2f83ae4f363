"""A decoder of tokens in the way of GPT-2, small unless told."""

import flax.linen as nn
import jax

from rlprune_jax.models.checks import check_at_least_one, check_tokens
from rlprune_jax.models.initializers import variance_scaling
from rlprune_jax.models.layers import scaled

_INIT = variance_scaling(1.0, "fan_avg", "uniform")


class GPT(nn.Module):
    """Predict the next token by causal attention.

    Use it to prune a language model. Embeddings of tokens and of learned positions, blocks of
    attention and MLP behind layer norms, a last norm, and the embedding of tokens once more to give
    the logits. The width of the embedding, heads, the width of queries and keys, that of values,
    and the hidden units of the MLPs are axes of their own in the kernels, so each is a unit that
    pruning can remove.

    Attributes:
        num_classes: tokens of the vocabulary.
        context: most tokens of a sequence.
        depth: number of blocks.
        heads: of each attention.
        head_width: channels of a head; the embedding has ``heads * head_width``.
        mlp_ratio: hidden units of an MLP over the embedding's size.
        width: multiplier of ``head_width``, rounded, at least one channel.

    Reference: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019; its
    smallest network has ``context=1024``, ``depth=12``, ``heads=12`` and ``head_width=64``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> network = GPT(num_classes=50, depth=2, width=1 / 8)
        >>> tokens = jnp.zeros((2, 16), int)
        >>> variables = jax.eval_shape(network.init, jax.random.key(0), tokens)
        >>> jax.eval_shape(network.apply, variables, tokens).shape
        (2, 16, 50)
    """

    num_classes: int
    context: int = 64
    depth: int = 4
    heads: int = 4
    head_width: int = 32
    mlp_ratio: int = 4
    width: float = 1.0

    @nn.compact
    def __call__(self, tokens: jax.Array, train: bool = False) -> jax.Array:
        """Map tokens i32[B, T] to logits f32[B, T, num_classes] of those that follow.

        Args:
            tokens: at most ``context`` of each sequence.
            train: changes nothing here.

        Raises:
            ValueError: an option below 1, a bad ``width``, tokens of the wrong rank or too many.
            TypeError: the tokens are no integers.
        """
        del train
        check_at_least_one(self, "context", "depth", "heads", "head_width", "mlp_ratio")
        check_tokens(tokens, self.context)
        size = self.heads * scaled(self.head_width, self.width)
        small = nn.initializers.normal(0.02)
        embed = nn.Embed(self.num_classes, size, embedding_init=small, name="embed")
        positions = self.param("positions", small, (self.context, size))
        x = embed(tokens) + positions[: tokens.shape[1]]
        mask = nn.make_causal_mask(tokens)
        for number in range(1, self.depth + 1):
            x = _Block(self.heads, self.mlp_ratio * size, name=f"block{number}")(x, mask)
        return embed.attend(nn.LayerNorm(epsilon=1e-5, name="norm")(x))


class _Block(nn.Module):
    """Causal attention and an MLP, each on what a layer norm gives and beside a shortcut."""

    heads: int
    hidden: int

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        y = nn.LayerNorm(epsilon=1e-5, name="norm1")(x)
        attention = nn.MultiHeadDotProductAttention(self.heads, kernel_init=_INIT, name="attention")
        x = x + attention(y, mask=mask)
        y = nn.LayerNorm(epsilon=1e-5, name="norm2")(x)
        y = nn.gelu(nn.Dense(self.hidden, kernel_init=_INIT, name="mlp1")(y))
        return x + nn.Dense(x.shape[-1], kernel_init=_INIT, name="mlp2")(y)

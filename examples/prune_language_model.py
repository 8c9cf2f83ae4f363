"""Prune a language model, judged by loss per token: python examples/prune_language_model.py."""

import flax.linen as nn
import jax
import numpy as np
import optax

import rlprune_jax as rp


class Transformer(nn.Module):
    @nn.compact
    def __call__(self, tokens):
        x = nn.Embed(16, 32)(tokens) + nn.Embed(24, 32)(np.arange(tokens.shape[1]))
        x = x + nn.MultiHeadAttention(4)(nn.LayerNorm()(x), mask=nn.make_causal_mask(tokens))
        x = x + nn.Dense(32)(nn.gelu(nn.Dense(128)(nn.LayerNorm()(x))))
        return nn.Dense(16)(nn.LayerNorm()(x))


def sentences(count, seed):  # a token follows from the last two, but for some noise
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 16, (count, 25), dtype=np.int32)
    for i in range(2, 25):
        known = rng.random(count) < 0.9
        tokens[known, i] = (tokens[known, i - 1] + 3 * tokens[known, i - 2]) % 16
    return tokens


train, held_out, test = sentences(1024, 0), sentences(128, 1), sentences(128, 2)
net, optimizer = Transformer(), optax.adam(3e-3)
start = net.init(jax.random.key(0), train[:1, :-1])


def loss(variables, tokens):
    logits = net.apply(variables, tokens[:, :-1])
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@jax.jit
def step(variables, opt_state, tokens):
    updates, opt_state = optimizer.update(jax.grad(loss)(variables, tokens), opt_state)
    return optax.apply_updates(variables, updates), opt_state


def load(folder):  # in any other process
    return rp.Network.from_linen(net, start, train[:1, :-1]).load_slim(folder)


if __name__ == "__main__":
    variables, opt_state = start, optimizer.init(start)
    for i in range(300):
        variables, opt_state = step(variables, opt_state, train[i % 16 :: 16])

    network = rp.Network.from_linen(net, variables, train[:1, :-1])
    task = rp.next_token(train, held_out, test)
    result = rp.prune(network, task, "params=0.5", evaluations=32, baselines=(), finetune_steps=200)
    print(result)
    result.save("slim_language_model")

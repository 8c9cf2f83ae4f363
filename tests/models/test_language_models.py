"""GPT and LLaMA against an own forward pass in NumPy, and what a decoder has to keep to."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from numpy_evaluation import evaluate

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.models.llama import rotate

SMALL = {
    "gpt": {"depth": 2, "width": 1 / 8, "context": 9},
    "llama": {"depth": 2, "heads": 6, "kv_heads": 2, "width": 1 / 8},
}
TOKENS = np.random.default_rng(0).integers(0, 11, (2, 9), np.int32)


@functools.cache
def network_of(name, **options):
    """The network, its jitted forward pass, and initial variables."""
    functions = model_functions(create_model(name, 11, **SMALL[name] | options))
    variables = functions.init(jax.random.key(0), jnp.asarray(TOKENS))
    return jax.jit(functions.apply), variables


def noisy(variables, seed=0):
    """Every variable off its initial value, in double precision."""
    generator = np.random.default_rng(seed)
    return jax.tree.map(
        lambda leaf: np.asarray(leaf, np.float64) + 0.2 * generator.standard_normal(leaf.shape),
        variables,
    )


def softmax_causal(scores):
    seen = np.tril(np.ones(scores.shape[-2:], bool))
    return scipy.special.softmax(np.where(seen, scores, -np.inf), -1)


def layer_norm(x, p):
    normal = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    return normal * p["scale"] + p["bias"]


def rms_norm(x, p):
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"]


def gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gpt(params, tokens):
    x = params["embed"]["embedding"][tokens] + params["positions"][: tokens.shape[1]]
    for name in ("block1", "block2"):
        block = params[name]
        y = layer_norm(x, block["norm1"])
        q, k, v = (
            np.einsum("btd,dhc->bhtc", y, part["kernel"]) + part["bias"][:, None]
            for part in (block["attention"][each] for each in ("query", "key", "value"))
        )
        weights = softmax_causal(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
        out = block["attention"]["out"]
        x = x + np.einsum("bhtc,hcd->btd", weights @ v, out["kernel"]) + out["bias"]
        y = layer_norm(x, block["norm2"]) @ block["mlp1"]["kernel"] + block["mlp1"]["bias"]
        x = x + gelu(y) @ block["mlp2"]["kernel"] + block["mlp2"]["bias"]
    return layer_norm(x, params["norm"]) @ params["embed"]["embedding"].T


def turned(x, base=10_000.0):
    """Rotary positions by complex numbers: a pair is one, and turning a multiplication."""
    half = x.shape[-1] // 2
    pairs = x[..., :half] + 1j * x[..., half:]
    rates = base ** (-2 * np.arange(half) / x.shape[-1])
    pairs = pairs * np.exp(1j * np.arange(x.shape[-2])[:, None] * rates)
    return np.concatenate([pairs.real, pairs.imag], -1)


def llama(params, tokens):
    x = params["embed"]["embedding"][tokens]
    for number in range(2):
        p = jax.tree.map(lambda leaf, number=number: leaf[number], params["layers"])
        y = rms_norm(x, p["norm1"])
        q = turned(np.einsum("btd,dgrc->bgrtc", y, p["query"]["kernel"]))
        k = turned(np.einsum("btd,dgc->bgtc", y, p["key"]["kernel"]))[:, :, None]
        v = np.einsum("btd,dgc->bgtc", y, p["value"]["kernel"])[:, :, None]
        weights = softmax_causal(q @ k.swapaxes(-1, -2) / math.sqrt(q.shape[-1]))
        x = x + np.einsum("bgrtc,grcd->btd", weights @ v, p["out"]["kernel"])
        y = rms_norm(x, p["norm2"])
        gate, up = y @ p["gate"]["kernel"], y @ p["up"]["kernel"]
        x = x + (gate * scipy.special.expit(gate) * up) @ p["down"]["kernel"]
    return rms_norm(x, params["norm"]) @ params["embed"]["embedding"].T


@pytest.mark.parametrize(("name", "oracle"), [("gpt", gpt), ("llama", llama)])
def test_the_forward_pass_is_that_of_numpy(name, oracle):
    apply, variables = network_of(name)
    variables = noisy(variables)
    expected = oracle(variables["params"], TOKENS)
    logits = apply(jax.tree.map(jnp.float32, variables), TOKENS)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4 * np.abs(expected).max())
    # A prefix gives the same logits.
    np.testing.assert_allclose(oracle(variables["params"], TOKENS[:, :4]), expected[:, :4])


@pytest.mark.parametrize("name", SMALL)
def test_no_token_sees_a_later_one(name):
    apply, variables = network_of(name)
    changed = TOKENS.copy()
    changed[:, 5] = (changed[:, 5] + 1) % 11
    before, after = (apply(variables, tokens) for tokens in (TOKENS, changed))
    np.testing.assert_array_equal(before[:, :5], after[:, :5])
    assert np.abs(before[:, 5:] - after[:, 5:]).min() > 0
    # Fresh from initialisation it knows nothing yet.
    assert float(-jax.nn.log_softmax(before).mean()) == pytest.approx(math.log(11), abs=0.2)


def test_layers_in_a_loop_are_layers_one_by_one():
    apply, variables = network_of("llama")
    unrolled = model_functions(create_model("llama", 11, **SMALL["llama"], scan=False))
    shapes = jax.eval_shape(unrolled.init, jax.random.key(0), TOKENS)
    stacked = variables["params"]
    one_by_one = {
        f"layer{number + 1}": jax.tree.map(lambda leaf, number=number: leaf[number], layers)
        for layers in [stacked["layers"]]
        for number in range(2)
    }
    params = {"embed": stacked["embed"], "norm": stacked["norm"], **one_by_one}
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, shapes["params"])
    np.testing.assert_allclose(
        apply(variables, TOKENS),
        evaluate(unrolled.apply, {"params": params}, TOKENS),
        atol=1e-5,
    )
    # Each layer has numbers of its own.
    kernels = stacked["layers"]["query"]["kernel"]
    assert float(jnp.abs(kernels[0] - kernels[1]).min()) > 0


def test_turned_dots_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(1), (2, 6))
    dots = jnp.einsum(
        "tc,sc->ts",
        *(rotate(jnp.broadcast_to(each, (1, 8, 6)), 100.0)[0] for each in (query, key)),
    )
    for distance in range(-7, 8):
        diagonal = jnp.diagonal(dots, distance)
        np.testing.assert_allclose(diagonal, diagonal[0], rtol=1e-4, atol=1e-5)
    assert float(jnp.std(dots)) > 0.1


@pytest.mark.parametrize(
    ("name", "options", "tokens", "error", "message"),
    [
        ("gpt", {"heads": 0}, TOKENS, ValueError, "heads=0 must be at least 1"),
        ("gpt", {"context": 8}, TOKENS, ValueError, "9 tokens are longer than context=8; cut"),
        ("gpt", {"width": 0.0}, TOKENS, ValueError, "width=0.0 must be a finite"),
        ("gpt", {}, TOKENS[0], ValueError, r"have shape \(9,\); the network takes \[B, T\]"),
        ("gpt", {}, TOKENS[:, :0], ValueError, "an empty sequence"),
        ("llama", {}, TOKENS * 1.0, TypeError, "tokens are float32; a language model takes"),
        ("llama", {"depth": 0}, TOKENS, ValueError, "depth=0 must be at least 1"),
        ("llama", {"kv_heads": 4}, TOKENS, ValueError, "heads=6 must be a multiple of kv_heads=4"),
        ("llama", {"head_width": 7}, TOKENS, ValueError, "head_width=7 must be even"),
        ("llama", {"mlp_ratio": 0.0}, TOKENS, ValueError, "mlp_ratio=0.0 must be a finite"),
    ],
)
def test_what_cannot_be_is_refused(name, options, tokens, error, message):
    with pytest.raises(error, match=message):
        module = create_model(name, 11, **SMALL[name] | options)
        jax.eval_shape(module.init, jax.random.key(0), jnp.asarray(tokens))

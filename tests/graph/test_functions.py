"""Plain functions that lead units through unusual places: what is prunable, and rightly so."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_masked_equals_slim, random_gates

from rlprune_jax import compact, ones_gates, trace_graph
from rlprune_jax.units.gates import smallest_gates

GENERATOR = np.random.default_rng(0)
CASES = {}


def draw(*shape):
    return GENERATOR.standard_normal(shape).astype(np.float32)


FIRST, SECOND = draw(6, 8), draw(8, 5)


def case(groups, variables, x=None):
    """Register ``function(variables, x)`` whose prunable groups are ``groups`` (none: frozen)."""

    def register(function):
        CASES[function.__name__] = (function, groups, variables, draw(3, 6) if x is None else x)
        return function

    return register


@case({"a": 8}, {"a": draw(6, 8), "b": draw(8, 8), "c": draw(8, 2)})
def tied_recurrent(v, x):
    h = jnp.tanh(x @ v["a"])
    for _ in range(2):
        h = jnp.tanh(h @ v["b"])
    return h @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(6, 2)})
def autoencoder(v, x):
    return jnp.tanh(jnp.tanh(x @ v["a"]) @ v["a"].T) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def weight_norm(v, x):
    return jnp.tanh(x @ (v["a"] / jnp.linalg.norm(v["a"], axis=0))) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def weight_norm_rows(v, x):
    scaled = v["a"] / jnp.linalg.norm(v["a"], axis=1, keepdims=True)
    return jnp.tanh(x @ scaled) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def iota_scale(v, x):
    return (jnp.tanh(x @ v["a"]) * jnp.arange(8.0)) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def const_scale(v, x):
    return (jnp.tanh(x @ v["a"]) * np.arange(8.0, dtype=np.float32)) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "b": draw(6, 8), "c": draw(8, 2)})
def product(v, x):
    return (jnp.tanh(x @ v["a"]) * (x @ v["b"])) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "b": draw(6, 8), "c": draw(6, 2)})
def bilinear(v, x):
    return ((x @ v["a"]) @ (x @ v["b"]).T) @ (x @ v["c"])


@case({"a": 4}, {"a": draw(6, 4), "b": draw(6, 8), "c": draw(32, 2)})
def outer_flat(v, x):
    return ((x @ v["a"])[:, :, None] * (x @ v["b"])[:, None, :]).reshape(3, -1) @ v["c"]


@case({"a": 4, "b": 4}, {"a": draw(6, 4), "b": draw(6, 4), "c": draw(4, 2)})
def outer_sum(v, x):
    return ((x @ v["a"])[:, :, None] * (x @ v["b"])[:, None, :]).sum(1) @ v["c"]


@case({}, {"a": draw(6, 4), "c": draw(4, 2)})
def self_outer_trace(v, x):
    h = x @ v["a"]
    o = h[:, :, None] * h[:, None, :]
    return jnp.diagonal(o, axis1=1, axis2=2) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def select_half(v, x):
    h = x @ v["a"]
    return jnp.where(h > 0, h, jnp.exp(h) - 1) @ v["c"]


@case({"a": 4}, {"a": draw(6, 8), "c": draw(4, 2)})
def halves(v, x):
    h = x @ v["a"]
    return (h[:, :4] * jax.nn.sigmoid(h[:, 4:])) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def rolled(v, x):
    h = jnp.tanh(x @ v["a"])
    return jnp.roll(h, 3, axis=1) @ v["c"]


@case({"a": 4}, {"a": draw(6, 8), "c": draw(8, 2)})
def flipped(v, x):
    h = jnp.tanh(x @ v["a"])
    return (h + h[:, ::-1]) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2), "d": draw(8, 2)})
def two_readers(v, x):
    h = jnp.tanh(x @ v["a"])
    return h @ v["c"] + jnp.exp(-h) @ v["d"]


@case({"a": 7}, {"a": draw(6, 8), "b": draw(8, 8), "c": draw(8, 2)})
def param_as_weight_and_scale(v, x):
    h = jnp.tanh(x @ v["a"])
    return (h * v["b"][0]) @ v["b"] @ v["c"]


@case({"b": 8, "a": 5}, {"a": draw(6, 5), "b": draw(5, 8), "c": draw(8, 2)})
def lowrank(v, x):
    return jnp.tanh(x @ (v["a"] @ v["b"])) @ v["c"]


@case(
    {"e": 8, "a": 5},
    {"e": draw(11, 8), "a": draw(8, 5), "c": draw(5, 2)},
    np.array([[1, 2], [3, 4]]),
)
def embed(v, x):
    return jnp.tanh(v["e"][x] @ v["a"]).mean(1) @ v["c"]


@case({"e": 8}, {"e": draw(11, 8), "a": draw(8, 8), "c": draw(8, 2)}, np.array([[1, 2], [3, 4]]))
def embed_res(v, x):
    h = v["e"][x]
    return (h + jnp.tanh(h @ v["a"])).mean(1) @ v["c"]


@case(
    {"q": 2, "q#2": 4, "v": 5},
    {"q": draw(6, 2, 4), "k": draw(6, 2, 4), "v": draw(6, 2, 5), "o": draw(2, 5, 3)},
    draw(2, 7, 6),
)
def attention(v, x):
    q, k, w = (jnp.einsum("btd,dhe->bhte", x, v[n]) for n in "qkv")
    a = jax.nn.softmax(jnp.einsum("bhte,bhse->bhts", q, k) / 2, axis=-1)
    return jnp.einsum("bhts,bhse,hed->btd", a, w, v["o"])


@case({"qkv": 2}, {"qkv": draw(6, 24), "o": draw(8, 3)}, draw(2, 7, 6))
def attention_fused(v, x):
    q, k, w = (t.reshape(2, 7, 2, 4).transpose(0, 2, 1, 3) for t in jnp.split(x @ v["qkv"], 3, -1))
    a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2, axis=-1)
    return (a @ w).transpose(0, 2, 1, 3).reshape(2, 7, 8) @ v["o"]


@case({"a": 8, "w": 4, "w#2": 4}, {"a": draw(6, 8), "w": draw(8, 4, 5), "c": draw(5, 2)})
def batched_unit(v, x):
    h = jnp.tanh(x @ v["a"])
    g = jnp.einsum("bu,uk->ubk", h, v["w"][:, :, 0])
    return jnp.einsum("ubk,ukf->bf", g, v["w"]) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def stack_tile(v, x):
    h = x @ v["a"]
    return jnp.stack([h, jnp.tanh(h)]).sum(0) @ v["c"]


@case({"a": 4}, {"a": draw(6, 4), "c": draw(8, 2)})
def tiled(v, x):
    h = jnp.tanh(x @ v["a"])
    return jnp.tile(h, (1, 2)) @ v["c"]


@case({"a": 4}, {"a": draw(6, 4), "c": draw(8, 2)})
def repeated(v, x):
    h = jnp.tanh(x @ v["a"])
    return jnp.repeat(h, 2, axis=1) @ v["c"]


@case({"a": 2}, {"a": draw(6, 4), "c": draw(8, 2)})
def unstacked(v, x):
    h = jnp.tanh(x @ v["a"]).reshape(3, 2, 2)
    a, b = jnp.unstack(h, axis=1)
    return jnp.concatenate([a, b, a, b], 1) @ v["c"]


@case({"c": 8}, {"a": draw(6, 1), "c": draw(1, 8), "d": draw(8, 2)})
def size_one(v, x):
    return jnp.tanh((x @ v["a"]) @ v["c"]) @ v["d"]


@case({"c": 8}, {"c": draw(8, 2)})
def const_features(v, x):
    return jnp.tanh(x @ FIRST) @ v["c"]


@case({"c": 5}, {"c": draw(5, 2)})
def only_consts(v, x):
    return jnp.tanh(x @ FIRST) @ SECOND @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def custom_vjp_identity(v, x):
    @jax.custom_vjp
    def rev(h):
        return h

    rev.defvjp(lambda h: (h, None), lambda _, g: (-g,))
    h = jnp.tanh(x @ v["a"])
    return rev(h) @ v["c"] + h @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def custom_vjp_around(v, x):
    @jax.custom_vjp
    def f(h, c):
        return h @ c

    f.defvjp(lambda h, c: (h @ c, (h, c)), lambda r, g: (g @ r[1].T, r[0].T @ g))
    return f(jnp.tanh(x @ v["a"]), v["c"])


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def dynslice(v, x):
    h = x @ v["a"]
    return jax.lax.dynamic_slice(h, (jnp.argmax(x[:, 0]) * 0, 0), (3, 8)) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "b": draw(8), "c": draw(8, 2)})
def matvec_unit(v, x):
    h = jnp.tanh(x @ v["a"])
    return (h @ v["b"])[:, None] * (h @ v["c"])


@case({"e": 8, "a": 5}, {"e": draw(11, 8), "a": draw(8, 5)}, np.array([[1, 2, 0], [3, 4, 5]]))
def tied_embedding(v, x):
    h = v["e"][x]
    h = h + jnp.tanh(h @ v["a"]) @ v["a"].T
    return h @ v["e"].T


@case({}, {"a": draw(6, 8), "m": np.arange(8), "c": draw(8, 2)})
def perm_param(v, x):
    return jnp.tanh(x @ v["a"])[:, v["m"]] @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def logsumexp(v, x):
    h = x @ v["a"]
    return (h - jax.nn.logsumexp(h, axis=0)) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def softmax_units(v, x):
    return jax.nn.softmax(x @ v["a"]) @ v["c"]


@case(
    {"k0": 4, "k": 8},
    {"k0": draw(1, 1, 6, 4), "k": draw(3, 3, 4, 8), "c": draw(8, 2)},
    draw(2, 5, 5, 6),
)
def conv_as_dot2(v, x):
    x = jnp.einsum("bhwc,cd->bhwd", x, v["k0"][0, 0])
    w = v["k"].reshape(-1, 8)
    xp = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    p = jnp.concatenate([xp[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)], -1)
    return jax.nn.relu(p @ w).mean((1, 2)) @ v["c"]


@case(
    {"k0": 4, "k": 8},
    {"k0": draw(1, 1, 6, 4), "k": draw(3, 3, 4, 8), "c": draw(8, 2)},
    draw(2, 5, 5, 6),
)
def conv_patches(v, x):
    x = jax.lax.conv_general_dilated(
        x, v["k0"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    p = jax.lax.conv_general_dilated_patches(
        x, (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return jax.nn.relu(p @ v["k"].transpose(2, 0, 1, 3).reshape(-1, 8)).mean((1, 2)) @ v["c"]


@case({"k": 4, "t": 3}, {"k": draw(6, 4), "t": draw(2, 2, 3, 4), "c": draw(3, 2)}, draw(2, 5, 5, 6))
def conv_transpose(v, x):
    kernel = v["t"].swapaxes(2, 3)
    x = jax.lax.conv_transpose(jnp.tanh(x @ v["k"]), kernel, (2, 2), "SAME")
    return x.mean((1, 2)) @ v["c"]


@case({"a": 12}, {"a": draw(6, 12), "c": draw(12, 2)})
def shuffled(v, x):
    h = jnp.tanh(x @ v["a"])
    return h.reshape(3, 3, 4).swapaxes(1, 2).reshape(3, 12) @ v["c"]


@case({"a": 4}, {"a": draw(6, 12), "c": draw(12, 2)})
def shuffled_and_read_between(v, x):
    h = jnp.tanh((x @ v["a"]).reshape(3, 3, 4).swapaxes(1, 2))
    return (h / h.sum(2, keepdims=True)).reshape(3, 12) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def permuted(v, x):
    return jnp.tanh(x @ v["a"])[:, np.array([3, 1, 2, 0, 7, 5, 6, -4])] @ v["c"]


@case({"a": 3, "a#2": 2}, {"a": draw(6, 8), "c": draw(8, 2)})
def selected(v, x):
    return jnp.tanh(x @ v["a"])[:, np.array([0, 4, 2, 0, 5, 6, 6, 5])] @ v["c"]


@case({"a": 3}, {"a": draw(6, 12), "c": draw(3, 2)}, draw(2, 4, 6))
def pixels_from_channels(v, x):
    h = jnp.tanh(x @ v["a"]).reshape(2, 2, 2, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(2, 4, 4, 3).mean((1, 2)) @ v["c"]


@case(
    {"q": 2, "v": 4},
    {"q": draw(6, 16), "k": draw(6, 8), "v": draw(6, 2, 4), "o": draw(4, 3)},
    draw(2, 5, 6),
)
def grouped_queries(v, x):
    q, k = (x @ v["q"]).reshape(2, 5, 4, 4), (x @ v["k"]).reshape(2, 5, 2, 4)
    w = jnp.einsum("btd,dhe->bthe", x, v["v"])
    k, w = (jnp.repeat(each, 2, axis=2) for each in (k, w))
    a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 2, axis=-1)
    return jnp.einsum("bhts,bshd->bthd", a, w).sum(2) @ v["o"]


@case({"qkv": 2}, {"qkv": draw(6, 24), "o": draw(8, 3)}, draw(2, 7, 6))
def attention_of_one_array(v, x):
    q, k, w = (x @ v["qkv"]).reshape(2, 7, 3, 2, 4).transpose(2, 0, 3, 1, 4)
    a = jax.nn.softmax(q @ k.swapaxes(-1, -2) / 2, axis=-1)
    return (a @ w).transpose(0, 2, 1, 3).reshape(2, 7, 8) @ v["o"]


@case(
    {"q": 2, "q#2": 2, "v": 4},
    {"q": draw(6, 2, 4), "k": draw(6, 2, 4), "v": draw(6, 2, 4), "o": draw(2, 4, 3)},
    draw(2, 5, 6),
)
def rotary(v, x):
    q, k, w = (jnp.einsum("btd,dhe->bthe", x, v[n]) for n in "qkv")
    angle = jnp.arange(5.0)[:, None, None] / 10 ** jnp.arange(2.0)
    sin, cos = (jnp.concatenate([f(angle)] * 2, -1) for f in (jnp.sin, jnp.cos))
    turned = lambda h: jnp.concatenate([-h[..., 2:], h[..., :2]], -1)  # noqa: E731
    q, k = (h * cos + turned(h) * sin for h in (q, k))
    a = jax.nn.softmax(jnp.einsum("bthd,bshd->bhts", q, k) / 2, axis=-1)
    return jnp.einsum("bhts,bshd,hdo->bto", a, w, v["o"])


@case(
    {"r": 4, "u": 5},
    {"r": draw(6, 4), "u": draw(4, 6, 5), "d": draw(4, 5, 3)},
    draw(2, 5, 6),
)
def experts_by_softmax(v, x):
    share = jax.nn.softmax(x @ v["r"])
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, v["u"]))
    return jnp.einsum("btef,efo,bte->bto", hidden, v["d"], share)


@case(
    {"r": 4, "u": 5},
    {"r": draw(6, 4), "u": draw(4, 6, 5), "d": draw(4, 5, 3)},
    draw(2, 5, 6),
)
def experts_by_top_k(v, x):
    logits, chosen = jax.lax.top_k(x @ v["r"], 1)
    share = (jax.nn.one_hot(chosen, 4) * jax.nn.sigmoid(logits)[..., None]).sum(-2)
    hidden = jax.nn.relu(jnp.einsum("btd,edf->btef", x, v["u"]))
    return jnp.einsum("btef,efo,bte->bto", hidden, v["d"], share)


@case({"a": 4}, {"a": draw(6, 8), "c": draw(4, 2)})
def radix_softmax(v, x):
    h = (x @ v["a"]).reshape(3, 2, 4)
    return (jax.nn.softmax(h, axis=1) * h).sum(1) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def written_in_rows(v, x):
    h = jnp.tanh(x @ v["a"]).at[0].set(0.5).at[jnp.array([1, 2])].add(1.0)
    return jax.lax.dynamic_update_slice(h, h[:1] * 2, (1, 0)) @ v["c"]


@case({"a": 8}, {"a": draw(6, 8), "c": draw(8, 2)})
def other_axes_mixed(v, x):
    h = jnp.tanh(x @ v["a"])
    best, _ = jax.lax.top_k(h.T, 2)
    return (
        jax.ops.segment_sum(h, jnp.array([0, 1, 0]), 2) + best.T + jnp.fft.fft(h, axis=0).real[:2]
    ) @ v["c"]


@case({}, {"a": draw(6, 8), "c": draw(8, 2)})
def repeated_by_a_traced_number(v, x):
    h = jnp.tanh(x @ v["a"])
    times = jnp.where(jnp.arange(8) < x[0, 0], 2, 1)
    return jnp.repeat(h, times, axis=1, total_repeat_length=8) @ v["c"]


@case({"a": 8}, {"a": draw(2, 6, 8), "c": draw(8, 2)})
def ragged(v, x):
    h = jax.lax.ragged_dot(x, v["a"], jnp.array([1, 2]))
    return jnp.tanh(h) @ v["c"]


@pytest.mark.parametrize("name", CASES)
def test_prunable_units_are_right(name):
    function, groups, variables, x = CASES[name]
    variables = jax.tree.map(jnp.asarray, variables)
    if not groups:
        with pytest.raises(ValueError, match="every axis is frozen"):
            trace_graph(function, variables, x)
        return
    graph = trace_graph(function, variables, x)
    assert {group.name: group.size for group in graph.groups} == groups
    for seed in range(2):
        assert_masked_equals_slim(function, graph, variables, random_gates(graph, seed), x)


def test_pruned_tokens_whose_exponentials_overflow_do_no_harm():
    variables = {"z": draw(5, 8), "k": draw(6, 8), "c": draw(8, 2)}

    def apply(v, x):
        keys = x @ v["k"]
        z = v["z"] + jax.nn.softmax(v["z"] @ keys.mT) @ keys
        # Of a pruned row no key that is kept may be seen: all of it is far below what is pruned.
        seen = jnp.tril(jnp.ones((5, 5), bool))
        weights = jax.nn.softmax(jnp.where(seen, z @ z.mT, jnp.finfo(z.dtype).min))
        return (weights @ z).mean(1) @ v["c"]

    x = draw(2, 4, 6)
    graph = trace_graph(apply, variables, x)
    assert sorted(graph.sizes) == [5, 8]
    gates = random_gates(graph, 0)
    tokens = next(group.name for group in graph.groups if group.size == 5)
    gates[tokens] = jnp.array([0.0, 0.0, 1.0, 1.0, 1.0])
    assert_masked_equals_slim(apply, graph, variables, gates, x, gradient=False)


def test_as_many_experts_stay_as_are_routed_to():
    variables = {"r": draw(6, 4), "u": draw(4, 6, 5), "d": draw(4, 5, 3)}

    def apply(v, x):
        logits, chosen = jax.lax.top_k(x @ v["r"], 2)
        share = (jax.nn.one_hot(chosen, 4) * jax.nn.softmax(logits)[..., None]).sum(-2)
        hidden = jax.nn.relu(jnp.einsum("bd,edf->bef", x, v["u"]))
        return jnp.einsum("bef,efo,be->bo", hidden, v["d"], share)

    x = draw(3, 6)
    graph = trace_graph(apply, variables, x)
    group = graph.group("r")
    assert group.least == 2 and {slot.path for slot in group.slots} == {"r", "u", "d"}
    assert int(smallest_gates(graph)["r"].sum()) == 2
    gates = ones_gates(graph) | {"r": jnp.array([0.0, 1.0, 0.0, 1.0])}
    assert_masked_equals_slim(apply, graph, variables, gates, x)
    with pytest.raises(ValueError, match=r"keeps 1 of 4 units, of which a top_k takes 2; keep at"):
        compact(graph, variables, gates | {"r": jnp.array([0.0, 1.0, 0.0, 0.0])})
    with pytest.raises(ValueError, match=r"gates\['r'\] prunes all 4 units"):
        compact(graph, variables, gates | {"r": jnp.zeros(4)})

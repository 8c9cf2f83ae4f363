import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import compact, count_macs, count_params, ones_gates, respecialise, trace_graph
from rlprune_jax.costs.counts import (
    count_weight_bytes,
    macs_ratio,
    params_ratio,
    weight_bytes_ratio,
)
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.units.gates import kept_counts


class Valid(nn.Module):
    """Convolutions without padding and large kernels: elementwise operations hardly count."""

    kind: str = "plain"

    @nn.compact
    def __call__(self, x):
        groups = 4 if self.kind == "grouped" else 1
        x = nn.relu(nn.Conv(16, (3, 3), padding="VALID", use_bias=False)(x))
        y = nn.Conv(32, (3, 3), padding="VALID", use_bias=False, feature_group_count=groups)(x)
        if self.kind == "concat":
            y = jnp.concatenate([y, x[:, 1:-1, 1:-1]], axis=-1)
        x = nn.relu(nn.Conv(24, (3, 3), strides=2, padding="VALID", use_bias=False)(y))
        return nn.Dense(10, use_bias=False)(x.reshape(x.shape[0], -1))


def traced(module, shape):
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)

    def apply(variables, x):
        return module.apply(variables, x)

    return apply, trace_graph(apply, variables, x), variables, x


def draw(graph, seed, ratio=0.5):
    generator = np.random.default_rng(seed)
    gates = {}
    for group in graph.groups:
        gate = generator.random(group.size) < ratio
        gate[generator.integers(group.size)] = True
        gates[group.name] = gate.astype(np.float32)
    return gates


def flops(function, *args):
    return jax.jit(function).lower(*args).compile().cost_analysis()["flops"]


@pytest.mark.parametrize("kind", ["plain", "grouped", "concat"])
def test_macs_are_half_the_flops_that_xla_counts(kind):
    apply, graph, variables, x = traced(Valid(kind), (2, 16, 16, 16))
    assert count_macs(graph) * 2 * 2 == pytest.approx(flops(apply, variables, x), rel=0.01)
    gates = draw(graph, 0)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    slim = compact(graph, zeros, gates)
    counted = flops(respecialise(apply, graph, gates), slim, x)
    assert count_macs(graph, gates) * 2 * 2 == pytest.approx(counted, rel=0.02)
    assert count_params(graph, gates) == sum(map(np.size, jax.tree.leaves(slim)))


def test_counts_by_hand():
    def apply(v, x):
        return jax.nn.relu(x @ v["a"] + v["bias"]) @ v["b"]

    variables = {"a": jnp.ones((3, 5)), "bias": jnp.ones(5), "b": jnp.ones((5, 2))}
    for batch in (1, 4):
        graph = trace_graph(apply, variables, jnp.ones((batch, 3)))
        assert (count_params(graph), count_macs(graph)) == (15 + 5 + 10, 15 + 10)
        gates = {"a": np.array([1, 0, 0, 1, 0])}
        assert (count_params(graph, gates), count_macs(graph, gates)) == (6 + 2 + 4, 6 + 4)


@pytest.mark.parametrize("kind", ["plain", "grouped", "concat"])
def test_ratios_are_the_exact_counts(kind):
    _, graph, _, _ = traced(Valid(kind), (2, 16, 16, 16))
    several = [draw(graph, seed, ratio) for seed, ratio in enumerate([0.05, 0.3, 0.6, 0.95])]
    several.append(ones_gates(graph))
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *several)
    for ratio, count in [(params_ratio, count_params), (macs_ratio, count_macs)]:
        measured = jax.jit(jax.vmap(ratio(graph)))(stacked)
        exact = [count(graph, gates) / count(graph) for gates in several]
        assert measured.dtype == jnp.float32
        np.testing.assert_allclose(measured, exact, rtol=1e-6)
        single = [ratio(graph)(gates) for gates in several]
        np.testing.assert_allclose(single, measured, rtol=1e-6)
        assert measured[-1] == pytest.approx(1, rel=1e-6)


def test_more_units_never_cost_less():
    _, graph, _, _ = traced(Valid("concat"), (1, 16, 16, 16))
    order = np.random.default_rng(0).permutation(graph.units)
    kept = np.stack(
        [np.isin(np.arange(graph.units), order[:count]) for count in range(graph.units)]
    )
    gates = {
        group.name: jnp.asarray(kept[:, group.first : group.first + group.size], jnp.float32)
        for group in graph.groups
    }
    for ratio in (params_ratio, macs_ratio):
        assert (np.diff(jax.vmap(ratio(graph))(gates)) >= 0).all()


def test_counts_beyond_32_bits_are_exact():
    def apply(v, x):
        return jax.nn.relu(x @ v["a"]) @ v["b"]

    width, units = 70_001, 50_021
    variables = {
        "a": jax.ShapeDtypeStruct((width, units), jnp.float32),
        "b": jax.ShapeDtypeStruct((units, 3), jnp.float32),
    }
    graph = trace_graph(apply, variables, jax.ShapeDtypeStruct((1, width), jnp.float32))
    assert count_params(graph) == count_macs(graph) == (width + 3) * units > 2**31
    gates = {"a": np.arange(units) < 50_020}
    assert count_params(graph, gates) == (width + 3) * 50_020
    assert macs_ratio(graph)({"a": jnp.asarray(gates["a"])}) == pytest.approx(
        50_020 / units, rel=1e-6
    )


def test_vgg16_at_imagenet_size():
    functions = model_functions(create_model("vgg16", 1000))
    x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    variables = jax.eval_shape(functions.init, jax.random.key(0), x)
    graph = trace_graph(functions.apply, variables, x)
    # The 15,346,630,656 MACs of VGG16's convolutions (Simonyan and Zisserman) and our head's.
    assert count_macs(graph) == 15_346_630_656 + 7 * 7 * 512 * 1000
    leaves = jax.tree.leaves(variables["params"])
    assert count_params(graph) == sum(leaf.size for leaf in leaves)


def test_gates_count_from_one_half_and_must_fit():
    _, graph, _, _ = traced(Valid(), (1, 16, 16, 16))
    soft = {
        name: jnp.linspace(0, 1, size) for name, size in zip(graph.names, graph.sizes, strict=True)
    }
    np.testing.assert_array_equal(kept_counts(graph, soft), [size // 2 for size in graph.sizes])
    hard = {name: (gate >= 0.5).astype(jnp.float32) for name, gate in soft.items()}
    assert count_params(graph, soft) == count_params(graph, hard)
    with pytest.raises(ValueError, match="holds nan"):
        count_macs(graph, soft | {graph.names[0]: np.full(graph.sizes[0], np.nan)})
    with pytest.raises(ValueError, match="missing"):
        count_params(graph, {})


def test_bytes_of_weights_are_those_of_the_slim_arrays():
    functions = model_functions(create_model("cnn", 4, widths=(4, 6)))
    x = jnp.ones((1, 8, 8, 1))
    variables = functions.init(jax.random.key(0), x)
    variables["params"]["conv2"]["kernel"] = variables["params"]["conv2"]["kernel"].astype(
        jnp.bfloat16
    )
    graph = trace_graph(functions.apply, variables, x)
    gates = draw(graph, 0)
    held = sum(leaf.nbytes for leaf in jax.tree.leaves(compact(graph, variables, gates)))
    assert count_weight_bytes(graph, gates) == held
    dense = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert count_weight_bytes(graph) == dense
    assert weight_bytes_ratio(graph)(gates) == pytest.approx(held / dense, rel=1e-6)

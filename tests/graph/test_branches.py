"""Residual branches as units."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import assert_masked_equals_slim, random_gates, random_variables

from rlprune_jax import compact, count_macs, count_params, ones_gates, respecialise, trace_graph
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.units.weight_scores import magnitude_scores

GENERATOR = np.random.default_rng(0)


def draw(*shape):
    return jnp.asarray(GENERATOR.standard_normal(shape) / 2, jnp.float32)


class Decoder(nn.Module):
    """Attention and hidden layers one after the other, or side by side on one norm."""

    parallel: bool = False

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(6, name="in")(x)
        for i in range(2):
            h = nn.LayerNorm()(x)
            read = nn.MultiHeadDotProductAttention(2, qkv_features=4, name=f"attention{i}")(h)
            x = x if self.parallel else x + read
            h = h if self.parallel else nn.RMSNorm()(x)
            hidden = nn.Dense(6, name=f"down{i}")(nn.gelu(nn.Dense(8, name=f"up{i}")(h)))
            x = x + read + hidden if self.parallel else x + hidden
        return nn.Dense(3, name="out")(x.mean(1))


@pytest.mark.parametrize("parallel", [False, True])
def test_branches_mix_with_widths(parallel):
    module, x = Decoder(parallel), draw(2, 5, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x, depth_groups=True)
    group = graph.group("depth")
    assert group.size == 4
    owned = {
        next(path.split("/")[1] for path in each if "kernel" in path) for each in group.branches
    }
    assert owned == {"attention0", "down0", "attention1", "down1"}
    gates = random_gates(graph, 1) | {"depth": jnp.array([1.0, 0.0, 0.0, 1.0])}
    assert_masked_equals_slim(module.apply, graph, variables, gates, x)
    slim = compact(graph, variables, gates)
    # The weights of a branch that is gone are empty, its computation is not there.
    assert sum(leaf.size for leaf in jax.tree.leaves(slim)) == count_params(graph, gates)
    by_widths = respecialise(module.apply, graph)(slim, x)
    np.testing.assert_allclose(by_widths, respecialise(module.apply, graph, gates)(slim, x))
    whole = jax.make_jaxpr(lambda v: module.apply(v, x))(variables)
    cut = jax.make_jaxpr(lambda v: respecialise(module.apply, graph, gates)(v, x))(slim)
    dots = [str(each).count("dot_general[") for each in (whole, cut)]
    assert dots[1] < dots[0]


def test_macs_and_scores_of_branches():
    module, x = Decoder(), draw(2, 5, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x, depth_groups=True)
    paths = list(graph.group("depth").branches)
    without = ones_gates(graph) | {"depth": jnp.array([1.0, 0.0, 1.0, 1.0])}
    lost = count_macs(graph) - count_macs(graph, without)
    assert any("up0/kernel" in path for path in paths[1]) and lost == 5 * 2 * 6 * 8
    scaled = jax.tree.map_with_path(
        lambda path, leaf: 0 * leaf if "down1" in str(path) or "up1" in str(path) else leaf,
        variables,
    )
    scores = magnitude_scores(graph, scaled)["depth"]
    assert scores.shape == (4,) and int(jnp.argmin(scores)) == 3


def test_statistics_of_a_branch_that_is_gone_are_empty_in_training_too():
    functions = model_functions(create_model("resnet20", 3, width=1 / 4))
    x = draw(2, 8, 8, 3)
    variables = functions.init(jax.random.key(0), x)
    graph = trace_graph(
        functions.apply, variables, x, apply_train=functions.apply_train, depth_groups=True
    )
    assert graph.group("depth").size == 9
    gates = ones_gates(graph) | {"depth": jnp.ones(9).at[jnp.array([1, 5])].set(0)}
    assert_masked_equals_slim(functions.apply, graph, variables, gates, x, gradient=False)
    assert_masked_equals_slim(functions.apply_train, graph, variables, gates, x, gradient=False)


def test_the_only_path_is_no_branch():
    variables = {"a": draw(4, 6), "b": draw(4, 6), "c": draw(6, 3)}

    def two_ways(v, x):
        return jnp.tanh(x @ v["a"] + x @ v["b"]) @ v["c"]

    graph = trace_graph(two_ways, variables, draw(2, 4), depth_groups=True)
    assert graph.names == ("a",)


def test_ignored_variables_keep_their_branch():
    module, x = Decoder(), draw(2, 5, 4)
    variables = random_variables(module, x)
    graph = trace_graph(
        module.apply, variables, x, depth_groups=True, ignore="attention1/out/kernel"
    )
    assert graph.group("depth").size == 3


def test_all_branches_pruned_are_refused():
    module, x = Decoder(), draw(2, 5, 4)
    variables = random_variables(module, x)
    graph = trace_graph(module.apply, variables, x, depth_groups=True)
    with pytest.raises(ValueError, match=r"gates\['depth'\] prunes all 4 units"):
        compact(graph, variables, ones_gates(graph) | {"depth": jnp.zeros(4)})

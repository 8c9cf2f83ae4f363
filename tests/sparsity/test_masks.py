import dataclasses

import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from rlprune_jax.sparsity.masks import (
    Density,
    apply_mask,
    check_congruent,
    density_report,
    intersect_masks,
    make_mask,
    prunable_leaves,
    total_density,
)


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    kernel: jax.Array
    bias: jax.Array


def kernel_and_bias():
    return jnp.ones((3, 2)), jnp.ones(2)


def containers():
    kernel, bias = kernel_and_bias()
    return {
        "dict": {"layer": {"kernel": kernel, "bias": bias}},
        "frozen": flax.core.freeze({"layer": {"kernel": kernel, "bias": bias}}),
        "tuple": ((kernel, bias),),
        "dataclass": Layer(kernel, bias),
        "nnx": nnx.state(nnx.Linear(3, 2, rngs=nnx.Rngs(0))),
    }


@pytest.mark.parametrize("name", containers())
def test_any_pytree(name):
    params = containers()[name]
    mask = make_mask(params)
    assert jax.tree.structure(mask) == jax.tree.structure(params)
    assert sorted(leaf.shape for leaf in jax.tree.leaves(mask)) == [(), (3, 2)]
    assert total_density(mask) == (6, 6)
    mask = jax.tree.map(lambda leaf: leaf.at[0].set(False) if leaf.ndim else leaf, mask)
    pruned = apply_mask(params, mask)
    assert jax.tree.structure(pruned) == jax.tree.structure(params)
    for before, after, keep in zip(*map(jax.tree.leaves, (params, pruned, mask)), strict=True):
        np.testing.assert_array_equal(after, np.where(keep, before, 0))


def test_a_regular_expression_or_function_chooses():
    params = {"embed": jnp.ones((2, 2)), "head": {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}}
    assert list(density_report(make_mask(params, "^head"))) == ["head/bias", "head/kernel"]
    chosen = make_mask(params, lambda path, leaf: path == "embed")
    assert list(prunable_leaves(params, chosen)) == ["embed"]


def test_nan_and_infinity_under_the_mask_do_not_leak():
    params = {"w": jnp.array([[1.0, jnp.nan], [jnp.inf, 2.0]])}
    mask = {"w": jnp.array([[True, False], [False, True]])}
    np.testing.assert_array_equal(apply_mask(params, mask)["w"], [[1, 0], [0, 2]])
    gradient = jax.grad(lambda p: jnp.sum(apply_mask(p, mask)["w"] ** 2))(params)
    np.testing.assert_array_equal(gradient["w"], [[2, 0], [0, 4]])


def test_masks_intersect():
    a = {"w": jnp.array([True, True, False]), "b": jnp.array(True)}
    b = {"w": jnp.array([True, False, False]), "b": jnp.array([True, False])}
    both = intersect_masks(a, b, a)
    assert both["w"].tolist() == [True, False, False]
    assert both["b"].tolist() == [True, False]
    with pytest.raises(ValueError, match=r"mask 1 is not congruent.*'w'"):
        intersect_masks(a, {"b": jnp.array(True), "w": jnp.ones(4, bool)})


def test_report_counts_in_python_integers():
    mask = {"a": jnp.array([[True, False], [True, True]]), "b": jnp.array(True)}
    report = density_report(mask)
    assert report == {"a": Density(3, 4)}
    assert type(report["a"].live) is int
    assert report["a"].density == 0.75
    assert Density(0, 0).density == 0.0


@pytest.mark.parametrize(
    "mask, message",
    [
        ({"a": jnp.ones((2, 2), bool)}, "lacks the leaf 'b'"),
        (
            {"a": jnp.ones((2, 2), bool), "b": jnp.array(True), "c": jnp.array(True)},
            "also has 'c'",
        ),
        ({"a": jnp.ones((2, 2), bool), "z": jnp.array(True)}, "'z' where params have 'b'"),
        ({"a": jnp.ones((2, 3), bool), "b": jnp.ones(5, bool)}, r"at 'a' it has shape \(2, 3\)"),
    ],
)
def test_the_first_path_that_differs_is_named(mask, message):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones(2)}
    with pytest.raises(ValueError, match=message):
        check_congruent(params, mask)


def test_bad_input():
    with pytest.raises(ValueError, match=r"nothing is prunable.*prunable=.*'b'"):
        make_mask({"b": jnp.ones(3)})
    with pytest.raises(ValueError, match="prunable='nowhere' chooses no leaf"):
        make_mask({"w": jnp.ones((2, 2))}, "nowhere")
    with pytest.raises(TypeError, match="'table', which is int32"):
        make_mask({"table": jnp.ones((2, 2), jnp.int32)}, "table")
    with pytest.raises(ValueError, match="nothing is prunable"):
        make_mask({"table": jnp.ones((2, 2), jnp.int32)})
    with pytest.raises(TypeError, match="'w' is float32, not bool"):
        apply_mask({"w": jnp.ones(2)}, {"w": jnp.ones(2)})
    with pytest.raises(ValueError, match=r"prunable='\(' is no regular expression: .*re.escape"):
        make_mask({"w": jnp.ones((2, 2))}, "(")
    with pytest.raises(TypeError, match="prunable=3 must be a regular expression or a function"):
        make_mask({"w": jnp.ones((2, 2))}, 3)
    with pytest.raises(TypeError, match="params hold a str at '0'"):
        make_mask(["kernel", "bias"])

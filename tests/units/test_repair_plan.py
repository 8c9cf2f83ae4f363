"""Which weights can be refitted, where they come from and what is added after them."""

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import trace_graph
from rlprune_jax.graph import match
from rlprune_jax.graph.program import trace_program
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.units.repair_plan import Origin, plan_repair, to_variable


def plan_of(apply, variables, *inputs):
    graph = trace_graph(apply, variables, *inputs)
    paths = list(flatten_with_paths(variables))
    return plan_repair(match(apply, graph, variables, inputs), len(paths)), paths


def described(plan, paths):
    """Paths of weights and of what is added, in the order of the program."""
    return [
        (
            paths[each.origin.variable],
            each.bias and paths[each.bias.origin.variable],
            each.bias and each.bias.sign,
        )
        for each in plan.refits.values()
    ]


class Network(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.Conv(4, (3, 3), name="first")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=True, name="norm")(x))
        x = nn.Conv(4, (3, 3), use_bias=False, name="second")(x)
        x = nn.BatchNorm(use_running_average=True, name="normed")(x)
        x = nn.Dense(5, dtype=jnp.bfloat16, name="low")(nn.relu(x).mean((1, 2)))
        x = nn.DenseGeneral((2, 3), name="heads")(x.astype(jnp.float32))
        return nn.DenseGeneral(2, axis=(-2, -1), use_bias=False, name="head")(jnp.tanh(x))


def test_a_network_of_flax_is_understood():
    module, x = Network(), jnp.ones((2, 6, 6, 3))
    variables = module.init(jax.random.key(0), x)
    plan, paths = plan_of(module.apply, variables, x)
    assert plan.skipped == {}
    assert described(plan, paths) == [
        ("params/first/kernel", "params/first/bias", 1),
        ("params/second/kernel", "batch_stats/normed/mean", -1),
        ("params/low/kernel", "params/low/bias", 1),
        ("params/heads/kernel", "params/heads/bias", 1),
        ("params/head/kernel", None, None),
    ]


BIASES = {
    "turned": ((6,), lambda y, bias: y + bias.reshape(3, 2).T[None]),
    "moved output": ((3, 2), lambda y, bias: y.transpose(0, 2, 1).reshape(7, 6) + bias.reshape(6)),
    "backwards": ((6,), lambda y, bias: y - bias[::-1].reshape(2, 3)),
    "one of each row": ((7, 1, 1), lambda y, bias: y + bias),
    "one for all columns": ((1,), lambda y, bias: y + bias),
    "one for some columns": ((3,), lambda y, bias: y + bias),
    "multiplied": ((2, 3), lambda y, bias: y * bias),
    "taken from": ((2, 3), lambda y, bias: bias - y),
}
NO_BIAS = ("one of each row", "one for all columns", "one for some columns", "multiplied")


@pytest.mark.parametrize("name", BIASES)
def test_each_column_finds_its_entry_of_the_bias(name):
    shape, add = BIASES[name]

    def apply(variables, x):
        hidden = jax.nn.relu(x @ variables["first"])
        y = jax.lax.dot_general(hidden, variables["w"], (((1,), (1,)), ((), ())))
        return add(y, variables["bias"])

    variables = {"first": jnp.ones((4, 5)), "w": jnp.ones((2, 5, 3)), "bias": jnp.zeros(shape)}
    plan, paths = plan_of(apply, variables, jnp.ones((7, 4)))
    refit = next(each for each in plan.refits.values() if paths[each.origin.variable] == "w")
    if name in (*NO_BIAS, "taken from"):
        assert refit.bias is None
        return
    assert paths[refit.bias.origin.variable] == "bias"
    # A change of every column, made by the variable, is the change that was to be.
    columns = np.arange(6.0)
    bias = refit.bias.sign * columns[refit.bias.order].reshape(shape)
    changed = apply(variables | {"w": jnp.zeros((2, 5, 3)), "bias": bias}, jnp.ones((7, 4)))
    wanted = add(np.broadcast_to(columns.reshape(2, 3), (7, 2, 3)), jnp.zeros(shape))
    np.testing.assert_array_equal(changed, wanted)


class Equinox(eqx.Module):
    conv: eqx.nn.Conv2d
    linear: eqx.nn.Linear
    head: eqx.nn.Linear

    def __call__(self, x):
        x = jax.nn.relu(self.conv(x)).mean((1, 2))
        return self.head(jax.nn.relu(self.linear(x)))


def test_biases_of_equinox_are_found_beyond_the_axes_that_vmap_adds():
    keys = jax.random.split(jax.random.key(0), 3)
    module = Equinox(
        eqx.nn.Conv2d(3, 4, 3, key=keys[0]),
        eqx.nn.Linear(4, 5, key=keys[1]),
        eqx.nn.Linear(5, 2, use_bias=False, key=keys[2]),
    )
    params, static = eqx.partition(module, eqx.is_array)

    def apply(params, x):
        return jax.vmap(eqx.combine(params, static))(x)

    plan, paths = plan_of(apply, params, jnp.ones((2, 3, 6, 6)))
    assert described(plan, paths) == [
        ("conv/weight", "conv/bias", 1),
        ("linear/weight", "linear/bias", 1),
        ("head/weight", None, None),
    ]


REASONS = {
    "its weights are read 2 times": (
        lambda v, x: jnp.tanh(jnp.tanh(x @ v["a"]) @ v["b"]) @ v["a"].T @ v["c"]
    ),
    "its weights are computed by 'mul'": (lambda v, x: jnp.tanh(x @ (v["a"] * 2.0)) @ v["b"].T),
    "its weights are no variable": (
        lambda v, x: jnp.tanh(x @ v["a"]) @ np.ones((4, 5), "f") @ np.ones((5, 2), "f")
    ),
}


@pytest.mark.parametrize("reason", REASONS)
def test_what_cannot_be_refitted_is_skipped_and_says_why(reason):
    variables = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 4)), "c": jnp.ones((3, 3))}
    plan, _ = plan_of(REASONS[reason], variables, jnp.ones((2, 3)))
    assert reason in plan.skipped.values()


def test_dots_of_activations_and_lookups_are_no_matter():
    def apply(variables, tokens):
        x = variables["table"][tokens]
        q, k = x @ variables["q"], x @ variables["k"]
        return jax.nn.softmax(q @ k.swapaxes(1, 2)) @ (x @ variables["v"]) @ variables["out"]

    variables = {name: jnp.ones((4, 4)) for name in ("q", "k", "v", "out")}
    variables["table"] = jnp.ones((9, 4))
    plan, paths = plan_of(apply, variables, jnp.ones((2, 3), int))
    assert {paths[each.origin.variable] for each in plan.refits.values()} == {"q", "k", "v", "out"}
    assert plan.skipped == {}


def test_changes_go_back_through_moves():
    def move(w):
        w = jnp.flip(w.astype(jnp.float32).transpose(2, 0, 1), 1)
        return jnp.expand_dims(w.reshape(2, 12), 0)

    w = jnp.arange(24, dtype=jnp.bfloat16).reshape(3, 4, 2)
    program, _ = trace_program(move, w)
    origin = Origin(0, tuple(range(len(program.equations))))
    np.testing.assert_array_equal(to_variable(program, origin, move(w)), w)

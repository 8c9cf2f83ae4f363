import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import (
    DenseNetwork,
    NormedNetwork,
    ResidualNetwork,
    SeparableNetwork,
    assert_masked_equals_slim,
    images,
    random_gates,
    random_variables,
)

from rlprune_jax import trace_graph
from rlprune_jax.graph.groups import CONSUMER, FOLLOWER, PRODUCER
from rlprune_jax.models import create_model, model_functions


def groups_of(graph):
    return {group.name: group.size for group in graph.groups}


def frozen_of(graph):
    makers = [axis for axis in graph.frozen if axis.role == PRODUCER]
    return {(axis.path, axis.axis): axis.reason for axis in makers}


def graph_of(module, x):
    return trace_graph(lambda v, x: module.apply(v, x), random_variables(module, x), x)


def zoo_graph(name, shape, **options):
    functions = model_functions(create_model(name, 3, **options))
    x = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(functions.init, jax.random.key(0), x)
    return trace_graph(functions.apply, variables, x)


def two_layers(variables, x):
    return jax.nn.relu(x @ variables["a"] + variables["bias"]) @ variables["b"]


TWO = {"a": jnp.ones((3, 5)), "bias": jnp.ones(5), "b": jnp.ones((5, 2))}


def test_text_of_a_small_graph():
    assert str(graph_of(ResidualNetwork(), images())).splitlines() == [
        "4 groups with 20 units; 1,017 parameters, 12,282 MACs per example",
        "  stem       4 units  made by outer0/kernel[3], stem/kernel[3]; with "
        "batch_stats/BatchNorm_1/mean[0], batch_stats/BatchNorm_1/var[0], "
        "batch_stats/stem_norm/mean[0], batch_stats/stem_norm/var[0], BatchNorm_1/bias[0], "
        "BatchNorm_1/scale[0], outer0/bias[0], stem/bias[0], stem_norm/bias[0], "
        "stem_norm/scale[0]; read by inner0/kernel[2], inner1/kernel[2], shortcut1/kernel[2]",
        "  inner0     5 units  made by inner0/kernel[3]; with batch_stats/BatchNorm_0/mean[0], "
        "batch_stats/BatchNorm_0/var[0], BatchNorm_0/bias[0], BatchNorm_0/scale[0], "
        "inner0/bias[0]; read by outer0/kernel[2]",
        "  inner1     5 units  made by inner1/kernel[3]; with batch_stats/BatchNorm_2/mean[0], "
        "batch_stats/BatchNorm_2/var[0], BatchNorm_2/bias[0], BatchNorm_2/scale[0], "
        "inner1/bias[0]; read by outer1/kernel[2]",
        "  outer1     6 units  made by outer1/kernel[3], shortcut1/kernel[3]; with "
        "batch_stats/BatchNorm_3/mean[0], batch_stats/BatchNorm_3/var[0], "
        "batch_stats/BatchNorm_4/mean[0], batch_stats/BatchNorm_4/var[0], BatchNorm_3/bias[0], "
        "BatchNorm_3/scale[0], BatchNorm_4/bias[0], BatchNorm_4/scale[0], outer1/bias[0], "
        "shortcut1/bias[0]; read by head/kernel[0]",
        "frozen:",
        "  head/kernel[1] 3 units: an output of the function",
        "  and 12 other axes; graph.report() says why of each",
    ]


def test_slots_of_a_plain_function_on_a_dict():
    (group,) = trace_graph(two_layers, TWO, jnp.ones((1, 3))).groups
    assert (group.name, group.size, group.first) == ("a", 5, 0)
    assert {(slot.path, slot.axis, slot.role) for slot in group.slots} == {
        ("a", 1, PRODUCER),
        ("bias", 0, FOLLOWER),
        ("b", 0, CONSUMER),
    }
    for slot in group.slots:
        np.testing.assert_array_equal(slot.indices, np.arange(5)[:, None])


def test_a_flatten_gives_each_unit_its_positions():
    def apply(v, x):
        return (x @ v["a"]).reshape(x.shape[0], -1) @ v["b"]

    graph = trace_graph(apply, {"a": jnp.ones((3, 2)), "b": jnp.ones((8, 2))}, jnp.ones((1, 4, 3)))
    (slot,) = graph.group("a").slots_of(CONSUMER)
    np.testing.assert_array_equal(slot.indices, [[0, 2, 4, 6], [1, 3, 5, 7]])
    assert "b[0] x4" in str(graph)


def test_mlp_and_cnn():
    assert groups_of(zoo_graph("mlp", (1, 4, 4, 1), widths=(5, 6))) == {"dense1": 5, "dense2": 6}
    graph = zoo_graph("cnn", (2, 8, 8, 1), widths=(3, 4, 5))
    assert groups_of(graph) == {"conv1": 3, "conv2": 4, "conv3": 5}
    assert frozen_of(graph) == {("params/head/kernel", 1): "an output of the function"}


@pytest.mark.parametrize(("depth", "convolutions"), [(11, 8), (13, 10), (16, 13), (19, 16)])
def test_vgg_has_one_group_per_convolution(depth, convolutions):
    graph = zoo_graph(f"vgg{depth}", (1, 32, 32, 3), width=1 / 16)
    assert list(graph.names) == [f"conv{i + 1}" for i in range(convolutions)]
    assert set(graph.sizes) == {4, 8, 16, 32}
    assert [len(group.slots) for group in graph.groups] == [7] * convolutions
    assert [layer.name for layer in graph.layers] == [*graph.names, "head"]


def test_concatenation_keeps_groups_apart():
    graph = graph_of(DenseNetwork(), images())
    assert groups_of(graph) == {"conv0": 3, "conv1": 4, "conv2": 5}
    # conv0 comes after two input channels in all that read it.
    slots = {slot.path: slot.indices[:, 0].tolist() for slot in graph.group("conv0").slots}
    assert slots["params/conv1/kernel"] == slots["params/head/kernel"] == [2, 3, 4]


def test_depthwise_ties_in_to_out_and_grouped_ties_the_groups():
    graph = graph_of(SeparableNetwork(), images())
    assert groups_of(graph) == {"expand": 4, "project": 3, "grouped": 4}
    roles = {(slot.path, slot.axis): slot.role for slot in graph.group("expand").slots}
    assert roles["params/depthwise/kernel", 3] == FOLLOWER
    assert roles["params/project/kernel", 2] == CONSUMER
    (maker,) = graph.group("project").slots_of(PRODUCER)
    np.testing.assert_array_equal(maker.indices, [[0, 3], [1, 4], [2, 5]])


def test_group_norm_prunes_whole_norm_groups_and_layer_norm_single_units():
    graph = graph_of(NormedNetwork(), images(size=1)[:, 0, 0])
    assert groups_of(graph) == {"grouped": 3, "whole": 5, "free": 7}
    assert graph.group("grouped").slots_of(PRODUCER)[0].indices.tolist() == [[0, 1], [2, 3], [4, 5]]


def test_dropout_in_train_mode_prunes_the_same():
    module, x = NormedNetwork(), images(size=1)[:, 0, 0]
    variables = random_variables(module, x)

    def train(v, x, key):
        return module.apply(v, x, train=True, rngs={"dropout": key})

    graph = trace_graph(train, variables, x, jax.random.key(0))
    assert groups_of(graph) == {"grouped": 3, "whole": 5, "free": 7}


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_batch_size_changes_nothing(batch):
    reference, graph = (graph_of(ResidualNetwork(), images(size)) for size in (3, batch))
    assert str(graph) == str(reference)


def factored(h):
    return h + jnp.linalg.cholesky(h[:, :, None] * h[:, None, :]).sum((1, 2))[:, None]


@pytest.mark.parametrize(
    ("name", "function"),
    [
        (
            "passes through 'while', a loop of unknown length,",
            lambda h: jax.lax.while_loop(lambda h: h.sum() > 9, jnp.tanh, h),
        ),
        (
            "passes through 'pure_callback', which runs on the host",
            lambda h: jax.pure_callback(np.tanh, h, h, vmap_method="expand_dims"),
        ),
        ("passes through 'cholesky', which the graph does not know", factored),
        ("mixed by 'top_k'", lambda h: jax.lax.top_k(h, 5)[0]),
        ("mixed by 'fft'", lambda h: jnp.fft.fft(h).real),
        ("written in places by 'scatter'", lambda h: h.at[:, 0].set(0.0)),
        ("read whole by 'argmax'", lambda h: h + jnp.argmax(h, axis=-1, keepdims=True)),
    ],
)
def test_what_the_graph_cannot_see_through_freezes_and_says_so(name, function):
    def apply(v, x):
        return function(jnp.tanh(x @ v["a"])) @ v["b"] @ v["c"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 4)), "c": jnp.ones((4, 2))}
    graph = trace_graph(apply, variables, jnp.ones((2, 3)))
    assert groups_of(graph) == {"b": 4}
    reason = frozen_of(graph)["a", 1]
    # The primitive, and the line of the function that holds it.
    assert re.fullmatch(rf"{name} at test_trace\.py:\d+ \((<lambda>|factored)\)", reason)
    assert reason in str(graph)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda h: jnp.sort(h, axis=-1), "mixed by 'sort'"),
        (lambda h: jnp.cumsum(h, axis=-1), "mixed by 'cumsum'"),
        (lambda h: jnp.diagonal(h[:, :, None] * h[:, None, :], axis1=1, axis2=2), "'gather'"),
        (
            lambda h: jax.lax.reduce_window(h, -jnp.inf, jax.lax.max, (1, 3), (1, 1), "SAME"),
            "pooled by 'reduce_window_max'",
        ),
    ],
)
def test_what_reads_several_units_freezes_with_the_reason(function, reason):
    def apply(v, x):
        return function(x @ v["a"]) @ v["b"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    with pytest.raises(ValueError, match="every axis is frozen") as error:
        trace_graph(apply, variables, jnp.ones((2, 3)))
    assert reason in str(error.value) and "an output of the function" in str(error.value)


def test_one_layer_has_nothing_to_prune():
    with pytest.raises(ValueError, match=r"a\[1\] 2 units: an output of the function"):
        trace_graph(lambda v, x: x @ v["a"], {"a": jnp.ones((3, 2))}, jnp.ones((1, 3)))


@pytest.mark.parametrize("inputs", [(), (jnp.float32(1),), (jnp.ones((0, 3)),)])
def test_inputs_without_a_batch_are_refused(inputs):
    with pytest.raises(ValueError, match="a batch of at least one"):
        trace_graph(
            lambda v, *x: v["a"] @ v["b"], {"a": jnp.ones((3, 2)), "b": jnp.ones((2, 2))}, *inputs
        )


def test_equal_names_are_numbered():
    def apply(v, x):
        h = jnp.tanh(x @ v["m"]["first"])
        return jnp.tanh(h @ v["m"]["second"]) @ v["out"]

    variables = {
        "m": {"first": jnp.ones((3, 4)), "second": jnp.ones((4, 5))},
        "out": jnp.ones((5, 2)),
    }
    assert groups_of(trace_graph(apply, variables, jnp.ones((1, 3)))) == {"m": 4, "m#2": 5}


def test_an_unknown_group_name_lists_those_there_are():
    with pytest.raises(KeyError, match="group 'z' is not in the graph; it has a"):
        trace_graph(two_layers, TWO, jnp.ones((1, 3))).group("z")


def test_python_control_flow_on_values_fails_with_jax_own_words():
    def apply(v, x):
        return jnp.tanh(x @ v["a"]) @ v["b"] if x.sum() > 0 else x @ v["a"] @ v["b"]

    with pytest.raises(jax.errors.TracerBoolConversionError, match="boolean"):
        trace_graph(apply, TWO, jnp.ones((1, 3)))


def test_ignored_paths_keep_their_shapes_and_say_so():
    module, x = ResidualNetwork(), images()
    variables = random_variables(module, x)

    def apply(v, x):
        return module.apply(v, x)

    graph = trace_graph(apply, variables, x, ignore=[r"inner\d/kernel", "params/stem/"])
    assert groups_of(graph) == {"outer1": 6}
    frozen = frozen_of(graph)
    assert frozen["params/inner1/kernel", 3] == "ignored by 'inner\\\\d/kernel'"
    # A residual sum ties it to what is ignored.
    assert frozen["params/outer0/kernel", 3] == "ignored by 'inner\\\\d/kernel'"
    # One expression may be given without a list; what reads its units is ignored with it.
    assert groups_of(trace_graph(apply, variables, x, ignore="head")) == {
        "stem": 4,
        "inner0": 5,
        "inner1": 5,
    }
    gates = random_gates(graph, 0)
    assert_masked_equals_slim(apply, graph, variables, gates, x, gradient=False)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("conv[", r"'conv\[' is no regular expression"),
        ("z9", "'z9' matches none of the paths a, b"),
    ],
)
def test_ignore_must_mean_something(expression, message):
    with pytest.raises(ValueError, match=f"ignore={message}"):
        trace_graph(two_layers, TWO, jnp.ones((1, 3)), ignore=[expression])


def test_what_nothing_reads_is_not_frozen_silently():
    def apply(v, x):
        h = jnp.tanh(x @ v["a"])
        return h @ v["b"] + jnp.max(jnp.sort(x @ v["unused"])) * 0

    def dropped(v, x):
        _ = x @ v["unused"]
        return jnp.tanh(x @ v["a"]) @ v["b"]

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2)), "unused": jnp.ones((3, 4))}
    graph = trace_graph(apply, variables, jnp.ones((1, 3)))
    assert frozen_of(graph)["unused", 1].startswith("mixed by 'sort'")
    graph = trace_graph(dropped, variables, jnp.ones((1, 3)))
    assert frozen_of(graph)["unused", 1] == "no convolution, dot or reduction reads it"
    assert groups_of(graph) == {"a": 5}


def test_embeddings_are_pruned_with_what_reads_them():
    def apply(v, x):
        h = v["table"][x] + v["positions"]
        return jnp.tanh(h @ v["a"]).mean(1) @ v["b"]

    variables = {
        "table": jnp.ones((11, 8)),
        "positions": jnp.ones((4, 8)),
        "a": jnp.ones((8, 5)),
        "b": jnp.ones((5, 2)),
    }
    graph = trace_graph(apply, variables, jnp.zeros((2, 4), int))
    assert groups_of(graph) == {"table": 8, "a": 5}
    roles = {(slot.path, slot.axis): slot.role for slot in graph.group("table").slots}
    assert roles == {
        ("table", 1): PRODUCER,
        ("positions", 1): FOLLOWER,
        ("a", 0): CONSUMER,
    }
    # A lookup multiplies nothing.
    assert [layer.name for layer in graph.layers] == ["a", "b"]


def test_tied_weights_are_one_set_of_units():
    def apply(v, x):
        h = v["table"][x]
        h = h + jnp.tanh(h @ v["a"]) @ v["a"].T
        return h @ v["table"].T

    variables = {"table": jnp.ones((11, 8)), "a": jnp.ones((8, 5))}
    graph = trace_graph(apply, variables, jnp.zeros((2, 4), int))
    assert groups_of(graph) == {"table": 8, "a": 5}
    assert frozen_of(graph)["table", 0].startswith("looked up by 'gather'")


def test_a_sum_over_a_vmapped_axis_reads_that_axis_alone():
    def centred(variables, x):
        def one(x):
            hidden = x @ variables["a"]
            return (hidden - jax.lax.pmean(hidden, "batch")) @ variables["b"]

        return jax.vmap(one, axis_name="batch")(x)

    variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    assert groups_of(trace_graph(centred, variables, jnp.ones((4, 3)))) == {"a": 5}


def test_state_that_only_training_reads_is_cut_along():
    def apply(variables, x):
        return (x @ variables["params"]["a"] - variables["state"]["mean"]) @ variables["params"][
            "b"
        ]

    def apply_train(variables, x, key=None):
        hidden = x @ variables["params"]["a"]
        moved = 0.9 * variables["state"]["hidden"] + 0.1 * hidden.mean(0)
        state = {**variables["state"], "hidden": moved, "mean": variables["state"]["mean"] + moved}
        return (hidden - hidden.mean(0)) @ variables["params"]["b"], {"state": state}

    params = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
    state = {"mean": jnp.ones(5), "hidden": jnp.ones(5), "far": jnp.ones(5)}
    variables, x = {"params": params, "state": state}, jnp.ones((4, 3))
    alone = trace_graph(apply, variables, x)
    assert (alone.owners["state/hidden"][0] == -1).all()
    graph = trace_graph(apply, variables, x, apply_train=apply_train)
    np.testing.assert_array_equal(graph.owners["state/hidden"][0], np.arange(5))
    np.testing.assert_array_equal(graph.owners["state/mean"][0], np.arange(5))
    assert (graph.owners["state/far"][0] == -1).all()

"""Prunability matrix: every network of the zoo, what of it can be pruned, and that it is right."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from networks import random_gates, random_like
from numpy_evaluation import compiled, evaluate, traced_once

from rlprune_jax import compact, count_macs, count_params, gated, respecialise, trace_graph
from rlprune_jax.graph.groups import PRODUCER
from rlprune_jax.graph.primitives import CONVOLUTIONS, convolution_axes
from rlprune_jax.graph.program import trace_program
from rlprune_jax.models import create_model, model_functions, model_names
from rlprune_jax.workflow.sources import LANGUAGE_MODELS

OUTPUT = "an output of the function"
LOOKUP = "looked up by 'gather'"
# Name -> options, number of groups, frozen axes with the beginning of the reason. Groups of a
# residual network: one per stage for the stream, one per block for each convolution inside; of
# thin networks, whose shortcuts pad, the streams of later stages hold those of earlier ones.
MATRIX = {
    "mlp": ({"widths": (6, 5)}, 2, {"head": OUTPUT}),
    "cnn": ({"widths": (4, 5, 6)}, 3, {"head": OUTPUT}),
    "vgg11": ({"width": 1 / 16, "pools": 4}, 8, {"head": OUTPUT}),
    "resnet20": ({"width": 1 / 4}, 3 + 9, {"head": OUTPUT}),
    "resnet18": ({"width": 1 / 16}, 4 + 8, {"head": OUTPUT}),
    "resnet50": ({"width": 1 / 32, "stem": "imagenet"}, 1 + 4 + 32, {"head": OUTPUT}),
    "preact_resnet18": ({"width": 1 / 16}, 4 + 8, {"head": OUTPUT}),
    "wide_resnet28x8": (
        {"depth": 10, "widen_factor": 2, "width": 1 / 8},
        1 + 3 + 3,
        {"head": OUTPUT},
    ),
    # Stem, inner widths of 16 blocks, the narrow stream of every stage, last; the first block's
    # depthwise convolution goes with the stem.
    "mobilenet": ({"width": 1 / 8}, 1 + 16 + 7 + 1, {"head": OUTPUT}),
    "densenet": ({"depth": 16, "growth": 4}, 1 + 2 * 6 + 2, {"head": OUTPUT}),
    # The residual stream; of each block heads, queries and keys, values, hidden units.
    "vit_tiny": ({"depth": 2, "width": 1 / 16}, 1 + 2 * 4, {"head": OUTPUT}),
    "gpt": ({"depth": 2, "width": 1 / 8}, 1 + 2 * 4, {"embed": LOOKUP}),
    # Of its layers key-value heads, queries of each, pairs of channels of queries and keys, values,
    # hidden units; the same in all of them.
    "llama": ({"depth": 2, "width": 1 / 4}, 1 + 5, {"embed": LOOKUP}),
    # The stream of each stage and hidden units of each block.
    "convnext_tiny": ({"depths": (1, 1), "widths": (5, 7)}, 2 + 2, {"head": OUTPUT}),
}
# Too deep to run here, and of the same blocks.
TRACED = {
    "vgg16": ({"width": 1 / 16}, 13),
    "resnet32": ({}, 3 + 15),
    "resnet44": ({}, 3 + 21),
    "resnet56": ({"shortcut": "projection"}, 3 + 27),
    "resnet110": ({}, 3 + 54),
    "resnet34": ({}, 4 + 16),
    "wide_resnet28x8": ({}, 1 + 3 + 12),
    "resnet50": ({}, 1 + 4 + 32),
}


def network_of(name, size=16, **options):
    functions = model_functions(create_model(name, 3, **options))
    x = jax.ShapeDtypeStruct((4, size, size, 3), jnp.float32)
    if name in LANGUAGE_MODELS:
        x = jax.ShapeDtypeStruct((4, 6), jnp.int32)
    return functions, x, jax.eval_shape(functions.init, jax.random.key(0), x)


def check_frozen(graph, expected):
    """Every out-axis of weights has units or is frozen, for no other reason than expected."""
    made = [each for each in graph.frozen if each.role == PRODUCER]
    frozen = {(each.path, each.axis): each.reason for each in made}
    reasons = {
        path.removeprefix("params/").rsplit("/", 1)[0]: reason.partition(" at ")[0]
        for (path, _), reason in frozen.items()
    }
    assert reasons == expected
    for path, shape in graph.variables.items():
        if len(shape.shape) > 1 and path.endswith("kernel"):
            last = len(shape.shape) - 1
            assert ((graph.owners[path][last] >= 0).all()) != ((path, last) in frozen)
    # No axis is left out: it has units, or stands among the frozen ones with a reason.
    listed = {(each.path, each.axis): each.size for each in graph.frozen if each.reason}
    unowned = {
        (path, axis): int((owners < 0).sum())
        for path, axes in graph.owners.items()
        for axis, owners in enumerate(axes)
        if len(owners) > 1 and (owners < 0).any()
    }
    assert listed == unowned


def test_every_network_is_in_the_matrix():
    # vgg13 and vgg19 are vgg11 and vgg16 with other depths; one layer has nothing to prune.
    assert {"vgg13", "vgg19", "linear"} | set(MATRIX) | set(TRACED) == set(model_names())


def test_one_layer_has_nothing_to_prune_and_says_so():
    functions, x, shapes = network_of("linear")
    with pytest.raises(ValueError, match="every axis is frozen"):
        trace_graph(functions.apply, shapes, x)


@pytest.mark.parametrize("name", MATRIX)
def test_masked_equals_slim(name):
    options, groups, frozen = MATRIX[name]
    functions, x, shapes = network_of(name, **options)
    variables = random_like(shapes)
    graph = trace_graph(functions.apply, variables, x)
    assert len(graph.groups) == groups
    check_frozen(graph, frozen)

    generator = np.random.default_rng(0)
    if name in LANGUAGE_MODELS:
        x = generator.integers(0, 3, x.shape, np.int32)
    else:
        x = generator.standard_normal(x.shape, np.float32)
    for function in (functions.apply, functions.apply_train):
        network = traced_once(function, variables, x)
        masked = None
        for seed in range(3):
            gates = random_gates(graph, seed)
            slim = compact(graph, variables, gates)
            leaves = jax.tree.leaves(slim["params"])
            assert sum(map(np.size, leaves)) == count_params(graph, gates)
            if masked is None:
                masked = compiled(gated(network, graph), variables, gates, x)
            wide = masked(variables, gates, x)
            thin = evaluate(respecialise(network, graph, gates), slim, x)
            if isinstance(wide, tuple):
                updates = compact(graph, {**variables, **wide[1]}, gates)
                wide = (wide[0], {key: updates[key] for key in wide[1]})
            assert jax.tree.structure(wide) == jax.tree.structure(thin)
            for a, b in zip(jax.tree.leaves(wide), jax.tree.leaves(thin), strict=True):
                # ``compact`` rounds updated statistics to float32; all else is in double precision.
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-6 * (1 + np.abs(a).max()))


def macs_by_xla(function, *args):
    """Half of the flops that XLA counts for the convolutions and dots of a function."""
    program, _ = trace_program(function, *args)
    calls = Counter()
    sources = {}
    for equation in program.equations:
        if equation.name != "dot_general" and equation.name not in CONVOLUTIONS:
            continue
        shapes = [list(each.aval.shape) for each in equation.source.invars]
        changed = {}
        if equation.name in CONVOLUTIONS:
            # XLA leaves out products with padding; networks are counted with them.
            image, _, _ = convolution_axes(equation.name, equation.params)
            for axis, (low, high) in zip(image[2:], equation.params["padding"], strict=True):
                shapes[0][axis] += low + high
            changed["padding"] = ((0, 0),) * len(image[2:])
        key = str((shapes, {**equation.params, **changed}))
        calls[key] += 1
        sources[key] = equation, shapes, changed

    def flops(equation, shapes, changed):
        arrays = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
        lowered = jax.jit(lambda *operands: equation.bind(*operands, **changed)).lower(*arrays)
        return lowered.cost_analysis()["flops"]

    return sum(flops(*sources[key]) * count for key, count in calls.items()) / 2


@pytest.mark.parametrize("name", MATRIX)
def test_macs_are_half_the_flops_that_xla_counts(name):
    options, _, _ = MATRIX[name]
    if name != "mlp" and name not in LANGUAGE_MODELS:
        options = options | {"conv_general_dilated": jax.lax.conv_general_dilated}
    if name == "llama":
        options = options | {"scan": False}  # below only what lies in no loop is counted
    functions, x, variables = network_of(name, **options)
    graph = trace_graph(functions.apply, variables, x)
    dense = macs_by_xla(functions.apply, variables, x)
    assert count_macs(graph) * 4 == pytest.approx(dense, rel=0.01)
    gates = random_gates(graph, 0)
    slim = compact(graph, random_like(variables), gates)
    thin = macs_by_xla(respecialise(functions.apply, graph, gates), slim, x)
    assert count_macs(graph, gates) * 4 == pytest.approx(thin, rel=0.01)
    assert thin < dense


@pytest.mark.parametrize("name", TRACED)
def test_deep_networks_are_grouped(name):
    options, groups = TRACED[name]
    functions, x, variables = network_of(name, size=32, **options)
    graph = trace_graph(functions.apply, variables, x)
    assert len(graph.groups) == groups
    check_frozen(graph, {"head": OUTPUT})

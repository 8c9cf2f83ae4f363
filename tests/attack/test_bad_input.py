"""Wrong arguments of public functions: each is refused at the door, by name and value.

A door is a function with everything right but for one argument, which gets one wrong value after
another. Nothing here compiles more than a few small networks need.
"""

import functools
import re
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from small import mlp_apply, small_mlp

import rlprune_jax as rp
from rlprune_jax import (
    costs,
    export,
    models,
    report,
    runs,
    search,
    sparsity,
    study,
    training,
    units,
    workflow,
)
from rlprune_jax import graph as graphs

NAN, INF = float("nan"), float("inf")
KEY = jax.random.key(0)
OLD_KEY = jax.random.PRNGKey(0)
NUMBERS = (NAN, INF, -1.0, "a", None, [1, 2])
COUNTS = (0, -1, 1.5, "a", None)
NO_COUNTS = (-1, 1.5, "a", None)

RAW = re.compile(
    "not supported between|object has no attribute|is not subscriptable|not iterable|has no len"
    "|positional argument|cannot be interpreted|ufunc|indices must be|unsupported operand"
    "|unhashable|broadcast"
)
"""Words of Python, NumPy and JAX that tell a caller nothing about the argument."""


def how_refused(call):
    """Return what is wrong with how a call is refused, or "" where it is refused well."""
    try:
        found = call()
    except (ValueError, TypeError, OSError, RuntimeError, KeyError) as error:
        message = " ".join(str(error).split())
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if "rlprune_jax" not in Path(last).parts:
            return f"fails in {last}: {type(error).__name__}: {message[:200]}"
        if RAW.search(message) or len(message) < 12:
            return f"says {type(error).__name__}: {message[:200]}"
        return ""
    except BaseException as error:
        return f"fails with {type(error).__name__}: {error}"
    return f"is accepted: {str(found)[:80]!r}"


def says(call, *words):
    try:
        call()
    except Exception as error:
        return any(word in str(error) for word in words)
    return True


class Door:
    """One function with everything right, and wrong values of its arguments."""

    def __init__(self, name, call, spoken=None, /, **wrong):
        self.name, self.call, self.wrong = name, call, wrong
        # How a message calls an argument where it is not by its name.
        self.spoken = spoken or {}

    def __len__(self):
        return sum(map(len, self.wrong.values()))

    def failures(self):
        for argument, values in self.wrong.items():
            for value in values:
                call = functools.partial(self.call, **{argument: value})
                if wrong := how_refused(call):
                    yield f"{self.name}({argument}={str(value)[:60]}) {wrong}"
                elif not says(call, argument, *self.spoken.get(argument, ())):
                    try:
                        call()
                    except Exception as error:
                        yield f"{self.name}({argument}={str(value)[:60]}) is not named: {error}"


class Case:
    """One wrong call of its own."""

    def __init__(self, name, call, *words):
        self.name, self.call, self.words = name, call, words

    def __len__(self):
        return 1

    def failures(self):
        if wrong := how_refused(self.call):
            yield f"{self.name} {wrong}"
        elif self.words and not says(self.call, *self.words):
            yield f"{self.name} does not say {self.words}"


def sparsity_doors():
    tree = {"b": jnp.ones(3), "k": jnp.arange(1.0, 7.0).reshape(2, 3)}
    mask = rp.make_mask(tree)
    scores = jax.tree.map(jnp.asarray, {"b": jnp.ones(3), "k": jnp.arange(6.0).reshape(2, 3)})
    exponents = {
        "p": (0, -1, NAN, INF, "a", None, [0.5, 0.5], 1.0, 2.0, True),
        "q": (0, NAN, INF, "a", None, [1.0], 0.5, True),
    }
    axes = ("a", 1.5, None, 99)
    rising = rp.cubic_schedule(0.5, 2)
    for function in (rp.pq_index, rp.pq_bound):
        name = function.__name__
        whole = functools.partial(function, tree, mask)
        yield Door(name, whole, **exponents, scope=("x", None, 3, ""), unit_axis=axes)
        yield Case(f"{name} of nothing", lambda f=function: f({}), "prunable")
        yield Case(f"{name} of None", lambda f=function: f(None), "prunable")
        yield Case(f"{name} of integers", lambda f=function: f({"k": jnp.ones((2, 2), int)}))
        yield Case(f"{name} of text", lambda f=function: f({"k": "a"}), "'k'")
        masks = {
            "of another tree": {"z": jnp.ones((2, 3), bool)},
            "of another shape": {"b": jnp.array(True), "k": jnp.ones((3, 3), bool)},
            "of floats": {"b": jnp.array(True), "k": jnp.ones((2, 3))},
            "of nothing": {"b": jnp.array(True), "k": jnp.array(True)},
        }
        for what, wrong in masks.items():
            yield Case(f"{name} mask {what}", lambda f=function, m=wrong: f(tree, m), "mask")
    yield Door("pq_bound", functools.partial(rp.pq_bound, tree, mask), eta_r=NUMBERS)
    grid = functools.partial(rp.pq_index_grid, tree, mask)
    yield Door(
        "pq_index_grid",
        lambda p=(0.5,), q=(1.0,): grid(p=p, q=q),
        p=([], [0.5, NAN], 0.5, None, "a", [[0.5]], [True]),
        q=([], [NAN], [INF], [-1.0], 0.4, None, "a", [[1.0]]),
    )
    yield Door("gini", functools.partial(rp.gini, tree, mask), scope=("x",), unit_axis=axes)
    yield Door(
        "sap",
        rp.sap,
        **exponents,
        eta_r=NUMBERS,
        gamma=(0, *NUMBERS),
        beta=(0, 1.5, *NUMBERS),
        scope=("x", None, []),
        unit_axis=axes,
        score=(None, 3, "a"),
    )
    for function in (rp.lottery_ticket, rp.one_shot):
        yield Door(
            function.__name__,
            function,
            rate=(1.5, True, *NUMBERS),
            scope=("x", None),
            unit_axis=axes,
            score=(None, 3, "a"),
        )
    yield Door(
        "random_pruning",
        lambda rate=0.2, scope="global", key=KEY, **rest: rp.random_pruning(
            rate, scope, key=key, **rest
        ),
        rate=(1.5, *NUMBERS),
        scope=("x",),
        unit_axis=axes,
        key=(0, None, OLD_KEY, "a", jax.random.split(KEY)),
    )
    yield Door(
        "gradual",
        lambda schedule=rising, **rest: rp.gradual(schedule, **rest),
        schedule=(None, 0.5, "a"),
        scope=("x",),
        score=(None, 3),
        unit_axis=axes,
    )
    for value in (1.5, -0.1, NAN, "a", [0.1, 0.2]):

        def update(value=value):
            pruner = rp.gradual(lambda step: value)
            return pruner.update(tree, mask, pruner.init(tree, mask))

        yield Case(f"gradual to {value}", update, "schedule(step)")
    yield Door(
        "cubic_schedule",
        lambda final_sparsity=0.5, updates=5, initial=0.0: rp.cubic_schedule(
            final_sparsity, updates, initial
        ),
        final_sparsity=(-0.1, 1.5, NAN, "a", None, [0.5]),
        updates=(*COUNTS, True),
        initial=(0.9, NAN, -1, "a", None),
    )
    yield Door(
        "drop_smallest",
        lambda scores=scores, mask=mask, count=1, **rest: rp.drop_smallest(
            scores, mask, count, **rest
        ),
        {"scores": ("params", "mask", "scores at")},
        scores=({"z": 1.0}, {"b": jnp.ones(3), "k": jnp.ones((2, 3), int)}),
        mask=(None, {"z": jnp.array(True)}, {"b": jnp.ones(3), "k": jnp.ones((2, 3))}),
        count=(-1, 7, 1.5, NAN, "a", None, {"k": 1}, [1, 2], True),
        scope=("x",),
        ties=("x", None),
        unit_axis=axes,
    )
    yield Door(
        "make_mask",
        lambda params=tree, prunable=None: rp.make_mask(params, prunable),
        {"params": ("prunable", "leaves")},
        params=(None, {}, [], {"k": "a"}, ["a", "b"], 3, {"k": [1, 2]}),
        prunable=("(", "zzz", 3, ["k"], b"k", {"k"}, lambda p, leaf: "yes", lambda p, leaf: False),
    )
    yield Door(
        "apply_mask",
        lambda mask: rp.apply_mask(tree, mask),
        mask=(
            None,
            {"z": jnp.array(True)},
            {"b": jnp.array(True), "k": jnp.ones((3, 2), bool)},
            {"b": jnp.array(True), "k": jnp.ones((2, 3))},
            {"b": "a", "k": "a"},
        ),
    )
    for function in (rp.density_report, sparsity.total_density, rp.masked_updates):
        yield Door(function.__name__, function, mask=(None, tree, {"k": "a"}, {}))
    yield Case(
        "intersect_masks of other trees", lambda: sparsity.intersect_masks(mask, {"z": True})
    )
    yield Case("intersect_masks of floats", lambda: sparsity.intersect_masks(tree, tree), "mask")
    yield Case("intersect_masks of None", lambda: sparsity.intersect_masks(None, None), "mask")
    yield Door("count_live", functools.partial(sparsity.count_live, mask), scope=("x",))
    yield Door(
        "every",
        lambda steps=2, **rest: sparsity.every(steps, **rest),
        steps=(*COUNTS, NAN, True),
        begin=NO_COUNTS,
        end=(-1, 0, 1.5, "a"),
    )
    pruner, due = rp.sap(), sparsity.every(2)
    yield Case("masked_updates without due", lambda: rp.masked_updates(mask, pruner), "due")
    yield Case(
        "masked_updates without pruner", lambda: rp.masked_updates(mask, None, due), "pruner"
    )
    yield Case("masked_updates due=3", lambda: rp.masked_updates(mask, pruner, 3), "due=3")
    yield Case("masked_updates pruner='a'", lambda: rp.masked_updates(mask, "a", due), "pruner='a'")
    state = optax.sgd(0.1).init(tree)
    yield Case("replace_mask without one", lambda: rp.replace_mask(state, tree, mask))
    yield Case("mask_moments of another tree", lambda: rp.mask_moments(state, {"z": 1.0}, mask))


def wrong_gates(graph):
    """Gates that are wrong in every way, by what is wrong."""
    right = rp.ones_gates(graph)
    return {
        "None": None,
        "a list": [1],
        "text": "a",
        "nothing": {},
        "an unknown group": {**right, "z": jnp.ones(2)},
        "a short row": {**right, "a": jnp.ones(3)},
        "NaN": {**right, "a": jnp.full(8, NAN)},
        "2": {**right, "a": jnp.full(8, 2.0)},
        "-1": {**right, "a": jnp.full(8, -1.0)},
        "a list of numbers": {**right, "a": [1.0] * 8},
        "a scalar": {**right, "a": jnp.array(1.0)},
        "texts": {**right, "a": np.array(["a"] * 8)},
        "None of a group": {**right, "a": None},
    }


VALUES = ("NaN", "2", "-1")
"""What is not looked at where gates may be traced: ``kept_counts`` says how they count."""


def graph_doors():
    small = small_mlp()
    graph, variables, ones = small.graph, small.variables, small.ones
    x = jnp.ones((2, 4))
    calls = {
        "compact": lambda gates: rp.compact(graph, variables, gates),
        "gated": lambda gates: rp.gated(mlp_apply, graph)(variables, gates, x),
        "respecialise": lambda gates: rp.respecialise(mlp_apply, graph, gates)(variables, x),
        "count_params": lambda gates: rp.count_params(graph, gates),
        "count_macs": lambda gates: rp.count_macs(graph, gates),
        "round_gates": lambda gates: rp.round_gates(graph, gates),
        "widths": lambda gates: units.widths(graph, gates),
        "kept_counts": lambda gates: units.kept_counts(graph, gates),
        "fold_means": lambda gates: units.fold_means(mlp_apply, graph, variables, gates, (x,)),
        "check_gates": lambda gates: graphs.check_gates(graph, gates),
    }
    # None keeps every unit there, and of slim variables the widths tell.
    optional = ("count_params", "count_macs", "respecialise")
    for name, call in calls.items():
        for what, gates in wrong_gates(graph).items():
            if (what == "None" and name in optional) or (what in VALUES and name == "kept_counts"):
                continue
            yield Case(f"{name} gates {what}", functools.partial(call, gates), "gates")
    zeros = jax.tree.map(jnp.zeros_like, ones)
    soft = {name: jnp.full_like(gate, 0.5) for name, gate in ones.items()}
    fewer = {**ones, "a": ones["a"].at[0].set(0)}
    yield Case("compact to nothing", lambda: rp.compact(graph, variables, zeros), "prunes all")
    yield Case("compact by soft gates", lambda: rp.compact(graph, variables, soft), "0 or 1")
    traced = jax.jit(lambda gates: rp.compact(graph, variables, gates))
    yield Case("compact by traced gates", lambda: traced(ones), "traced")
    for wrong in (None, "a", {"a": jnp.ones(3)}, {**variables, "a": jnp.ones((4, 9))}):
        yield Case("compact variables", lambda v=wrong: rp.compact(graph, v, ones), "variable")
    other = {"q": jnp.ones((3, 3))}
    wider = {**variables, "a": jnp.ones((4, 9))}
    for params in (other, wider):
        state = optax.adam(0.1).init(params)
        cut = functools.partial(rp.compact, graph, variables, fewer, opt_state=state)
        yield Case("compact opt_state of another", cut, "opt_state")
    yield Case(
        "compact opt_state of text", lambda: rp.compact(graph, variables, ones, opt_state="a")
    )
    for wrong in (None, "a", 3, {}):
        yield Case("compact graph", lambda g=wrong: rp.compact(g, variables, ones), "graph=")
        yield Case("ones_gates graph", lambda g=wrong: rp.ones_gates(g), "graph=")
        yield Case("count_params graph", lambda g=wrong: rp.count_params(g), "graph=")
        yield Case("gated graph", lambda g=wrong: rp.gated(mlp_apply, g), "graph=")
        yield Case("respecialise graph", lambda g=wrong: rp.respecialise(mlp_apply, g), "graph=")
    for wrong in (None, "a", 3):
        yield Case("gated apply", lambda f=wrong: rp.gated(f, graph), "apply=")
        yield Case("respecialise apply", lambda f=wrong: rp.respecialise(f, graph), "apply=")
        yield Case("trace_graph apply", lambda f=wrong: rp.trace_graph(f, variables, x), "apply=")
    slim = rp.respecialise(mlp_apply, graph)
    yield Case("respecialise other widths", lambda: slim(wider, x), "'a'")
    masked = rp.gated(mlp_apply, graph)
    yield Case("gated other variables", lambda: masked({"a": jnp.ones((4, 8))}, ones, x))
    yield Door(
        "trace_graph",
        functools.partial(rp.trace_graph, mlp_apply, variables, x),
        ignore=("(", "zzz", 3, [3], ["("], None),
        apply_train=(3, "a"),
        depth_groups=("a", 3, None),
    )
    yield Case(
        "trace_graph empty batch", lambda: rp.trace_graph(mlp_apply, variables, jnp.ones((0, 4)))
    )
    yield Case("trace_graph of text", lambda: rp.trace_graph(mlp_apply, {"a": "b"}, x), "'a'")
    yield Case("trace_graph of nothing", lambda: rp.trace_graph(lambda v, x: x, {}, x))
    yield Case("graph.group unknown", lambda: graph.group("zz"), "zz")


def units_doors():
    small = small_mlp()
    graph, variables, ones = small.graph, small.variables, small.ones
    x = jnp.ones((2, 4))
    numbers = (-1, 1.5, "a", None, True, {"zz": 2}, [1], [1, 2, 3])
    nan = jax.tree.map(lambda gate: gate * NAN, ones)
    short = {**ones, "a": jnp.ones(2)}
    yield Door(
        "round_gates",
        functools.partial(rp.round_gates, graph, ones),
        round_to=(0, *numbers),
        min_keep=(0, *numbers),
        priorities=({"a": jnp.ones(8)}, short, nan, "a", 3, {"a": [1], "b": [1]}),
        towards=("x", None),
    )
    yield Door("keep_first", functools.partial(units.keep_first, graph), widths=numbers)
    yield Door("keep_best", functools.partial(units.keep_best, graph, ones), widths=numbers)
    yield Door(
        "keep_best",
        lambda scores: units.keep_best(graph, scores, 2),
        scores=(None, "a", {}, short, {"zz": jnp.ones(2)}),
    )
    yield Door(
        "smallest_gates", functools.partial(units.smallest_gates, graph), min_keep=(0, *numbers)
    )
    for score in (units.magnitude_scores, units.geometric_median_scores):
        call = functools.partial(score, graph, variables)
        yield Door(score.__name__, call, reduction=("x", None, 3), normaliser=("x", None, 3))
        wrong = functools.partial(score, graph, {"a": jnp.ones(2)})
        yield Case(f"{score.__name__} of another network", wrong, "a_bias")
    magnitudes = functools.partial(units.magnitude_scores, graph, variables)
    yield Door("magnitude_scores", magnitudes, norm=(0, -1, NAN, INF, "a", None, True))
    yield Door(
        "lamp_scores", functools.partial(units.lamp_scores, graph, variables), reduction=("x",)
    )
    yield Door(
        "random_scores",
        functools.partial(units.random_scores, graph),
        key=(0, None, "a", OLD_KEY, jax.random.split(KEY)),
    )
    yield Case("normalise_scores by x", lambda: units.normalise_scores(graph, ones, "x"))
    for what, wrong in {"short": short, "unknown": {"zz": jnp.ones(2)}, "none": {}}.items():
        yield Case(
            f"normalise_scores {what}", lambda s=wrong: units.normalise_scores(graph, s, "sum")
        )
        yield Case(f"group_scores {what}", lambda s=wrong: units.group_scores(graph, s), "scores")
        yield Case(f"isomorphic_scores {what}", lambda s=wrong: units.isomorphic_scores(graph, s))
    yield Case("check_scores NaN", lambda: units.check_scores("mine", nan), "mine")
    yield Door(
        "structured_sap",
        functools.partial(units.structured_sap, graph, variables, ones),
        p=(0, NAN, 2.0, "a"),
        q=(0, INF, "a", 0.5),
        eta_r=(-1, NAN, INF, "a"),
        gamma=(0, NAN, INF, -1, "a"),
        beta=(0, NAN, 2.0, "a"),
    )
    yield Door(
        "group_sparsity",
        functools.partial(units.group_sparsity, graph, variables),
        p=(0, NAN, 2.0),
        eta_r=(-1, NAN),
    )
    for repair in (units.merge_units, units.repair):
        call = functools.partial(repair, mlp_apply, graph, variables, ones, (x,))
        yield Door(repair.__name__, call, ridge=(-1, NAN, "a", None), rows=(0, -1, 1.5, "a"))
        bare = functools.partial(repair, mlp_apply, graph, variables, ones, x)
        yield Case(f"{repair.__name__} of a bare input", bare, "inputs")
    yield Door(
        "RepairMethod",
        lambda kind="ridge", **rest: units.RepairMethod(kind, **rest),
        kind=("x", None),
        ridge=(-1.0, NAN, "a"),
        rows=(0, -1, 1.5, "a"),
    )
    score = functools.partial(units.activation_scores, mlp_apply, graph, variables)
    yield Case("activation_scores of a bare input", lambda: score(x), "inputs")
    yield Case("activation_scores by x", lambda: score((x,), statistic="x"), "statistic")


BUDGETS = (
    *("", "params", "params=", "=0.1", "params=a", "params=0", "params=-1", "params=1.5"),
    *("params=nan", "params=inf", "foo=0.1", "params=0.1kg", "params=10%%", "latency=0", "a:b="),
    *("macs=1e400", "params=101%", "params=1_0", "params= 0.1", "params=0.1x2", "params=0x"),
    *(3, None, 0.1, [], [None], ["params=0.1", "params=0.2"], {"params": 0.1}, True, b"params=1"),
    *(rp.Budget("params", NAN, True), rp.Budget("params", "a", True), rp.Budget("foo", 0.1, True)),
    *(rp.Budget("params", True, True), rp.Budget("params", 2.0, True)),
    rp.Budget("energy", 1.0, False, function=3),
)


def costs_doors():
    small = small_mlp()
    network, graph = small.network, small.graph
    for budget in BUDGETS:
        yield Case(f"parse_budgets({budget!r})", lambda b=budget: costs.parse_budgets(b), "budget")
        yield Case(f"constrain({budget!r})", lambda b=budget: rp.constrain(network, b), "budget")
    for wrong in (None, "a", 3):
        yield Case("constrain network", lambda n=wrong: rp.constrain(n, "params=0.1"), "network=")
    yield Case("constrain options", lambda: rp.constrain(network, "params=0.1", "a"), "options=")

    def with_options(**changed):
        return rp.constrain(network, "params=0.5", costs.CostOptions(**changed))

    yield Door(
        "CostOptions",
        with_options,
        tile=((0, 8), 3, "a", None, (8,), (1.5, 8), costs.Tile(0, 8)),
        levels=((), (0.5,), (NAN, 1.0), (0.5, 2.0), "a", (1.0, 0.5), 3),
        steps=COUNTS,
        programs=COUNTS,
        repeats=COUNTS,
        kv_layers=("(", 3, None),
        time_limit=(0, -1, NAN, INF, "a", None),
        answers=(1, *COUNTS),
        function_asks=COUNTS,
        latency_asks=COUNTS,
    )
    yield Door(
        "measure_latency",
        lambda function=lambda: 0, **rest: costs.measure_latency(function, **rest),
        function=(None, 3, "a"),
        repeats=COUNTS,
        warm_up=COUNTS,
    )
    yield Case("measure_in_turn of nothing", lambda: costs.measure_in_turn([]), "calls")
    table = functools.partial(
        costs.measure_latency_table, mlp_apply, graph, small.variables, jnp.ones((2, 4))
    )
    yield Door(
        "measure_latency_table", table, levels=((), (0.5, 2.0), (NAN, 1.0), "a"), repeats=COUNTS
    )
    yield Door(
        "count_kv_cache_bytes", functools.partial(costs.count_kv_cache_bytes, graph), layers=("(",)
    )
    tiled = functools.partial(costs.count_tiled_macs, graph)
    yield Door("count_tiled_macs", tiled, tile=((0, 8), "a", 3, None, (8,)))
    half = rp.constrain(network, "params=0.5")
    for least in (0, -1, 1.5, "a", {"zz": 1}):
        check = functools.partial(costs.check_reachable, graph, half, least)
        yield Case(f"check_reachable min_keep={least}", check, "min_keep")
    least = rp.constrain(network, "params=0.01")
    yield Case("check_reachable", lambda: costs.check_reachable(graph, least), "params")


def total(masks):
    """A fifth of the units."""
    return masks.sum()[None] / 5


@functools.cache
def problem():
    """Two groups of two and three units."""
    scores, descriptors = [[1.0, 2.0], [3.0, 1.0, 2.0]], [[0.0], [1.0]]
    return search.make_environment([2, 3], scores, descriptors, limits=0.6, cost_fn=total)


def environment_doors():
    right = {
        "sizes": [2, 3],
        "scores": [[1.0, 2.0], [3.0, 1.0, 2.0]],
        "descriptors": [[0.0], [1.0]],
        "limits": 0.6,
    }
    rest = [1.0, 2.0, 3.0]
    yield Door(
        "make_environment",
        lambda **changed: search.make_environment(**{**right, **changed}),
        {"sizes": ("size",)},
        sizes=([], [2, 0], [2, -1], [2, 3.5], [2.0, 3.0], ["a", 3], None, 3, [True, 3], "ab"),
        scores=(
            *([], [[1.0, 2.0]], [[1.0, NAN], rest], [[1.0, INF], rest], [[1.0], [1.0]], "a", None),
            *([["a", "b"], rest], {"z": [1.0, 2.0]}, 3),
        ),
        descriptors=([], [[0.0]], [[NAN], [1.0]], None, "a", [0.0, 1.0], [["a"], ["b"]]),
        limits=([], 0, -1, NAN, INF, "a", None, [[0.5]], [0.5, 0]),
        min_keep=(-1, 1.5, "a", None, [1], {"z": 1}),
        round_to=(0, -1, 1.5, 3.5, "a", None, [1]),
        initial_keep=(0, -1, 1.5, NAN, [0.5], "a"),
        measured=([], [True, True], 3, "a"),
        cost_fn=(
            *(3, "a", lambda m: float(np.asarray(m).sum()), lambda m: m.sum(), lambda m: "a"),
            *(lambda m: None, lambda m: jnp.full(1, NAN), lambda m: -m.sum()[None]),
            lambda m: jnp.full(1, INF),
        ),
    )
    env = problem()
    wrong = {
        "above 1": jnp.array([1.5, 0.5]),
        "NaN": jnp.array([NAN, 0.5]),
        "below 0": jnp.array([-1.0, 0.5]),
        "short": jnp.array([0.5]),
        "text": "a",
        "None": None,
        "a list": [0.5, 0.5],
    }
    for what, ratios in wrong.items():
        yield Case(
            f"project_ratios {what}", lambda r=ratios: search.project_ratios(env, r), "keep_ratio"
        )
        yield Case(
            f"ratios_to_masks {what}", lambda r=ratios: search.ratios_to_masks(env, r), "keep_ratio"
        )
    for function in (search.masks_to_gates, search.masks_to_ratios, search.candidate_costs):
        call = functools.partial(function, env)
        yield Door(function.__name__, call, masks=(jnp.ones((2, 2)), "a", None, [[1]]))
    project = functools.partial(search.project_priorities, env)
    yield Door("project_priorities", project, priorities=(jnp.ones((2, 2)), "a", None, [[1]]))
    gates = ({}, None, "a", {"group0": jnp.ones(2)}, {"group0": jnp.ones(3), "group1": jnp.ones(3)})
    yield Door("gates_to_masks", functools.partial(search.gates_to_masks, env), gates=gates)
    yield Case("feasible", lambda: search.feasible(jnp.ones((2, 3)), jnp.ones(2)), "limits")
    yield Door(
        "start_from",
        functools.partial(search.start_from, env),
        mask=(jnp.ones((2, 2)), "a", None, [1], [["a"]]),
    )
    yield Door(
        "archive_init",
        lambda env=env, capacity=2, num_budgets=1: search.archive_init(env, capacity, num_budgets),
        env=(None, "a"),
        capacity=COUNTS,
        num_budgets=(0, -1, 1.5, "a"),
    )
    archive = search.archive_init(env, 2)
    masks, rewards, priced = jnp.ones((2, 2, 3)), jnp.ones(2), jnp.ones((2, 1))
    yield Door(
        "archive_update",
        lambda masks=masks, rewards=rewards, costs=priced, limits=env.limits: search.archive_update(
            archive, masks, rewards, costs, limits
        ),
        masks=(jnp.ones((2, 2, 2)), jnp.ones(3)),
        rewards=(jnp.ones(3), "a", None),
        costs=(jnp.ones((2, 3)), "a", None, jnp.ones(2)),
        limits=(jnp.ones(3),),
    )
    renewed = functools.partial(search.archive_with_rewards, archive)
    yield Door("archive_with_rewards", renewed, rewards=(jnp.ones(5), jnp.ones((2, 1))))
    yield Case("check_archive", lambda: search.check_archive(archive), "no candidate")


def search_doors():
    env = problem()
    yield Door(
        "AgentConfig",
        search.AgentConfig,
        granularity=("x", None, []),
        constraint=("x", None),
        candidates=(0, 1, -1, 1.5, "a", None),
        epochs=COUNTS,
        minibatches=(0, 3, -1, "a"),
        policy=("x",),
        hidden_sizes=((0,), (-3,), (1.5,), "a", 3, None, ("a",)),
        dual=("x",),
        critic=("a", 3, None),
        shaping=("x",),
        iterations=(0, -1, 1.5, "a"),
        standardise_cost=("a", None),
        normalise_observations=("a", None, True),
        normalise_returns=("a", None, False),
    )
    coarse = search.ppo_lagrangian(env, search.AgentConfig(candidates=2))
    fine = search.AgentConfig(granularity="fine", critic=True)
    fine_agent = search.ppo_lagrangian(env, fine)
    numbers = {
        "group_learning_rate": (NAN, INF, -1.0, "a", None, jnp.ones(3)),
        "clip_epsilon": (NAN, 0, -1, "a"),
        "initial_std": (-1, 0, NAN),
        "multiplier_max": (-1, NAN),
        "minimum_std": (-1, NAN),
        "target_kl": (0, -1, NAN),
        "dual_kp": (-1, NAN),
        "action_clip_start": (NAN, -1),
        "entropy_coef": (-1, NAN),
    }
    yield Door("HParams", lambda **h: coarse.init(search.HParams(**h), KEY), **numbers)
    numbers = {
        "gamma": (7, -1, NAN),
        "gae_lambda": (2, -1),
        "value_coef": (-1, NAN),
        "learning_rate": (NAN, -1),
        "unit_learning_rate": (NAN, -1, jnp.ones(2)),
        "max_grad_norm": (0, -1),
        "std_learning_rate": (0.3,),
    }
    right = search.HParams()
    yield Door("HParams", lambda **h: fine_agent.init(search.HParams(**h), KEY), **numbers)
    yield Door(
        "init",
        lambda hparams=right, key=KEY: coarse.init(hparams, key),
        hparams=(None, "a", 3),
        key=(0, None, "a", OLD_KEY),
    )
    state = coarse.init(right, KEY)
    yield Case("ask key=0", lambda: coarse.ask(state, 0), "key=0")
    candidates = search.Candidates(masks=jnp.ones((2, 2, 3)), trajectory=())
    rewards, priced = jnp.ones(2), jnp.ones((2, 1))
    for name, searcher in {"uniform": search.uniform(env, 2)}.items():
        yield Door(
            f"{name}.tell",
            lambda rewards=rewards, costs=priced, s=searcher: s.tell(
                None, candidates, rewards, costs
            ),
            rewards=("a", None, jnp.ones(1), [["a"], ["b"]]),
            costs=("a", None, jnp.ones((2, 3)), jnp.ones(2)),
        )
    several = {
        "uniform": search.uniform,
        "global_threshold": search.global_threshold,
        "random_search": search.random_search,
        "cross_entropy": search.cross_entropy,
        "evopress": search.evopress,
        "knapsack": search.knapsack,
        "cma_es": functools.partial(search.cma_es, iterations=3),
        "fastnas": functools.partial(search.fastnas, most_iterations=3),
        "dynamic_programming": functools.partial(search.dynamic_programming, most_iterations=3),
    }
    for name, make in several.items():
        yield Door(
            name,
            lambda make=make, env=env, num_candidates=2: make(env, num_candidates),
            env=(None, "a", {}),
            num_candidates=(*COUNTS, True),
        )
    yield Door(
        "ppo_lagrangian",
        lambda env=env, config=fine: search.ppo_lagrangian(env, config),
        env=(None, "a"),
        config=(None, "a", {}),
    )
    yield Door(
        "cross_entropy",
        functools.partial(search.cross_entropy, env, 8),
        elite_fraction=(0, 2, NAN, "a", -1),
        granularity=("x",),
        smoothing=(0, -1, 2, NAN, "a"),
        initial_std=(-1, NAN, "a"),
        minimum_std=(-1, NAN),
        sharpness=(-1, NAN, "a"),
    )
    random = functools.partial(search.random_search, env, 2)
    yield Door("random_search", random, granularity=("x", None))
    for function in (search.fastnas, search.dynamic_programming):
        yield Door(
            function.__name__,
            lambda f=function, most_iterations=3, num_levels=3: f(
                env, 2, most_iterations, num_levels
            ),
            most_iterations=COUNTS,
            num_levels=(1, *COUNTS),
        )
    yield Door("cma_es", functools.partial(search.cma_es, env, 2), iterations=COUNTS)
    evolved = functools.partial(search.cma_es, env, 2, 3)
    yield Door("cma_es", evolved, initial_std=(0, -1, NAN, "a"))
    nan = {"group0": jnp.array([NAN, 1.0]), "group1": jnp.ones(3)}
    yield Case("ranked by NaN", lambda: search.ranked(env, nan), "gates['group0']")
    yield Case("ranked by others", lambda: search.ranked(env, {"z": jnp.ones(2)}), "gates")
    yield Door(
        "search_method",
        lambda make=search.uniform, num_candidates=2: search.search_method(
            make, num_candidates=num_candidates
        ),
        make=(None, 3, "uniform"),
        num_candidates=([2], {"a": 1}),
    )
    method = search.search_method(search.uniform, num_candidates=2)
    yield Door(
        "start_search",
        lambda method=method, env=env, capacity=2, key=KEY: search.start_search(
            method, env, None, capacity, key
        ),
        method=(None, search.uniform),
        env=(None, "a"),
        capacity=COUNTS,
        key=(0, None, OLD_KEY),
    )
    searcher, archive = search.uniform(env, 2), search.archive_init(env, 2)
    yield Door(
        "run_search",
        lambda evaluate=lambda m, k: m.sum((1, 2)), num_iterations=1, key=KEY: search.run_search(
            searcher, evaluate, None, searcher.init(None, KEY), archive, num_iterations, key
        ),
        evaluate=(None, 3),
        num_iterations=COUNTS,
        key=(0, None, "a", OLD_KEY),
    )
    for wrong_object in (None, "a", method):
        run = functools.partial(search.run_search, wrong_object, len, None, None, archive, 1)
        yield Case("run_search searcher", functools.partial(run, KEY), "searcher=")


def wrong_setting(field):
    """Return values that no field of this type may have."""
    kind = str(field.type)
    if "bool" in kind:
        return ("a", 3, NAN, [])
    if "tuple" in kind:
        return ("zzz", 3, None, [1], {"a": 1}, (NAN,), (-1,))
    if "int" in kind or "float" in kind:
        return (NAN, -1, "zzz", (), [1, 2], {"a": 1}, True) + (
            (1.5,) if "float" not in kind else ()
        )
    return ("(zzz", 3, (), [], {"a": 1})


def workflow_doors():
    small = small_mlp()
    network, task = small.network, small.task
    budget = "params=0.5"
    fields = rp.PruneConfig.__dataclass_fields__
    wrong = {name: wrong_setting(field) for name, field in fields.items()}
    yield Door(
        "PruneConfig", lambda **changed: workflow.resolve(rp.PruneConfig(**changed)), **wrong
    )
    rate = (0, -1, NAN, INF, "a", None, True)
    yield Door(
        "DenseRecipe",
        lambda steps=10, **rest: rp.DenseRecipe(steps, **rest),
        steps=(*COUNTS, NAN),
        rate=rate,
        batch_size=COUNTS,
        weight_decay=(-1, NAN, "a", None),
        rule=("x", None, []),
    )
    yield Door(
        "FinetuneRecipe",
        workflow.FinetuneRecipe,
        rate=rate,
        batch_size=COUNTS,
        rule=("x", None),
        weight_decay=(-1, NAN, "a"),
        clip_norm=(0, -1, NAN, "a"),
        warmup=(-1, 2, NAN, "a"),
    )
    yield Door(
        "Schedule",
        lambda batch_size=2, num_steps=3, **rest: rp.Schedule(batch_size, num_steps, **rest),
        batch_size=COUNTS,
        num_steps=COUNTS,
        rewind_step=(-1, 3, 4, 1.5, "a"),
        batch_statistics=("x", None),
        evaluation_batch=COUNTS,
    )
    module = models.create_model("mlp", 3)
    recipe, pruner = rp.DenseRecipe(1), rp.sap()
    networks, tasks = (None, "a", module), (None, "a", (jnp.ones(2), jnp.ones(2)))
    yield Door(
        "prune",
        lambda network=network, task=task, budgets=budget, **rest: rp.prune(
            network, task, budgets, **rest
        ),
        {"budgets": ("budget",), "seed": ("seed",)},
        network=networks,
        task=tasks,
        budgets=(None, 0.1, [], "params=0.0001", "params=2"),
        config=("a", {}),
        finetune=(3, "a"),
        run_dir=("", 3, b"\0"),
        foo=(3,),
        seed=(-1, 1.5, "a", 2**40),
        evaluations=(0, "a"),
        baselines=(("zzz",), "uniform"),
    )
    yield Door(
        "make_pruning",
        lambda network=network, task=task, config=None: rp.make_pruning(
            network, task, budget, config
        ),
        network=networks,
        task=tasks,
        config=("a", {}),
    )
    for wrong_object in (None, "a", network):
        yield Case("search pruning", lambda p=wrong_object: rp.search(p), "pruning=")
        yield Case("deliver pruning", lambda p=wrong_object: rp.deliver(p, None), "pruning=")
        yield Case("ship delivered", lambda p=wrong_object: rp.ship(p), "delivered=")
    yield Door(
        "train_dense",
        lambda network=network, task=task, recipe=recipe, **rest: rp.train_dense(
            network, task, recipe, **rest
        ),
        network=networks,
        task=tasks,
        recipe=(None, 300, "a"),
        seed=(-1, 1.5, "a", None, 2**40),
        save_seconds=(-1, NAN, "a", None),
        run=("a", 3),
    )
    schedule = rp.Schedule(8, 2)
    yield Door(
        "prune_iteratively",
        lambda network=network, task=task, pruners=pruner, schedule=schedule, **rest: (
            rp.prune_iteratively(network, task, pruners, schedule, **rest)
        ),
        {"schedule": ("batch_size",)},
        network=networks,
        task=tasks,
        pruners=("sap", {}, None, {"sap": "sap"}, {"a b": rp.sap(), "a-b": rp.sap()}),
        schedule=(None, 3, rp.Schedule(1000, 2)),
        iterations=COUNTS,
        seeds=((), (1, 1), (-1,), (1.5,), "a", 3, (2**40,)),
        foo=(1,),
        examples=(0, -1, 1.5, "a"),
        batching=("x", 3),
    )
    x = jnp.ones((2, 4))
    yield Door(
        "Network",
        lambda apply=mlp_apply, variables=small.variables, example=x, **rest: rp.Network(
            apply, variables, example, **rest
        ),
        apply=(None, 3, "a"),
        variables=("a", {"a": None, "b": "x"}, {**small.variables, "a": x * NAN}),
        example=(None, "a", (), [], jnp.ones((2, 5)), (3.0,)),
        apply_train=(lambda v, x: x, lambda v, x, key=None: (x, {"z": 1})),
    )
    for make in (rp.Network.from_nnx, rp.Network.from_equinox):
        for wrong_object in (None, "a", 3):
            yield Case(make.__name__, lambda make=make, m=wrong_object: make(m, x))
    linen = rp.Network.from_linen
    for wrong_object in (None, "a", small.variables):
        yield Case("from_linen module", lambda m=wrong_object: linen(m, small.variables, x))
        yield Case("from_linen variables", lambda v=wrong_object: linen(module, v, x))


def task_doors():
    inputs, labels = np.ones((4, 4), np.float32), np.zeros(4, np.int32)
    right = (inputs, labels)
    wrong = {
        "None": None,
        "text": "a",
        "empty": (np.ones((0, 4)), np.zeros(0, int)),
        "unequal": (inputs, np.zeros(3, int)),
        "without labels": (inputs,),
        "scalars": (1.0, 2.0),
        "texts": (np.array(["a"] * 4), labels),
        "nothing": {},
        "objects": (np.array([None] * 4), labels),
        "NaN": (inputs * NAN, labels),
        "infinite": (inputs * INF, labels),
    }
    for make in (rp.classification, rp.regression):
        for what, data in wrong.items():
            name = f"{make.__name__} of {what}"
            yield Case(f"{name}, train", lambda m=make, d=data: m(d, right, right))
            yield Case(f"{name}, test", lambda m=make, d=data: m(right, right, d))
        yield Door(
            make.__name__,
            functools.partial(make, right, right, right),
            metric=("x", 3, None),
            inputs=(3, "a"),
            augment=(3, "a"),
            prepare=(3, "a"),
            metric_name=(3, ""),
        )
    classes = {
        "floats": np.ones(4),
        "negative": -np.ones(4, int),
        "two axes": np.zeros((4, 2), int),
    }
    for what, each in classes.items():
        make = functools.partial(rp.classification, (inputs, each), right, right)
        yield Case(f"labels {what}", make, "labels")
    smoothed = functools.partial(rp.classification, right, right, right)
    yield Door("classification", smoothed, label_smoothing=(-1, 1.5, NAN, "a", None, 1))
    yield Door(
        "SoftmaxCrossEntropy", training.SoftmaxCrossEntropy, label_smoothing=(-1, 1, NAN, "a")
    )
    tokens = {
        "floats": np.ones((4, 4)),
        "single": np.zeros((4, 1), int),
        "one axis": np.zeros(4, int),
        "negative": -np.ones((4, 4), int),
        "none": None,
        "pairs": right,
    }
    for what, each in tokens.items():
        yield Case(f"next_token of {what}", lambda t=each: rp.next_token(t, t, t), "train")
    for argument in ("loss", "metric"):
        for value in (None, 3):
            given = {"loss": training.squared_error, "metric": "accuracy", argument: value}
            make = functools.partial(rp.Task, train=right, held_out=right, test=right, **given)
            yield Case(f"Task {argument}={value}", make, argument)
    task = rp.classification(right, right, right)
    yield Case("Task.size", lambda: task.size("zz"), "split='zz'")
    yield Case("Task.sample split", lambda: task.sample("zz", 1), "split='zz'")
    sample = functools.partial(task.sample, "train")
    yield Door("Task.sample", sample, count=COUNTS)


def training_doors():
    yield Door(
        "load",
        lambda name="digits", **rest: training.load(name, **rest),
        {"name": ("data set",)},
        name=("zz", None, 3, ["digits"]),
        seed=(-1, 1.5, "a", None, 2**70, True, NAN),
        held_out=(-1, 1.5, "a", 10**6, True, 1437),
    )
    there = functools.partial(training.load, "mnist")
    yield Door("load", there, data_dir=("/nonexistent", "", 3, "\0"))
    yield Door(
        "load_text",
        training.load_text,
        {"name": ("text",)},
        name=("zz", None, 3),
        context=(*COUNTS, 10**6),
        seed=(-1, "a", 1.5, 2**70),
    )
    image = jnp.zeros((1, 2, 2, 1), jnp.uint8)
    yield Door(
        "normalise",
        lambda images=image, mean=0.5, std=0.25: training.normalise(images, mean, std),
        images=(jnp.ones((1, 2, 2, 1)),),
        mean=("a", None, NAN, INF, [1, 2], []),
        std=(0, -1, NAN, "a", None, INF, [1, 2], [0.0]),
    )
    crops = {"pad": NO_COUNTS, "flip": ("a", None, 3), "padding_mode": ("x", None, [])}
    yield Door(
        "augment",
        lambda images=image, key=KEY, **rest: training.augment(images, key, **rest),
        images=(jnp.ones((2, 2)),),
        key=(0, None, "a", OLD_KEY),
        **crops,
    )
    yield Door("CropAndFlip", training.CropAndFlip, **crops)
    yield Door(
        "Standardise",
        lambda mean=(0.5,), std=(1.0,): training.Standardise(mean, std),
        {"mean": ("std",)},
        mean=((NAN,), (1, 2), "a", (), None),
        std=((0,), (NAN,), (1, 2), "a", (), (-1,)),
    )
    rates = (-1, NAN, INF, "a", None)
    yield Door(
        "make_optimizer",
        lambda learning_rate=0.1, **rest: training.make_optimizer(
            learning_rate=learning_rate, **rest
        ),
        {"name": ("optimizer",), "schedule": ("num_steps",)},
        name=("x", None, 3, []),
        learning_rate=rates,
        num_steps=(0, -1, 1.5, "a"),
        schedule=("x", "cosine", None),
        warmup=NO_COUNTS,
        momentum=(1, *rates),
        weight_decay=rates,
        decayed=("x",),
        clip_norm=(0, -1, NAN, "a", INF),
    )
    cosine = functools.partial(training.make_schedule, 0.1, 10, "cosine")
    yield Door("make_schedule", cosine, warmup=(10, 99, *NO_COUNTS))
    small = small_mlp()
    task, variables = small.task, small.variables
    yield Door(
        "evaluate",
        lambda objective=task.objective, data=task.test, batch_size=2: training.evaluate(
            mlp_apply, variables, objective, data, batch_size=batch_size
        ),
        objective=(None, task),
        data=(None, "a", (np.ones((0, 4)), np.zeros(0, int))),
        batch_size=COUNTS,
    )
    optimizer = training.make_optimizer(learning_rate=0.1)
    state = training.init_train_state(variables, optimizer)
    step = training.make_train_step(
        lambda v, x, key=None: (mlp_apply(v, x), {}), optimizer, task.objective
    )
    yield Door(
        "train",
        lambda data=task.train, batch_size=2, num_steps=1, key=KEY: training.train(
            step, state, data, batch_size=batch_size, num_steps=num_steps, key=key
        ),
        data=(None, "a"),
        batch_size=(*COUNTS, 1000),
        num_steps=NO_COUNTS,
        key=(0, None, "a", OLD_KEY),
    )
    for wrong in (None, "adam"):
        start = functools.partial(training.init_train_state, variables, wrong)
        yield Case("init_train_state", start, "optimizer=")
    yield Case(
        "recalibrate of None", lambda: rp.recalibrate(None, variables, jnp.ones((2, 4))), "apply"
    )
    yield Case("recalibrate on nothing", lambda: rp.recalibrate(mlp_apply, variables))
    x = jnp.ones((2, 4))
    batches = functools.partial(rp.recalibrate, mlp_apply, variables, x, batches="a")
    yield Case("recalibrate batches", batches, "batches='a'")


WIDTHS = ((), (0,), (1.5,), (-1,), "ab", (NAN,), 3, 0, (True,), {3}, {"a": 3})
WRONG_OPTIONS = {
    "widths": WIDTHS,
    "depths": (None, *WIDTHS),
    "width": (0, -1, NAN, INF, "a", None, (1,), True),
    "pools": (-1, 6, 1.5, "a", None, True),
    "stem": ("x", None, 3),
    "shortcut": ("x", None),
    "conv_general_dilated": (None, 3, "a"),
    "scan": (0, None, "a"),
    "base": (0, -1, NAN, "a", None),
    "layer_scale": (-1, NAN, "a", None),
}
"""Of each option of a network; all others are counts."""


def models_doors():
    for name in models.model_names():
        options = models._option_names(models._MODELS[name])
        wrong = {option: WRONG_OPTIONS.get(option, (0, -1, "a")) for option in options}
        if name == "mlp":
            wrong["widths"] = WIDTHS[1:]  # without any it is linear, which create_model says
        if name == "convnext_tiny":
            wrong["widths"] = WIDTHS
        yield Door(
            f"create_model({name!r})", functools.partial(models.create_model, name, 10), **wrong
        )
    yield Door(
        "create_model",
        lambda name="mlp", num_classes=3, **rest: models.create_model(name, num_classes, **rest),
        {"name": ("model",)},
        name=("zz", None, 3, ["mlp"], ""),
        num_classes=(*COUNTS, True, NAN),
        foo=(1,),
    )
    yield Case("linear widths", lambda: models.create_model("linear", 3, widths=(3,)), "widths")
    for wrong_object in (None, "mlp", models.CNN):
        make = functools.partial(models.model_functions, wrong_object)
        yield Case("model_functions", make, "module=")


def job(hparams, key):
    return {"s": hparams["a"] * 1.0}


WRONG_JOBS = {
    "None": None,
    "text": "a",
    "raises": lambda h, key: 1 / 0,
    "branches": lambda h, key: {"s": 1.0 if h["a"] > 0 else 2.0},
    "gives a vector": lambda h, key: {"s": jnp.ones(3)},
    "gives None": lambda h, key: None,
    "gives text": lambda h, key: {"s": "a"},
    "gives nothing": lambda h, key: {},
    "reads what there is not": lambda h, key: {"s": h["q"]},
    "is of NumPy": lambda h, key: {"s": np.asarray(h["a"])},
}


def study_doors(folder):
    settings = {"a": [1.0, 2.0]}
    wrong = {
        "nothing": {},
        "no value": {"a": []},
        "NaN": {"a": [NAN]},
        "infinity": {"a": [INF]},
        "kinds": {"a": [1, "x"]},
        "twice": {"a": [1, 1]},
        "large": {"a": [1e39, 1.0]},
        "large and negative": {"a": [-1e39]},
        "too small": {"a": [1e-60, 1.0]},
        "long integers": {"a": [2**40]},
        "text": "a",
        "None": None,
        "unequal": {"a": [1, 2], "b": [1]},
        "reserved": {"seed": [1]},
        "None of a": {"a": [None]},
        "a list of a": {"a": [[1]]},
        "a scalar": {"a": 3},
        "an unknown name": {"zz": [1.0]},
        "a text of a": {"a": "xy"},
    }
    for what, each in wrong.items():
        yield Case(f"run_study settings {what}", lambda s=each: rp.run_study(job, s, [0]))
    for what, fn in WRONG_JOBS.items():
        yield Case(f"run_study fn {what}", lambda f=fn: rp.run_study(f, settings, [0]), "job", "fn")
    (folder / "file").touch()
    yield Door(
        "run_study",
        lambda seeds=(0,), **rest: rp.run_study(job, settings, seeds, **rest),
        {"static": ("static", "traced"), "known": ("setting",), "directory": ("file",)},
        seeds=([], [0, 0], [-1], [1.7], ["a"], None, 3, [2**31], "ab", [True]),
        strategy=("x", None, 3),
        chunk=(0, -1, 1.5, "a"),
        memory=(0, -1, 1.5, "a", NAN),
        directory=("", 3, folder / "file", "\0"),
        static=("a", ("zz",), 3, ("a",)),
        devices=([], 3, ["cpu"]),
        known=(3, ("zz",), "a"),
        compiled=(3, []),
    )
    for axes in (
        {},
        {"a": []},
        {"a": [1, 1]},
        {"a": "xy"},
        None,
        {"a": 3},
        [("a", [1])],
        {"": [1]},
    ):
        yield Case(f"grid({axes})", lambda a=axes: study.grid(a))
    for rows in ([], [{"a": 1}, {"b": 1}], None, ["a"], 3, [{"a": NAN}], [{"a": 1}, {"a": 1}]):
        yield Case(f"table({rows})", lambda r=rows: study.table(r))
    drawn = {"a": study.Uniform(0, 1)}
    yield Door(
        "random",
        lambda distributions=drawn, count=2, key=KEY: study.random(distributions, count, key),
        {"distributions": ("settings",)},
        distributions=({}, None, {"a": 3}, [1], {"a": study.Choice((1, 2)), "b": 3}),
        count=COUNTS,
        key=(0, None, "a", OLD_KEY),
    )
    repeated = {"a": study.Choice((1, 2))}
    yield Case("random draws twice", lambda: study.random(repeated, 5, KEY), "same")
    ranges = ((1, 1), (2, 1), (NAN, 1), (0, INF), ("a", "b"), (None, 1), (True, False))
    for low, high in ranges:
        for make in (study.Uniform, study.LogUniform):
            yield Case(
                f"{make.__name__}({low}, {high})",
                lambda m=make, a=low, b=high: m(a, b),
                "low",
                "high",
            )
    yield Case("LogUniform(0, 1)", lambda: study.LogUniform(0, 1), "low")
    for values in ((), "ab", (1, "a"), (1, 1), None, 3, (NAN, 1.0), (None,)):
        yield Case(f"Choice({values})", lambda v=values: study.Choice(v), "value", "Choice")
    confidences = (0, 1, 2, 95, NAN, "a", None, -1)
    yield Door(
        "summarise",
        lambda values=((1.0, 2.0), (3.0, 4.0)), **rest: study.summarise(values, **rest),
        values=(np.ones(3), np.ones((0, 2)), np.ones((2, 0)), np.ones((1, 1, 1))),
        confidence=confidences,
        maximize=("a", None, 1),
    )
    ramp = np.arange(5.0)
    yield Door(
        "rank_correlation",
        lambda first=ramp, **rest: study.rank_correlation(first, ramp, **rest),
        {"first": ("pairs",)},
        first=(np.ones(3), np.ones((2, 2)), np.full(5, NAN)),
        confidence=confidences,
        resamples=COUNTS,
    )
    yield Door(
        "wilson_interval",
        lambda fraction=0.5, count=3, confidence=0.95: study.wilson_interval(
            fraction, count, confidence
        ),
        fraction=(-0.1, 1.1, NAN, "a", None, True),
        count=COUNTS,
        confidence=confidences,
    )
    yield Door(
        "paired_difference",
        lambda first=ramp, **rest: study.paired_difference(first, ramp, **rest),
        first=(np.ones(3), np.ones((5, 1))),
        confidence=confidences,
    )
    whole = {"coordinator": "localhost:1", "num_processes": 2, "process_id": 0}
    yield Door(
        "initialize",
        lambda **changed: study.initialize(**{**whole, **changed}),
        coordinator=("", 3, "a", "localhost", "localhost:x", ":1", "localhost:99999", None),
        num_processes=COUNTS,
        process_id=(2, *NO_COUNTS),
    )


def runs_doors(folder):
    (folder / "file").touch()
    (folder / "foreign").mkdir()
    (folder / "foreign" / "notes.txt").touch()
    yield Door(
        "open_run",
        lambda runs_dir=folder, experiment="e", config=(), **rest: runs.open_run(
            runs_dir, experiment, dict(config) if config == () else config, **rest
        ),
        {"runs_dir": ("file",)},
        runs_dir=(None, "", 3, "\0", folder / "file"),
        experiment=("", "a/b", "..", None, 3, " a", ["e"]),
        config=(None, 3, "a", {"x": NAN}, {"x": INF}, {"x": {"y": NAN}}, {"x": object()}, [1]),
        exclude=("a", 3, None),
        extension=("a", None, ("seed",)),
    )
    yield Door(
        "open_run_at",
        lambda path: runs.open_run_at(path, {}),
        {"path": ("file", "notes.txt")},
        path=(None, "", 3, "\0", folder / "file", folder / "foreign"),
    )
    yield Door(
        "Checkpointer",
        lambda directory=folder / "kept", keep=2: runs.Checkpointer(directory, keep),
        {"directory": ("file",)},
        directory=(None, "", 3, folder / "file"),
        keep=(*COUNTS, True),
    )
    yield Door(
        "read_checkpoint",
        runs.read_checkpoint,
        {"directory": ("file", "none")},
        directory=(None, "", 3, folder / "none", folder / "file"),
    )
    yield Door(
        "StageOptions",
        runs.StageOptions,
        chunk=(*COUNTS, True),
        save_seconds=(-1, NAN, "a", None, True),
        note=(3, None),
        check=(3, "a"),
    )

    def advance(state, start, count):
        return state + count, [(start + count, {"loss": 1.0})]

    run, options = runs.MemoryRun(), runs.StageOptions()
    yield Door(
        "run_stage",
        lambda run=run, name="n", total=3, advance=advance, options=options: runs.run_stage(
            run, name, 0, total, advance, options
        ),
        run=("a", 3),
        name=("", "a/b", "..", None, 3, ".hidden"),
        total=NO_COUNTS,
        advance=(None, 3),
        options=("a", None, 20.0),
    )

    def shown(**changed):
        with runs.show_progress(**{"description": "d", "total": 3, **changed}):
            pass

    yield Door("show_progress", shown, total=NO_COUNTS, every=(-1, NAN, "a", None))
    yield Case("metrics called stage", lambda: run.append_metrics("s", 1, {"stage": 1}), "stage")
    yield Case(
        "metrics of an object", lambda: run.append_metrics("s", 1, {"v": object()}), "object"
    )
    yield Case("result of an object", lambda: run.write_result({"v": object()}), "object")


def export_doors(folder):
    small = small_mlp()
    variables, x = small.variables, jnp.ones((2, 4))
    export.save_weights(folder / "weights", variables)
    yield Door(
        "save_weights",
        lambda path=folder / "w", variables=variables: export.save_weights(path, variables),
        {"variables": ("'a'",), "path": ("cannot write",)},
        variables=({"a": "text"}, {"a": object()}, 3 * [object()]),
        path=(None, "", 3, folder / "no" / "dir" / "w", folder, "\0"),
    )
    paths = (None, "", 3, folder / "none", folder)
    read = {"path": ("cannot be read", "none", "is a directory", "Is a directory")}
    yield Door("load_weights", export.load_weights, read, path=paths)
    yield Door("read_plan", export.read_plan, read, path=paths)
    other = {"q": jnp.ones(3)}
    like = functools.partial(export.load_weights, folder / "weights", other)
    yield Case("load_weights of another network", like, "'q'", "q")
    for plan in (None, {}, [], "a"):
        yield Case("write_plan", lambda p=plan: export.write_plan(folder / "p", p))
    for content in (folder / "none", b"abc", None, b"", 3, ""):
        yield Case("load_stablehlo", lambda c=content: export.load_stablehlo(c))
    network = functools.partial(export.export_stablehlo, mlp_apply, variables)
    yield Door(
        "export_stablehlo",
        functools.partial(network, x),
        platforms=((), ("cuuda",), 3, None, "gpu"),
        prepare=(3, "a"),
    )
    yield Case("export without an example", network)
    yield Case("export of text", lambda: network("a"), "examples")
    yield Case("export of a scalar", lambda: network(3.0), "batch")
    for wrong in (None, 3):
        call = functools.partial(export.export_stablehlo, wrong, variables, x)
        yield Case("export apply", call, "apply=")
    yield Door(
        "standardisation",
        lambda mean=(0.5,), std=(1.0,), scale=255.0: export.standardisation(mean, std, scale),
        mean=((NAN,), (1, 2)),
        std=((0,), (NAN,), (1, 2), (-1,)),
        scale=(0.0, -1.0, NAN),
    )
    for wrong in (None, "", 3, folder / "none"):
        restore = functools.partial(export.restore_slim, wrong, mlp_apply, small.graph)
        yield Case("restore_slim", restore)
    yield Door(
        "make_plan",
        lambda gates: export.make_plan(gates, variables),
        gates=(None, [1], "a", {"a": jnp.full(8, 0.5)}, {"a": jnp.array(1.0)}, {"a": "b"}),
    )
    rows = ((["a"], [1, 2], {"m": [1]}), (["a"], [1], {"m": [1, 2]}))
    for names, sizes, kept in rows:
        yield Case("layers_figure", lambda n=names, s=sizes, k=kept: report.layers_figure(n, s, k))
    for path in (folder, folder / "no" / "x.html"):
        yield Case("write_report", lambda p=path: report.write_report(p, "a"), "cannot write")


ROOMS = {
    "sparsity": (sparsity_doors, 300),
    "graph": (graph_doors, 150),
    "units": (units_doors, 140),
    "costs": (costs_doors, 120),
    "environment": (environment_doors, 120),
    "search": (search_doors, 250),
    "workflow": (workflow_doors, 450),
    "task": (task_doors, 90),
    "training": (training_doors, 150),
    "models": (models_doors, 350),
}
"""Doors without a folder, and how many wrong calls they have at least."""

ROOMS_ON_DISK = {
    "study": (study_doors, 190),
    "runs": (runs_doors, 80),
    "export": (export_doors, 60),
}
"""Doors that are given a folder. All together are several times the 309 calls of the first list."""


def check(doors, least):
    doors = list(doors)
    count = sum(map(len, doors))
    failures = [failure for door in doors for failure in door.failures()]
    assert not failures, f"{len(failures)} of {count}:\n" + "\n".join(failures)
    assert count >= least


@pytest.mark.parametrize("room", ROOMS)
def test_what_cannot_be_is_refused_by_name(room):
    doors, least = ROOMS[room]
    check(doors(), least)


@pytest.mark.parametrize("room", ROOMS_ON_DISK)
def test_what_cannot_be_is_refused_by_name_on_disk(room, tmp_path):
    doors, least = ROOMS_ON_DISK[room]
    check(doors(tmp_path), least)


def test_what_only_looks_wrong_is_right():
    """Each of these is documented where it is accepted."""
    weights = jnp.array([1.0, NAN])
    assert np.isnan(rp.pq_index(weights)) and float(rp.pq_index(jnp.zeros(0))) == 0.0
    mask = jnp.ones(2, bool)
    # NaN goes last: a weight without a score is not known to be dispensable.
    assert rp.drop_smallest(weights, mask, 1).tolist() == [False, True]
    for rate in (0.0, 1.0):
        rp.lottery_ticket(rate), rp.one_shot(rate)
    graph, ones = small_mlp().graph, small_mlp().ones
    assert units.widths(graph, units.keep_first(graph, 99)) == {"a": 8, "b": 6}
    assert units.widths(graph, rp.round_gates(graph, ones, min_keep=999)) == {"a": 8, "b": 6}
    assert units.kept_counts(graph, {**ones, "a": jnp.full(8, NAN)}).tolist() == [0.0, 6.0]
    missing = search.uniform(problem(), 2).tell
    candidates = search.Candidates(masks=jnp.ones((2, 2, 3)), trajectory=())
    state = search.uniform(problem(), 2).init(None, KEY)
    missing(state, candidates, jnp.full(2, NAN), jnp.full((2, 1), INF))
    assert models.create_model("mlp", 3, widths=()).widths == ()
    assert np.isnan(study.rank_correlation(np.ones(5), np.arange(5.0)).value)
    data = (np.ones((4, 4), np.float32), np.full(4, NAN))
    rp.Task(training.squared_error, "negative_loss", data, data, data)  # a loss may leave NaN out


def test_what_a_function_of_the_user_raises_passes_with_a_note():
    def apply(variables, x):
        return x @ jnp.ones((3, 2))

    with pytest.raises(TypeError, match="contracting") as found:
        rp.trace_graph(apply, {"a": jnp.ones((4, 3))}, jnp.ones((2, 4)))
    assert any("float32[2, 4]" in note for note in found.value.__notes__)

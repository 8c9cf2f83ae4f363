"""The loop of iterative pruning: masks, rewinding, measurements, seeds."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlprune_jax.models import ModelFunctions, create_model, model_functions
from rlprune_jax.sparsity.pruners import lottery_ticket, one_shot, sap
from rlprune_jax.training.loops import evaluate
from rlprune_jax.training.task import classification
from rlprune_jax.workflow.iterative import (
    IterativeData,
    Schedule,
    iterative_pruning,
    over_seeds,
)

RATE = optax.linear_schedule(0.2, 0.0, 12)


def problem(size=4, count=48, classes=3):
    images = jax.random.normal(jax.random.key(5), (count, size, size, 1))
    labels = jnp.argmax(images.reshape(count, -1)[:, :classes], axis=1).astype(jnp.int32)
    return IterativeData(train=(images, labels), test=(images[:24], labels[:24]))


DATA = problem()
OBJECTIVE = classification(DATA.train, DATA.test, DATA.test).objective
MLP = model_functions(create_model("mlp", 3, widths=(8,)))
CNN = model_functions(create_model("cnn", 3, widths=(4,)))


def loop_of(pruner, functions=MLP, **options):
    options = {"batch_size": 16, "num_steps": 12, "evaluation_batch": 24} | options
    optimizer = optax.sgd(RATE, momentum=0.9)
    return iterative_pruning(functions, OBJECTIVE, optimizer, pruner, Schedule(**options))


def iterate(loop, count, key=None, data=DATA):
    state = jax.jit(loop.init)(data, jax.random.key(0) if key is None else key)
    step = jax.jit(loop.step)
    states, rows = [state], []
    for _ in range(count):
        state, row = step(state, data)
        states.append(state)
        rows.append(row)
    return states, rows


def kernels(tree):
    return [leaf for leaf in jax.tree.leaves(tree) if leaf.ndim > 1]


def test_train_measure_prune_rewind():
    states, rows = iterate(loop_of(lottery_ticket(0.2)), 3)
    total = sum(leaf.size for leaf in kernels(states[0].variables["params"]))
    live = [total]
    for _ in range(2):
        live.append(live[-1] - live[-1] // 5)
    assert [int(row.live) for row in rows] == live
    np.testing.assert_allclose([float(row.density) for row in rows], np.array(live) / total)
    initial = states[0].variables["params"]
    for state in states[1:]:
        for leaf, first, keep in zip(
            *map(jax.tree.leaves, (state.variables["params"], initial, state.mask)), strict=True
        ):
            # Biases go back too; kept weights are those of the start, bit for bit.
            np.testing.assert_array_equal(leaf, np.where(keep, first, 0))
    for row in rows:
        assert 0 <= float(row.metric) <= 1 and np.isfinite(row.train_loss)
        assert 0 < float(row.pq_index) < 1 and 0 < float(row.gini) < 1
        assert int(sum(row.layer_live.values())) == int(row.live)
        np.testing.assert_allclose(row.pq_grid[4, 0], row.pq_index, atol=1e-5)
    assert float(rows[0].metric) > 0.5


def test_the_trained_network_is_what_was_measured():
    states, rows = iterate(loop_of(lottery_ticket(0.5)), 2)
    for before, state, row in zip(states, states[1:], rows, strict=False):
        jax.tree.map(np.testing.assert_array_equal, state.trained_mask, before.mask)
        for weights, keep in zip(
            *map(kernels, (state.trained["params"], state.trained_mask)), strict=True
        ):
            assert not weights[~keep].any() and weights[keep].all()
        found = evaluate(MLP.apply, state.trained, OBJECTIVE, DATA.test, batch_size=24)
        np.testing.assert_allclose(found.metric, row.metric, atol=1e-6)


def test_a_bare_pytree_of_parameters_is_pruned_as_its_collection_is():
    """The same network with its parameters alone as variables: the same numbers."""
    bare = ModelFunctions(
        init=lambda key, x: MLP.init(key, x)["params"],
        apply=lambda params, x: MLP.apply({"params": params}, x),
        apply_train=lambda params, x, key=None: MLP.apply_train({"params": params}, x),
    )
    states, rows = iterate(loop_of(lottery_ticket(0.5), bare), 2)
    others, expected = iterate(loop_of(lottery_ticket(0.5)), 2)
    jax.tree.map(np.testing.assert_array_equal, states[2].variables, others[2].variables["params"])
    np.testing.assert_array_equal(rows[1].metric, expected[1].metric)


def test_sap_prunes_by_the_index_it_measures():
    _, rows = iterate(loop_of(sap(0.5, 1.0)), 3)
    for before, after in itertools.pairwise(rows):
        gone = int(before.live) - int(after.live)
        assert abs(gone - int(float(before.pq_index) * int(before.live))) <= 1


def test_rewinding_to_a_later_step():
    loop = loop_of(lottery_ticket(0.5), rewind_step=5)
    states, rows = iterate(loop, 2)
    start = jax.jit(loop_of(lottery_ticket(0.5)).init)(DATA, jax.random.key(0)).variables
    rewound = states[0].variables["params"]
    assert (kernels(rewound)[0] != kernels(start["params"])[0]).any()
    for leaf, first, keep in zip(
        *map(jax.tree.leaves, (states[2].variables["params"], rewound, states[2].mask)), strict=True
    ):
        np.testing.assert_array_equal(leaf, np.where(keep, first, 0))
    assert len(rows) == 2


@pytest.mark.slow
def test_batch_statistics_are_kept_or_go_back_as_stated():
    data = problem(size=8)
    for choice in ("keep", "rewind"):
        loop = loop_of(lottery_ticket(0.2), CNN, batch_statistics=choice, num_steps=3)
        states, _ = iterate(loop, 1, data=data)
        before, after = (jax.tree.leaves(state.variables["batch_stats"]) for state in states)
        same = all((a == b).all() for a, b in zip(before, after, strict=True))
        assert same == (choice == "rewind")


def test_seeds_are_vmapped_or_mapped_with_the_same_result():
    keys = jax.random.split(jax.random.key(1), 2)
    loop = loop_of(one_shot(0.3))
    results = {}
    for how in ("vmap", "map"):
        _states, rows = iterate(over_seeds(loop, how), 2, key=keys)
        assert rows[0].metric.shape == (2,)
        results[how] = rows
    for vmapped, mapped in zip(results["vmap"], results["map"], strict=True):
        np.testing.assert_array_equal(vmapped.live, mapped.live)
        np.testing.assert_allclose(vmapped.pq_index, mapped.pq_index, rtol=1e-3)
        assert mapped.pq_index[0] != mapped.pq_index[1]


def test_the_state_is_arrays_and_resumes():
    loop = loop_of(sap())
    states, rows = iterate(loop, 2)
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(states[1]))
    _, again = jax.jit(loop.step)(states[1], DATA)
    jax.tree.map(np.testing.assert_array_equal, rows[1], again)


def test_bad_input():
    with pytest.raises(ValueError, match="num_steps=12 must be above rewind_step=12"):
        loop_of(sap(), rewind_step=12)
    with pytest.raises(ValueError, match="batch_size=0 must be at least 1"):
        loop_of(sap(), batch_size=0)
    with pytest.raises(ValueError, match="batch_statistics='drop' is unknown"):
        loop_of(sap(), batch_statistics="drop")
    with pytest.raises(ValueError, match="how='pmap' is unknown"):
        over_seeds(loop_of(sap()), "pmap")

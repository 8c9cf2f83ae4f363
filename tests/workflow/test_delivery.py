"""What is delivered is within every budget, and is what was evaluated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small import in_batches, random_gates, small_mlp, small_pruning

import rlprune_jax as rp
from rlprune_jax.costs import satisfies
from rlprune_jax.runs import DivergenceError, MemoryRun
from rlprune_jax.units.weight_scores import magnitude_scores
from rlprune_jax.workflow import delivery
from rlprune_jax.workflow.config import PruneConfig, resolve
from rlprune_jax.workflow.delivery import confirm, deliver, evaluate_masked, evaluate_network
from rlprune_jax.workflow.fitting import equivalence, fit_to_budgets
from rlprune_jax.workflow.pruning import bind_budgets, search_environment
from rlprune_jax.workflow.searches import search

SMALL = small_mlp()


SCORES = magnitude_scores(SMALL.graph, SMALL.variables)


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**16),
    keep=st.floats(0.0, 1.0),
    params=st.floats(0.2, 1.0),
    macs=st.integers(20, 98),
    fill=st.booleans(),
)
def test_any_mask_and_budget_give_gates_within_it(seed, keep, params, macs, fill):
    """Counted in closed form: widths a and b have 5a + ab + 3b parameters and 4a + ab + 3b MACs."""
    config = resolve(PruneConfig(min_keep=1))
    constraints = bind_budgets(SMALL.network, [f"params={params}", f"macs={macs}"], config)
    env = search_environment(SMALL.graph, constraints, SCORES, config)
    mask = jax.random.bernoulli(jax.random.key(seed), keep, env.ranks.shape)
    gates = fit_to_budgets(env, constraints, mask, fill=fill)
    assert satisfies(constraints, gates)
    a, b = (int(np.asarray(gate).sum()) for gate in gates.values())
    assert min(a, b) >= 1
    assert 5 * a + a * b + 3 * b <= params * 106
    assert 4 * a + a * b + 3 * b <= macs
    assert all(np.isin(np.asarray(gate), (0, 1)).all() for gate in gates.values())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_slim_network_holds_what_the_gates_keep_and_equals_its_masked_twin(seed):
    drawn = random_gates(SMALL.graph, 1, jax.random.key(seed))
    gates = jax.tree.map(lambda each: each[0], drawn)
    a, b = (int(np.asarray(gate).sum()) for gate in gates.values())
    slim = SMALL.network.slim(gates)
    assert [leaf.shape for leaf in jax.tree.leaves(slim.variables)] == [
        (4, a),
        (a,),
        (a, b),
        (b, 3),
    ]
    assert equivalence(SMALL.network, slim, gates, (SMALL.task.test[0],)).max_abs_diff < 1e-5


def test_a_delivery_is_evaluated_within_its_budgets_and_counted_in_arrays():
    pruning, run = small_pruning("params=0.5"), MemoryRun()
    delivered = deliver(pruning, search(pruning, "random_search"), run=run)
    slim = delivered.network
    sizes = {name: leaf.size for name, leaf in slim.variables.items()}
    assert delivered.params == sum(sizes.values()) <= 53
    assert delivered.macs == sum(sizes.values()) - sizes["a_bias"]
    assert list(delivered.kept.values()) == [sizes["a_bias"], sizes["c"] // 3]
    x, y = SMALL.task.test
    assert delivered.metric == pytest.approx(
        np.mean(np.argmax(np.asarray(slim(x)), -1) == y), abs=1e-6
    )
    assert delivered.loss == pytest.approx(float(SMALL.task.loss(slim(x), (x, y))), rel=1e-4)
    assert len(delivered.ratings) == 2
    stages = {row["stage"] for row in run.metrics()}
    assert stages == {f"{name}-random_search" for name in ("rerank0", "rerank1", "finetune")}
    (row,) = delivered.budget_rows()
    assert row["satisfied"] and row["count"] == delivered.params
    assert row["achieved"] == pytest.approx(delivered.params / 106)
    assert (row["name"], row["limit"], row["unit"]) == (
        "params",
        0.5,
        "fraction of dense parameters",
    )


def test_the_best_after_the_short_finetune_wins(monkeypatch):
    pruning = small_pruning("params=0.5")
    candidates = [
        jax.tree.map(lambda each, i=i: each[i], random_gates(SMALL.graph, 3, jax.random.key(0)))
        for i in range(3)
    ]
    candidates[1] = SMALL.ones
    monkeypatch.setattr(delivery, "deliverable", lambda *args, **options: candidates)
    tuned = []

    def finetune(apply, variables, steps, key):
        tuned.append(steps)
        # The second candidate alone stays as good as it was.
        return variables if len(tuned) == 2 else jax.tree.map(jnp.zeros_like, variables)

    found = deliver(pruning, search(pruning, "random_search"), finetune)
    assert tuned == [2, 2, 2, 4]
    assert np.argmax(found.ratings) == 1
    jax.tree.map(np.testing.assert_array_equal, found.gates, candidates[1])


def test_the_test_data_are_read_once_and_choose_nothing(monkeypatch):
    pruning, read = small_pruning("params=0.5"), []
    original = delivery.evaluate_masked

    def watched(network, objective, variables, gates, data):
        read.append("test" if data is pruning.task.test else "held_out")
        return original(network, objective, variables, gates, data)

    monkeypatch.setattr(delivery, "evaluate_masked", watched)
    deliver(pruning, search(pruning, "random_search"))
    assert read == ["held_out", "held_out", "test"]


def test_evaluations_are_means_over_all_examples_in_arrays_and_batches(monkeypatch):
    monkeypatch.setattr(delivery, "EVALUATION_BATCH", 7)
    x, y = SMALL.task.train
    gates = jax.tree.map(lambda each: each[0], random_gates(SMALL.graph, 1, jax.random.key(1)))
    masked = SMALL.network.definition.masked(SMALL.variables, gates, x)
    objective = SMALL.task.objective
    for data in ((x, y), in_batches((x, y), 9)):
        found = evaluate_masked(SMALL.network, objective, SMALL.variables, gates, data)
        assert float(found.metric) == pytest.approx(
            np.mean(np.argmax(np.asarray(masked), -1) == y), abs=1e-6
        )
        assert float(found.loss) == pytest.approx(float(SMALL.task.loss(masked, (x, y))), rel=1e-5)
        dense = evaluate_network(SMALL.network, objective, data)
        assert float(dense.metric) == 1
    with pytest.raises(ValueError, match="yield no batch"):
        evaluate_network(SMALL.network, objective, lambda: [])


def test_streams_deliver_within_the_budgets():
    splits = [in_batches(getattr(SMALL.task, split), 10) for split in ("train", "held_out", "test")]
    pruning = small_pruning("params=0.5", task=rp.Task(SMALL.task.loss, SMALL.task.metric, *splits))
    delivered = deliver(pruning, search(pruning, "random_search"))
    assert delivered.params <= 53
    x, y = SMALL.task.test
    accuracy = np.mean(np.argmax(np.asarray(delivered.network(x)), -1) == y)
    assert delivered.metric == pytest.approx(accuracy, abs=1e-6)


def test_finetuning_that_diverges_says_so():
    pruning = small_pruning("params=0.5")

    def finetune(apply, variables, steps, key):
        return jax.tree.map(lambda leaf: leaf * jnp.nan, variables)

    with pytest.raises(DivergenceError, match="finetune returned variables"):
        deliver(pruning, search(pruning, "uniform"), finetune)


class Drifting:
    """Units times a factor that may change, with as many answers as are asked for."""

    def __init__(self):
        self.factor, self.noise = 1.0, [0.0]
        self.calls = 0

    def __call__(self, widths, gates):
        self.calls += 1
        return self.factor * sum(widths.values()) + self.noise[self.calls % len(self.noise)]


def drifting_pruning(limit):
    cost = Drifting()
    budget = rp.Budget("drifting", limit, relative=False, function=cost)
    return small_pruning(budget), cost


def test_what_drifts_over_its_budget_is_repaired_at_the_end():
    pruning, cost = drifting_pruning(9.0)
    run = MemoryRun()
    delivered = deliver(pruning, search(pruning, "uniform"), run=run)
    units = sum(delivered.kept.values())
    assert units <= 9 and delivered.budget_rows()[0]["satisfied"]
    # Nothing has changed: what was delivered is what comes out, and nothing is trained.
    assert confirm(delivered, run=run) is delivered
    assert {row["stage"] for row in run.metrics()} == {"finetune-uniform"}
    cost.factor = 1.5
    after = confirm(delivered, run=run)
    (row,) = after.budget_rows()
    assert row["satisfied"] and row["achieved"] == 1.5 * sum(after.kept.values()) <= 9
    assert sum(after.kept.values()) < units
    assert {row["stage"] for row in run.metrics()} == {
        "finetune-uniform",
        "finetune-repair1-uniform",
    }
    x, y = SMALL.task.test
    assert after.metric == pytest.approx(
        np.mean(np.argmax(np.asarray(after.network(x)), -1) == y), abs=1e-6
    )
    # Even the smallest of two groups of two units is over now: that is said, and nothing raised.
    cost.factor = 100.0
    (row,) = confirm(after, run=run).budget_rows()
    assert not row["satisfied"]


def test_satisfied_is_by_the_upper_quartile_as_delivery_is():
    pruning, cost = drifting_pruning(9.0)
    delivered = deliver(pruning, search(pruning, "uniform"))
    units = sum(delivered.kept.values())
    # Two of five answers are above the limit: the median is within, the upper quartile is not.
    cost.noise, cost.calls = [0.0, 0.0, 0.0, 9.5 - units, 9.5 - units], 1
    pruning.constraints[0].measure_again(delivered.gates)
    (row,) = delivered.budget_rows()
    assert row["achieved"] == units <= 9 < row["quartiles"][1]
    assert row["satisfied"] is satisfies(pruning.constraints, delivered.gates) is False
    (row,) = confirm(delivered).budget_rows()
    assert row["satisfied"] and row["quartiles"][1] <= 9


def test_a_candidate_that_was_lucky_is_measured_again_before_it_is_trained():
    pruning, cost = drifting_pruning(9.0)
    found = search(pruning, "uniform")
    units = int(found.archive.feasible.masks[0].sum())
    original, trained = pruning.constraints[0].cost.exact, []
    cost.factor = 9.2 / units

    def finetune(apply, variables, steps, key):
        trained.append(steps)
        return variables

    delivered = deliver(pruning, found, finetune)
    assert sum(delivered.kept.values()) < units and trained == [4]
    assert original(delivered.gates).upper <= 9

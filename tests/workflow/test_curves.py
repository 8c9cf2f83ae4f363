"""Iterative pruning of anybody's network: resumption, results, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import Network, Schedule, lottery_ticket, one_shot, prune_iteratively, regression
from rlprune_jax.runs import open_run_at
from rlprune_jax.sparsity.masks import apply_mask, total_density
from rlprune_jax.workflow.curves import Curve, matched_rows, stage_name

KEYS = jax.random.split(jax.random.key(0), 4)
X = jax.random.normal(KEYS[0], (40, 5))
VARIABLES = {"a": jax.random.normal(KEYS[1], (5, 8)), "b": jax.random.normal(KEYS[2], (8, 2))}


def apply(variables, x):
    return jnp.tanh(x @ variables["a"]) @ variables["b"]


DATA = (X, apply(VARIABLES, X) + X[:, :2])
NETWORK = Network(apply, VARIABLES, X[:2])
TASK = regression(DATA, DATA, DATA)
SCHEDULE = Schedule(batch_size=20, num_steps=12)
PRUNERS = {"lottery ticket": lottery_ticket(0.5), "one-shot": one_shot(0.5)}
SETTINGS = {"iterations": 2, "seeds": (0, 7)}


@pytest.fixture(scope="module")
def result():
    return prune_iteratively(NETWORK, TASK, PRUNERS, SCHEDULE, **SETTINGS)


def test_a_network_of_plain_functions_is_pruned_and_given_back(result):
    assert list(result.curves) == list(PRUNERS) and result.metric_name == "negative_loss"
    for name, curve in result.curves.items():
        # 56 weights; half of what is left goes, rounded down.
        assert curve.array("live").tolist() == [[56, 28, 14]] * 2
        for place, seed in enumerate(result.seeds):
            network, mask = result.network(name, seed), result.mask(name, seed)
            assert total_density(mask).live == 14
            masked = apply_mask(network.variables, mask)
            jax.tree.map(np.testing.assert_array_equal, network.variables, masked)
            # The metric of the last row, by plain NumPy.
            error = np.asarray(network(X), np.float64) - np.asarray(DATA[1])
            metric = curve.array("metric")[place, -1]
            np.testing.assert_allclose(metric, -np.mean(error**2), rtol=1e-4)
    first, second = (result.network("one-shot", seed) for seed in result.seeds)
    assert (first.variables["a"] != second.variables["a"]).any()
    assert "lottery ticket" in str(result) and "14" not in repr(result.network())


def test_json_names_the_metric_and_holds_layers(result):
    content = result.to_json()
    assert content["seeds"] == [0, 7] and len(content["grid"]["p"]) == 10
    rows = content["curves"]["one-shot"]["iterations"]
    assert [row["iteration"] for row in rows] == [0, 1, 2]
    assert set(rows[0]["layers"]) == {"a", "b"} and len(rows[0]["negative_loss_pruned"]) == 2
    assert {row["method"] for row in content["matched"]} == {"one-shot"}


class Killed(Exception):
    pass


def test_an_interrupted_run_goes_on_to_the_same_result(result, tmp_path):
    with open_run_at(tmp_path / "run", {}) as run:
        append, rows = run.append_metrics, []

        def killing(stage, step, values):
            append(stage, step, values)
            rows.append(stage)
            if rows.count("one-shot") == 2:
                raise Killed

        run.append_metrics = killing
        with pytest.raises(Killed):
            prune_iteratively(NETWORK, TASK, PRUNERS, SCHEDULE, run, **SETTINGS)
    with open_run_at(tmp_path / "run", {}) as run:
        again = prune_iteratively(NETWORK, TASK, PRUNERS, SCHEDULE, run, **SETTINGS)
    for name in PRUNERS:
        for key in ("metric", "live", "pq_index"):
            np.testing.assert_array_equal(
                again.curves[name].array(key), result.curves[name].array(key)
            )
        jax.tree.map(
            np.testing.assert_array_equal,
            again.network(name).variables,
            result.network(name).variables,
        )


def test_seeds_may_start_from_weights_of_their_own():
    def init(key, x):
        return jax.tree.map(lambda leaf: jax.random.normal(key, leaf.shape), VARIABLES)

    found = prune_iteratively(
        NETWORK, TASK, one_shot(0.5), SCHEDULE, iterations=1, seeds=(0, 1), init=init, examples=20
    )
    starts = found.curves["pruner"].state.rewind["a"]
    assert (starts[0] != starts[1]).all()


def test_what_is_chosen_by_path_is_pruned_alone():
    found = prune_iteratively(NETWORK, TASK, one_shot(0.5), SCHEDULE, iterations=1, prunable="^a$")
    assert found.curves["pruner"].array("live").tolist() == [[40, 20]]
    assert found.mask()["b"].shape == ()


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"iterations": 0}, "iterations=0 must be at least 1"),
        ({"seeds": ()}, r"seeds=\(\) must be one or more"),
        ({"seeds": (1, 1)}, "each once"),
        ({"batching": "pmap"}, "batching='pmap' must be one of"),
        ({"examples": 100}, "train_images=100 is above the 80 there are"),
        ({"examples": 10}, "batch_size=20 is above the 10 training images; lower it"),
        ({"prunable": "nowhere"}, "chooses no leaf"),
        ({"steps": 3}, "steps= is no setting of prune_iteratively; settings are iterations"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        prune_iteratively(NETWORK, TASK, one_shot(), SCHEDULE, **settings)


def test_wrong_pruners_and_data_are_refused(result):
    with pytest.raises(ValueError, match=r"pruners=\{\} must be one or more"):
        prune_iteratively(NETWORK, TASK, {}, SCHEDULE)
    with pytest.raises(ValueError, match="distinct in letters and digits"):
        prune_iteratively(NETWORK, TASK, {"a b": one_shot(), "a-b": one_shot()}, SCHEDULE)
    streamed = regression(lambda: iter([DATA]), DATA, DATA)
    with pytest.raises(ValueError, match="train comes batch by batch"):
        prune_iteratively(NETWORK, streamed, one_shot(), SCHEDULE)
    with pytest.raises(ValueError, match="name='sap' must be one of"):
        result.network("sap")
    with pytest.raises(ValueError, match="seed=3 must be one of"):
        result.network(seed=3)


def curve(densities, metrics):
    rows = [{"density": [d], "metric": [m]} for d, m in zip(densities, metrics, strict=True)]
    return Curve(rows=rows, seconds=0.0, state=None)


def test_matched_density_interpolates_in_its_logarithm():
    found = {
        "base": curve([1.0, 0.01], [0.9, 0.5]),
        "ours": curve([1.0, 0.1, 0.001], [0.9, 0.8, 0.4]),
    }
    rows = matched_rows(found, "base")
    # 0.1 is half way from 1 to 0.01 in the logarithm; 0.001 lies beyond.
    assert [row["iteration"] for row in rows] == [0, 1]
    assert rows[1]["difference"] == pytest.approx(0.1)
    assert matched_rows({"ours": found["ours"]}, "base") == []


def test_names_become_folders():
    assert stage_name("../Own pruner!") == "own-pruner" and stage_name("()") == "pruner"

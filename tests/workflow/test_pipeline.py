"""One call from a network and its task to a smaller one."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import QUICK, count_compilations, mlp_apply, small_mlp

import rlprune_jax as rp
from rlprune_jax.costs import COSTS
from rlprune_jax.costs.cost import Cost, without_noise
from rlprune_jax.origin import StaleWarning
from rlprune_jax.runs import RunDirectoryError
from rlprune_jax.search import EmptyArchiveError
from rlprune_jax.workflow import learning, pipeline, pruning, searches
from rlprune_jax.workflow.methods import METHODS, random
from rlprune_jax.workflow.network import NetworkError
from rlprune_jax.workflow.results import PruneResult

SMALL = small_mlp()
NETWORK, TASK = SMALL.network, SMALL.task
ALONE = {**QUICK, "baselines": ()}


def arrays_of(result):
    return jax.tree.leaves(result.network.variables)


def same_result(one, other):
    """Whether two results agree but for times."""
    first, second = one.to_json(), other.to_json()
    for stored in (first, second):
        for network in (stored["dense"], stored["pruned"]):
            del network["latency_ms"], network["latency_ms_by_batch"]
        for name in ("seconds", "compile_seconds", "candidates_per_second"):
            stored["search"].pop(name)
        stored.pop("seconds")
    assert first == second
    for a, b in zip(arrays_of(one), arrays_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def test_one_call_leaves_the_network_smaller_and_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = jax.tree.map(np.asarray, NETWORK.variables)
    result = rp.prune(NETWORK, TASK, "params=0.5", **QUICK)
    assert list(tmp_path.iterdir()) == []
    assert result.run_dir is None
    assert result.is_within_budgets
    assert set(result.baselines) == {
        "uniform",
        "global_threshold",
        "random_search",
        "cross_entropy",
    }
    assert result.dense.metric == 1 and result.dense.params == 106 and result.dense.macs == 98
    sizes = [leaf.size for leaf in arrays_of(result)]
    assert result.pruned.params == sum(sizes) <= 53
    x, y = TASK.test
    right = np.argmax(np.asarray(result.network(x)), -1) == y
    assert result.pruned.metric == pytest.approx(right.mean(), abs=1e-6)
    for found in result.baselines.values():
        assert found.params <= 53 and 0 <= found.metric <= 1
    assert result.search["evaluations"] == 16 and result.search["feasible_fraction"] == 1
    assert set(result.delivered) == set(result.searches) == set(result.methods)
    jax.tree.map(np.testing.assert_array_equal, NETWORK.variables, before)
    assert "agent" in str(result) and "budget params" in str(result)


def test_arguments_are_checked_once(tmp_path, monkeypatch):
    bound = []
    original = pruning.bind_budgets

    def counted(*arguments):
        bound.append(arguments[1])
        assert not list(tmp_path.iterdir())  # before anything is written
        return original(*arguments)

    monkeypatch.setattr(pruning, "bind_budgets", counted)
    rp.prune(NETWORK, TASK, "params=0.5", run_dir=tmp_path / "run", **ALONE)
    assert len(bound) == 1


def test_a_second_call_compiles_nothing_and_other_limits_the_slim_network_alone():
    first = rp.prune(NETWORK, TASK, "params=0.5", **QUICK)
    with count_compilations() as compiled:
        again = rp.prune(NETWORK, TASK, "params=0.5", **QUICK)
    assert compiled == []
    same_result(first, again)
    with count_compilations() as compiled:
        other = rp.prune(NETWORK, TASK, "params=0.3", **QUICK)
    assert other.pruned.kept != first.pruned.kept
    # Slim against masked outputs, latency of 1 and of 128 examples, and the test data; and
    # moving the kept slices, a program a shape.
    assert set(compiled) <= {"jit(slim_apply)", "jit(_evaluate)", "jit(stage)"}, compiled
    assert sum(name != "jit(stage)" for name in compiled) <= 4


@pytest.mark.parametrize("stage", ["search", "finetune", "ship"])
def test_a_killed_run_goes_on_to_the_same_result(tmp_path, monkeypatch, stage):
    module, name, kill_at = {
        "search": (searches, "run_search_host", 2),
        # Two reranks of one chunk, then the second of two.
        "finetune": (learning, "train_steps", 4),
        "ship": (pipeline, "ship", 1),
    }[stage]
    monkeypatch.setattr(learning, "STEPS_AT_ONCE", 2)
    whole = rp.prune(NETWORK, TASK, "params=0.5", **ALONE)
    original, calls = getattr(module, name), []

    def killed(*arguments, **options):
        calls.append(1)
        if len(calls) == kill_at:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, killed)
    settings = {**ALONE, "save_seconds": 0.0, "run_dir": tmp_path / "run"}
    with pytest.raises(KeyboardInterrupt):
        rp.prune(NETWORK, TASK, "params=0.5", **settings)
    assert not (tmp_path / "run" / "result.json").exists()
    resumed = rp.prune(NETWORK, TASK, "params=0.5", **settings)
    same_result(whole, resumed)
    assert resumed.run_dir == tmp_path / "run"


def test_a_run_directory_is_found_again_and_keeps_others_out(tmp_path):
    folder = tmp_path / "run"
    first = rp.prune(NETWORK, TASK, "params=0.5", run_dir=folder, **ALONE)
    assert {"config.json", "metrics.jsonl", "checkpoints", "result.json", "slim"} <= {
        path.name for path in folder.iterdir()
    }
    with count_compilations() as compiled:
        again = rp.prune(NETWORK, TASK, ["params=0.5"], run_dir=folder, save_seconds=1.0, **ALONE)
    assert not {"jit(_ask)", "jit(_train)", "jit(_evaluate)"} & set(compiled)
    assert again.to_json() == first.to_json()
    x = TASK.test[0]
    np.testing.assert_array_equal(again.network(x), first.network(x))
    again.save(tmp_path / "copy")
    loaded = NETWORK.load_slim(tmp_path / "copy")
    np.testing.assert_array_equal(loaded(x), first.network(x))
    assert PruneResult.read(folder).pruned == first.pruned
    moved = NETWORK.replace(jax.tree.map(lambda leaf: leaf * 2, NETWORK.variables))
    other_data = rp.classification(TASK.train, TASK.held_out, TASK.train)
    for network, task, changes, name in (
        (NETWORK, TASK, {"seed": 1}, "seed"),
        (NETWORK, TASK, {"budgets": "params=0.4"}, "budgets"),
        (moved, TASK, {}, "variables"),
        (NETWORK, other_data, {}, "data.test"),
    ):
        settings = {"budgets": "params=0.5", **ALONE, **changes}
        with pytest.raises(RunDirectoryError, match=f"a run of other settings: {name}"):
            rp.prune(network, task, run_dir=folder, **settings)
    # Other functions of the same names, which no setting tells.
    doubled = dataclasses.replace(TASK, loss=lambda outputs, batch: 2 * TASK.loss(outputs, batch))
    for task, finetune in ((doubled, None), (TASK, lambda apply, variables, steps, key: variables)):
        settings = {"finetune": finetune, "run_dir": folder, **ALONE}
        with pytest.raises(RunDirectoryError, match=r"other code: functions \(\w+ there, \w+ here"):
            rp.prune(NETWORK, task, "params=0.5", **settings)
        with pytest.warns(StaleWarning, match="is kept"):
            kept = rp.prune(NETWORK, task, "params=0.5", stale="keep", **settings)
        assert kept.to_json() == first.to_json()
    with pytest.raises(ValueError, match="stale='never' must be one of"):
        rp.prune(NETWORK, TASK, "params=0.5", stale="never", **ALONE)


def test_a_finished_run_goes_on_with_more_evaluations(tmp_path):
    folder = tmp_path / "run"
    settings = {**ALONE, "evaluations": 8, "candidates": 4}
    short = rp.prune(NETWORK, TASK, "params=0.5", run_dir=folder, **settings)
    before = (folder / "metrics.jsonl").read_text().splitlines()
    settings["evaluations"] = 16
    longer = rp.prune(NETWORK, TASK, "params=0.5", run_dir=folder, **settings)
    assert (short.search["evaluations"], longer.search["evaluations"]) == (8, 16)
    # The first candidates are those of the short run, not evaluated again.
    after = (folder / "metrics.jsonl").read_text().splitlines()
    searched = [line for line in before if '"search-agent"' in line]
    assert [line for line in after if '"search-agent"' in line][: len(searched)] == searched
    assert longer.search["best_held_out_reward"] >= short.search["best_held_out_reward"]
    assert (folder / "result-1.json").exists() and longer.is_within_budgets
    settings["evaluations"] = 8
    with pytest.raises(ValueError, match="evaluations=8 must be at least 16"):
        rp.prune(NETWORK, TASK, "params=0.5", run_dir=folder, **settings)


def test_what_is_refused_leaves_no_run_directory(tmp_path):
    for changes, error in (
        ({"budgets": "params=0.01"}, ValueError),
        ({"budgets": "parms=0.5"}, ValueError),
        ({"evaluations": 0}, ValueError),
        ({"baselines": ("unifrom",)}, ValueError),
        ({"evaluation": 3}, TypeError),
    ):
        settings = {"budgets": "params=0.5", **ALONE, **changes}
        with pytest.raises(error):
            rp.prune(NETWORK, TASK, run_dir=tmp_path / "run", **settings)
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"evaluation": 3}, TypeError, "evaluation= is no setting of prune; did you mean evalua"),
        ({"zzz": 3}, TypeError, "zzz= is no setting of prune; settings: seed"),
        ({"budgets": "params=0.05"}, ValueError, "'params'=0.05 cannot be met.*at least 0."),
        ({"budgets": []}, ValueError, "no budget is given"),
        ({"granularity": "medium"}, ValueError, "granularity='medium' must be one of"),
        ({"baselines": ("anneal",)}, ValueError, "baselines='anneal' must be among agent"),
        ({"task": (1, 2)}, TypeError, "task is a tuple, not a Task"),
        ({"network": mlp_apply}, TypeError, "network is a function, not a Network"),
    ],
)
def test_wrong_arguments_are_refused(changes, error, message):
    given = {"network": NETWORK, "task": TASK, "budgets": "params=0.5", **ALONE, **changes}
    with pytest.raises(error, match=message):
        rp.prune(**given)


def test_nan_weights_are_refused_naming_the_leaf():
    bad = NETWORK.replace({**NETWORK.variables, "c": NETWORK.variables["c"] * jnp.nan})
    with pytest.raises(NetworkError, match="'c'"):
        rp.prune(bad, TASK, "params=0.5", **ALONE)


def test_settings_come_as_a_value_or_by_name():
    config = rp.PruneConfig(**ALONE)
    found = pipeline.with_settings(config, {"seed": 3, "baselines": ["uniform"]})
    assert (found.seed, found.baselines, found.evaluations) == (3, ("uniform",), 16)


def test_a_regression_with_a_finetune_of_ones_own():
    """Targets are the network's own outputs, so the dense loss is 0."""
    splits = [(x, np.asarray(NETWORK(x))) for x, _ in (TASK.train, TASK.held_out, TASK.test)]
    steps_asked = []

    def finetune(apply, variables, steps, key):
        steps_asked.append(steps)
        return variables

    result = rp.prune(NETWORK, rp.regression(*splits), "params=0.5", finetune=finetune, **ALONE)
    assert result.metric_name == "negative_loss"
    assert result.dense.metric == pytest.approx(0, abs=1e-9)
    assert steps_asked[-1] == 4
    x, y = splits[2]
    expected = -np.mean((np.asarray(result.network(x), np.float64) - y) ** 2)
    assert result.pruned.metric == pytest.approx(expected, rel=1e-4)
    assert result.to_json()["pruned"]["negative_loss"] == result.pruned.metric


def test_a_budget_may_be_a_function_itself():
    asked = []

    def width(widths, gates):
        asked.append(widths)
        return float(sum(widths.values()))

    budget = rp.Budget("width", 9, relative=False, function=width)
    pruning = rp.make_pruning(NETWORK, TASK, budget, rp.PruneConfig(**ALONE))
    delivered = rp.deliver(pruning, rp.search(pruning, "random_search"))
    assert sum(delivered.kept.values()) <= 9
    (row,) = delivered.budget_rows()
    assert row["achieved"] == sum(delivered.kept.values()) and row["unit"] == "of its own unit"
    assert delivered.kept in asked


def test_a_metric_that_is_always_nan_delivers_nothing():
    task = rp.Task(TASK.loss, lambda outputs, batch: jnp.nan, *[TASK.train] * 3)
    with pytest.raises(EmptyArchiveError, match="every reward was NaN"):
        rp.prune(NETWORK, task, "params=0.5", **ALONE)


def test_a_cost_and_a_method_of_ones_own_go_all_the_way(monkeypatch):
    def units_cost(network, options):
        """The units that are left."""

        def count(gates):
            return sum(float(np.asarray(gate).sum()) for gate in gates.values())

        return Cost(
            unit="units",
            dense=14.0,
            estimate=lambda gates: sum(gate.sum() for gate in gates.values()) / 14.0,
            exact=lambda gates: without_noise(count(gates)),
        )

    monkeypatch.setitem(COSTS, "units", units_cost)
    monkeypatch.setitem(METHODS, "mine", lambda pruning: random(pruning))
    result = rp.prune(NETWORK, TASK, "units=7", **{**ALONE, "baselines": ("mine",)})
    for found in (result.pruned, result.baselines["mine"]):
        assert sum(found.kept.values()) <= 7
    assert result.budgets[0]["achieved"] == sum(result.pruned.kept.values())
    assert json.dumps(result.to_json())


def test_tokens_and_dictionaries_by_hand():
    """A language model of two tokens, searched without the agent."""

    def apply(variables, tokens):
        hidden = jax.nn.relu(variables["embed"][tokens] @ variables["a"])
        return hidden @ variables["b"]

    keys = jax.random.split(jax.random.key(0), 4)
    variables = {
        "embed": jax.random.normal(keys[0], (5, 4)),
        "a": jax.random.normal(keys[1], (4, 6)),
        "b": jax.random.normal(keys[2], (6, 5)),
    }
    tokens = np.asarray(jax.random.randint(keys[3], (16, 7), 0, 5))
    network = rp.Network(apply, variables, tokens[:2, :-1])
    config = rp.PruneConfig(**ALONE)
    for task in (
        rp.next_token(tokens, tokens, tokens, metric="token_accuracy"),
        rp.Task(
            lambda outputs, batch: jnp.square(outputs - batch["wanted"]).mean(),
            "negative_loss",
            *[{"tokens": tokens[:, :-1], "wanted": np.asarray(network(tokens[:, :-1]))}] * 3,
        ),
    ):
        pruning = rp.make_pruning(network, task, "params=0.7", config)
        delivered = rp.deliver(pruning, rp.search(pruning, "uniform"))
        assert delivered.params <= 0.7 * (20 + 24 + 30)
        shipped = rp.ship(delivered, batches=(1,))
        assert shipped.metric == pytest.approx(delivered.metric, rel=1e-4)


def test_a_latency_is_measured_and_met(tmp_path, monkeypatch):
    """A limit that the dense network meets as well: times of tiny networks are mostly overhead."""
    monkeypatch.setenv("RLPRUNE_CACHE_DIR", str(tmp_path))
    config = rp.PruneConfig(**{**ALONE, "latency_programs": 2, "latency_batch": 4})
    pruning = rp.make_pruning(NETWORK, TASK, ["latency=1s", "params=0.5"], config)
    assert pruning.config.constraint == "both"
    delivered = rp.deliver(pruning, rp.search(pruning, "uniform"))
    rows = {row["name"]: row for row in delivered.budget_rows()}
    assert rows["latency"]["unit"] == "ms" and 0 < rows["latency"]["achieved"] < 1000
    assert rows["params"]["achieved"] <= 0.5


def test_a_network_is_pruned_without_training(tmp_path):
    """Its files hold the repaired weights, and a second run gives the same ones."""
    settings = {**ALONE, "finetune_steps": 0, "rerank_steps": 0, "repair_reward": "merge"}
    one = rp.prune(NETWORK, TASK, "params=0.5", run_dir=tmp_path / "run", **settings)
    assert one.is_within_budgets and one.max_abs_diff < 1e-4
    delivered = one.delivered["agent"]
    inputs = (TASK.train[0],)
    wanted = rp.units.repair(
        NETWORK.apply, NETWORK.graph, NETWORK.variables, delivered.gates, inputs
    )
    np.testing.assert_allclose(delivered.variables["c"], wanted["c"], atol=1e-5)
    x, y = TASK.test
    stored = NETWORK.load_slim(tmp_path / "run" / "slim")
    np.testing.assert_array_equal(stored(x), one.network(x))
    assert one.pruned.metric == pytest.approx(np.mean(np.asarray(stored(x)).argmax(-1) == y))
    same_result(one, rp.prune(NETWORK, TASK, "params=0.5", **settings))


def test_a_predicted_latency_stands_beside_what_was_measured(tmp_path, monkeypatch):
    """Limits that the dense network meets: what is tried is that both are told, in their unit."""
    monkeypatch.setenv("RLPRUNE_CACHE_DIR", str(tmp_path))
    settings = {**ALONE, "latency_batch": 4}
    for limit, unit in (("latency_table=1s", 1), ("latency_table=1x", "dense")):
        result = rp.prune(NETWORK, TASK, [limit, "params=0.5"], **settings)
        row = next(row for row in result.budgets if row["name"] == "latency_table")
        slim = result.pruned.latency_ms[4]
        dense = result.dense.latency_ms[4]["median"] if unit == "dense" else 1
        assert row["measured_ms"] == slim and row["satisfied"]
        assert row["measured"] == pytest.approx(slim["median"] / dense)
        assert "measured) of" in str(result) and "measured" not in result.budgets[1]

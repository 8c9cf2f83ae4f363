import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.export import save_weights
from rlprune_jax.export.plan import make_plan, write_plan
from rlprune_jax.workflow.network import CallError, Network, NetworkError, plain, same_shapes

X = jax.random.normal(jax.random.key(3), (5, 3))


def mlp(key=0):
    keys = jax.random.split(jax.random.key(key), 2)
    return {
        "a": jax.random.normal(keys[0], (3, 6)),
        "b": jax.random.normal(keys[1], (6, 2)),
    }


def apply(variables, x):
    return jax.nn.relu(x @ variables["a"]) @ variables["b"]


def with_mean(params):
    return {"params": params, "batch_stats": {"mean": jnp.zeros(3), "var": jnp.ones(3)}}


def normed(variables, x):
    mean, var = variables["batch_stats"]["mean"], variables["batch_stats"]["var"]
    return apply(variables["params"], (x - mean) / jnp.sqrt(var + 1e-5))


def normed_train(variables, x, key=None):
    old = variables["batch_stats"]
    new = {"mean": 0.9 * old["mean"] + 0.1 * x.mean(0), "var": 0.9 * old["var"] + 0.1 * x.var(0)}
    return apply(variables["params"], (x - x.mean(0)) / x.std(0)), {"batch_stats": new}


def saved(network, folder, gates):
    slim = network.slim(gates)
    save_weights(folder / "weights.safetensors", slim.variables)
    write_plan(folder / "plan.json", make_plan(gates, network.variables, slim.variables))
    return slim


GATES = {"a": jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 1.0])}


def test_a_slim_network_is_its_masked_twin_and_loads_from_other_weights(tmp_path):
    network = Network(apply, mlp(), X[:1])
    slim = saved(network, tmp_path, GATES)
    masked = network.definition.masked(network.variables, GATES, X)
    np.testing.assert_allclose(slim(X), masked, rtol=1e-6)
    kept = np.flatnonzero(GATES["a"])
    own = np.maximum(X @ mlp()["a"][:, kept], 0) @ mlp()["b"][kept]
    np.testing.assert_allclose(slim(X), own, rtol=1e-5)
    loaded = Network(apply, mlp(1), X[:1]).load_slim(tmp_path)
    np.testing.assert_array_equal(loaded(X), slim(X))


def test_a_network_is_a_pytree_of_its_variables():
    network = Network(apply, mlp(), X[:1])
    doubled = jax.tree.map(lambda leaf: 2 * leaf, network)
    np.testing.assert_allclose(doubled(X), 4 * network(X), rtol=1e-6)
    assert doubled.definition is network.definition


def test_the_same_gates_give_the_same_definition():
    network = Network(apply, mlp(), X[:1])
    assert network.slim(GATES).definition is network.slim(dict(GATES)).definition
    assert network.replace(mlp(1)).slim(GATES).definition is network.slim(GATES).definition


def test_what_cannot_be_a_network_is_refused():
    with pytest.raises(NetworkError, match=r"apply=3 is no function"):
        Network(3, mlp(), X)
    with pytest.raises(NetworkError, match=r"example=\(\) holds no array"):
        Network(apply, mlp(), ())
    with pytest.raises(NetworkError, match="not finite at 'a'"):
        Network(apply, mlp() | {"a": jnp.full((3, 6), jnp.nan)}, X)
    with pytest.raises(NetworkError, match=r"hold a str at 'name'"):
        Network(apply, mlp() | {"name": "net"}, X)


def test_functions_that_cannot_be_called_are_refused():
    with pytest.raises(CallError, match=r"apply cannot be called .*float32\[5, 4\]"):
        Network(apply, mlp(), jnp.ones((5, 4)))
    with pytest.raises(CallError, match=r"apply_train cannot be called .*'key'"):
        Network(apply, mlp(), X, apply_train=lambda variables, x: (x, {}))


def test_updates_that_are_no_collections_are_refused():
    def returning(updates):
        return lambda variables, x, key=None: updates

    variables = with_mean(mlp())
    with pytest.raises(CallError, match=r"not \(outputs, updates\)"):
        Network(normed, variables, X, apply_train=returning(X))
    with pytest.raises(CallError, match="'stats', which is no collection"):
        Network(normed, variables, X, apply_train=returning((X, {"stats": X})))
    with pytest.raises(CallError, match="'batch_stats' with other leaves"):
        Network(normed, variables, X, apply_train=returning((X, {"batch_stats": {"mean": X}})))


def test_training_mode_is_always_given_a_key():
    def noisy(variables, x, key):
        return apply(variables, x + jax.random.normal(key, x.shape)), {}

    network = Network(apply, mlp(), X, apply_train=noisy)
    outputs, _ = network.apply_train(network.variables, X)
    assert outputs.shape == (5, 2)


def test_doubts_about_running_statistics_are_told():
    variables = with_mean(mlp())
    with pytest.warns(UserWarning, match="no apply_train"):
        Network(normed, variables, X)
    with pytest.warns(UserWarning, match="training mode leaves them as they are"):
        Network(normed, variables, X, apply_train=lambda v, x, key=None: (normed(v, x), {}))
    with pytest.warns(UserWarning, match="'batch_stats/mean' .* is among the parameters"):
        Network(
            lambda v, x: normed(v["params"], x),
            {"params": variables},
            X,
            apply_train=lambda v, x, key=None: (normed(v["params"], x), {}),
        )
    Network(normed, variables, X, apply_train=normed_train)  # a warning would fail the test


def test_only_networks_of_modules_have_one():
    with pytest.raises(NetworkError, match="has no module"):
        _ = Network(apply, mlp(), X).module


def test_plain_turns_frozen_dictionaries_into_dictionaries():
    from flax.core import freeze

    found = plain({"params": freeze({"a": {"b": jnp.ones(2)}})})
    assert type(found["params"]) is dict and type(found["params"]["a"]) is dict
    assert same_shapes(freeze({"a": X}), {"a": X})
    assert not same_shapes({"a": X}, {"a": X.astype(jnp.int32)})

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from rlprune_jax.training.optimizers import make_optimizer, make_schedule

PARAMS = {"kernel": jnp.array([[1.0, -2.0], [3.0, 4.0]]), "bias": jnp.array([5.0, -6.0])}
GRADIENTS = {"kernel": jnp.array([[0.3, 0.1], [-0.2, 0.4]]), "bias": jnp.array([0.5, -0.1])}


def trajectory(optimizer, steps=4):
    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(GRADIENTS, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (PARAMS, optimizer.init(PARAMS)), length=steps)
    return params


def test_schedules_rise_and_fall_where_told():
    steps = np.arange(12)
    constant = make_schedule(0.5, warmup=4)
    np.testing.assert_allclose(
        [constant(step) for step in steps], 0.5 * np.minimum(1, (steps + 1) / 5), rtol=1e-6
    )
    linear = make_schedule(0.5, num_steps=10, schedule="linear", warmup=2)
    np.testing.assert_allclose(
        [linear(step) for step in steps],
        [0.5 / 3, 1 / 3, *np.linspace(0.5, 0, 9), 0],
        rtol=1e-5,
        atol=1e-7,
    )
    cosine = make_schedule(2.0, num_steps=10, schedule="cosine")
    np.testing.assert_allclose(
        [cosine(step) for step in (0, 5, 10, 20)], [2.0, 1.0, 0.0, 0.0], atol=1e-6
    )


@pytest.mark.parametrize("decayed", ["kernels", "all"])
def test_sgd_with_everything_equals_the_rule_in_numpy(decayed):
    """Clip, then decay, then Nesterov momentum: the order of the SAP paper's code."""
    rate, momentum, decay, clip = 0.1, 0.9, 0.05, 0.5
    result = trajectory(
        make_optimizer(
            "sgd", learning_rate=rate, weight_decay=decay, decayed=decayed, clip_norm=clip
        )
    )
    norm = np.sqrt(sum(float((g**2).sum()) for g in GRADIENTS.values()))
    for name in PARAMS:
        value, trace = np.array(PARAMS[name], np.float64), 0.0
        for _ in range(4):
            gradient = np.array(GRADIENTS[name]) * min(1, clip / norm)
            gradient = gradient + (decay * value if decayed == "all" or name == "kernel" else 0)
            trace = momentum * trace + gradient
            value = value - rate * (gradient + momentum * trace)
        np.testing.assert_allclose(result[name], value, rtol=1e-5)


def test_adam_decays_kernels_apart_from_the_gradient():
    result = trajectory(make_optimizer("adam", learning_rate=0.01, weight_decay=0.1))
    mask = {"kernel": True, "bias": False}
    expected = trajectory(optax.adamw(0.01, weight_decay=0.1, mask=mask))
    for name in PARAMS:
        np.testing.assert_allclose(result[name], expected[name], rtol=1e-6)
    plain = trajectory(make_optimizer("adam", learning_rate=0.01))
    np.testing.assert_array_equal(result["bias"], plain["bias"])


def test_every_number_may_be_traced():
    def final(rate, decay, clip):
        return trajectory(
            make_optimizer(
                learning_rate=rate,
                num_steps=9,
                schedule="cosine",
                weight_decay=decay,
                clip_norm=clip,
            )
        )

    rates, decays, clips = jnp.array([0.1, 0.3]), jnp.array([0.0, 0.1]), jnp.array([9.0, 0.1])
    mapped = jax.vmap(final)(rates, decays, clips)
    for index in range(2):
        single = final(float(rates[index]), float(decays[index]), float(clips[index]))
        for name in PARAMS:
            np.testing.assert_allclose(mapped[name][index], single[name], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "lion"}, "'lion' is unknown; choose from sgd and adam"),
        ({"learning_rate": -0.1}, "learning_rate=-0.1"),
        ({"learning_rate": float("nan")}, "learning_rate=nan"),
        ({"momentum": 1.0}, "momentum=1.0"),
        ({"weight_decay": -1e-4}, "weight_decay=-0.0001"),
        ({"decayed": "biases"}, "decayed='biases' is unknown; choose from kernels and all"),
        ({"clip_norm": 0.0}, "clip_norm=0.0"),
        ({"schedule": "step"}, "schedule='step' is unknown"),
        ({"schedule": "cosine"}, "num_steps=None must be given"),
        ({"schedule": "linear", "num_steps": 5, "warmup": 5}, "above warmup=5"),
        ({"warmup": -1}, "warmup=-1"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_optimizer(**({"learning_rate": 0.1} | options))

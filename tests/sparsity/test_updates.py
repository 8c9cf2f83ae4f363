from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

from rlprune_jax.sparsity.masks import apply_mask, make_mask, total_density
from rlprune_jax.sparsity.pruners import lottery_ticket
from rlprune_jax.sparsity.updates import every, mask_moments, masked_updates, replace_mask

PARAMS = {
    "layer": {
        "kernel": jnp.arange(1.0, 13.0).reshape(4, 3) * jnp.array([1.0, -1.0, 0.5]),
        "bias": jnp.ones(3),
    }
}
MASK = {"layer": {"kernel": jnp.arange(12).reshape(4, 3) % 3 > 0, "bias": jnp.array(True)}}


def gradients(step):
    return jax.tree.map(lambda leaf: jnp.sin(leaf + step), PARAMS)


OPTIMIZERS = {
    "sgd": lambda: optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adamw": lambda: optax.adamw(0.1, weight_decay=0.1),
    "clipped": lambda: optax.chain(
        optax.clip_by_global_norm(1.0), optax.add_decayed_weights(5e-4), optax.sgd(0.1)
    ),
    "lion": lambda: optax.lion(0.1),
    "adafactor": lambda: optax.adafactor(0.1, min_dim_size_to_factor=2),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_pruned_weights_are_zero_and_kept_ones_bit_equal(name):
    masked = optax.chain(OPTIMIZERS[name](), masked_updates(MASK))
    plain = OPTIMIZERS[name]()
    params = apply_mask(PARAMS, MASK)
    masked_state, plain_state = masked.init(params), plain.init(params)

    @jax.jit
    def both(params, masked_state, plain_state, step):
        grads = gradients(step)
        ours, masked_state = masked.update(grads, masked_state, params)
        theirs, plain_state = plain.update(grads, plain_state, params)
        return ours, theirs, masked_state, plain_state

    for step in range(4):
        ours, theirs, masked_state, plain_state = both(params, masked_state, plain_state, step)
        # Applied outside of jit, which may fuse the learning rate's product with this sum.
        unmasked = optax.apply_updates(params, theirs)
        params = optax.apply_updates(params, ours)
        kept = MASK["layer"]["kernel"]
        np.testing.assert_array_equal(params["layer"]["kernel"][~kept], 0.0)
        np.testing.assert_array_equal(
            params["layer"]["kernel"][kept], unmasked["layer"]["kernel"][kept]
        )
        np.testing.assert_array_equal(params["layer"]["bias"], unmasked["layer"]["bias"])


def test_dense_weights_become_zero_at_the_first_step():
    optimizer = optax.chain(optax.sgd(0.3), masked_updates(MASK))
    updates, _ = optimizer.update(gradients(0), optimizer.init(PARAMS), PARAMS)
    params = optax.apply_updates(PARAMS, updates)
    np.testing.assert_array_equal(params["layer"]["kernel"][:, 0], 0.0)


@pytest.mark.parametrize("inside", [True, False])
def test_it_composes_with_multi_steps(inside):
    link = masked_updates(MASK)
    if inside:
        optimizer = optax.MultiSteps(optax.chain(optax.adam(0.1), link), 2)
    else:
        steps = optax.MultiSteps(optax.adam(0.1), 2).gradient_transformation()
        optimizer = optax.chain(steps, link)
    plain = optax.MultiSteps(optax.adam(0.1), 2)
    params = apply_mask(PARAMS, MASK)
    state, plain_state = optimizer.init(params), plain.init(params)
    for step in range(4):
        updates, state = optimizer.update(gradients(step), state, params)
        theirs, plain_state = plain.update(gradients(step), plain_state, params)
        kept = MASK["layer"]["kernel"]
        unmasked = optax.apply_updates(params, theirs)
        params = optax.apply_updates(params, updates)
        np.testing.assert_array_equal(params["layer"]["kernel"][~kept], 0.0)
        np.testing.assert_array_equal(
            params["layer"]["kernel"][kept], unmasked["layer"]["kernel"][kept]
        )


def schedule_free_weights(optimizer, mask):
    """Weights after training and what is evaluated of them, by a schedule-free optimizer."""
    params = apply_mask(PARAMS, mask)
    state = optimizer.init(params)
    for step in range(5):
        updates, state = optimizer.update(gradients(step), state, params)
        params = optax.apply_updates(params, updates)
    free = state if isinstance(state, optax.contrib.ScheduleFreeState) else state[0]
    return params, optax.contrib.schedule_free_eval_params(free, params)


def test_schedule_free_evaluates_masked_weights_as_the_docstring_says():
    link = masked_updates(MASK)
    inner = optax.chain(optax.adam(0.1), link)
    inside = optax.contrib.schedule_free(inner, 0.1, b1=0.9)
    outside = optax.chain(optax.contrib.schedule_free(optax.adam(0.1), 0.1, b1=0.9), link)
    pruned = ~MASK["layer"]["kernel"]
    trained, evaluated = schedule_free_weights(inside, MASK)
    for weights in (trained, evaluated):
        assert not weights["layer"]["kernel"][pruned].any()
    others, wanderers = schedule_free_weights(outside, MASK)
    assert not others["layer"]["kernel"][pruned].any()
    # What the docstring warns of: without apply_mask another network would be evaluated.
    assert wanderers["layer"]["kernel"][pruned].all()
    same = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
    jax.tree.map(same, apply_mask(wanderers, MASK), evaluated)
    jax.tree.map(same, others, trained)


def test_half_precision_weights_are_zero_too():
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), PARAMS)
    optimizer = optax.chain(optax.sgd(0.3), masked_updates(MASK))
    updates, _ = optimizer.update(params, optimizer.init(params), params)
    params = optax.apply_updates(params, updates)
    assert params["layer"]["kernel"].dtype == jnp.bfloat16
    assert (params["layer"]["kernel"][:, 0] == 0).all()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_moments_of_pruned_weights_are_forgotten_in_any_state(name):
    optimizer = optax.chain(OPTIMIZERS[name](), masked_updates(make_mask(PARAMS)))
    state = optimizer.init(PARAMS)
    _, state = optimizer.update(gradients(0), state, PARAMS)
    replaced = replace_mask(state, PARAMS, MASK)
    assert jax.tree.structure(replaced) == jax.tree.structure(state)
    kept, moments = MASK["layer"]["kernel"], 0
    for before, after in zip(jax.tree.leaves(state), jax.tree.leaves(replaced), strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        if before.shape != kept.shape:
            np.testing.assert_array_equal(before, after)
        elif before.dtype == bool:
            np.testing.assert_array_equal(after, kept)
        else:
            moments += 1
            np.testing.assert_array_equal(after, jnp.where(kept, before, 0))
    assert moments == {"sgd": 1, "adamw": 2, "lion": 1, "injected": 2}.get(name, 0)


def test_moments_that_are_nan_do_not_leak():
    state = optax.trace(0.9).init(PARAMS)
    state = jax.tree.map(lambda leaf: jnp.full_like(leaf, jnp.nan), state)
    moments = mask_moments(state, PARAMS, MASK).trace["layer"]["kernel"]
    np.testing.assert_array_equal(moments, np.where(MASK["layer"]["kernel"], np.nan, 0))


def test_averages_under_accumulation_are_found():
    steps = optax.MultiSteps(optax.adam(0.1), 3)
    state = steps.init(PARAMS)
    _, state = steps.update(gradients(0), state, PARAMS)
    masked = mask_moments(state, PARAMS, MASK)
    assert (masked.acc_grads["layer"]["kernel"][:, 0] == 0).all()
    assert (state.acc_grads["layer"]["kernel"][:, 0] != 0).all()


def refreshing():
    return optax.chain(
        optax.adam(0.01),
        masked_updates(make_mask(PARAMS), lottery_ticket(0.5), every(3, begin=2, end=8)),
    )


def test_the_mask_is_refreshed_at_the_steps_that_are_due():
    optimizer = refreshing()
    params, state = PARAMS, optimizer.init(PARAMS)
    live = []

    @jax.jit
    def advance(params, state, step):
        updates, state = optimizer.update(gradients(step), state, params, step=step)
        return optax.apply_updates(params, updates), state

    for step in range(10):
        params, state = advance(params, state, step)
        live.append(total_density(state[-1].mask).live)
        assert int(jnp.count_nonzero(params["layer"]["kernel"])) == live[-1]
    assert live == [12, 12, 6, 6, 6, 3, 3, 3, 3, 3]


def test_under_vmap_selection_stays_in_a_conditional():
    """A select would run it for every model at every step."""
    optimizer = refreshing()
    models = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), PARAMS)
    states = jax.vmap(optimizer.init)(models)

    def advance(params, state, step):
        updates, state = optimizer.update(gradients(step), state, params, step=step)
        return optax.apply_updates(params, updates), state

    many = jax.vmap(advance, in_axes=(0, 0, None))
    program = jax.make_jaxpr(many)(models, states, 0)
    loops = [eqn.primitive.name for eqn in program.eqns]
    assert "cond" in loops and "while" not in loops
    # A batched number of the step is what one must not do.
    batched = jax.make_jaxpr(jax.vmap(advance))(models, states, jnp.zeros(2, jnp.int32))
    assert "while" in str(batched) and "cond" not in [e.primitive.name for e in batched.eqns]
    for step in range(3):
        models, states = jax.jit(many)(models, states, step)
    assert jnp.count_nonzero(models["layer"]["kernel"], axis=(1, 2)).tolist() == [6, 6]


def test_every_counts_from_its_beginning():
    due = every(4, begin=1)
    assert [step for step in range(12) if due(step)] == [1, 5, 9]


def test_bad_input():
    with pytest.raises(ValueError, match="pruner and due go together"):
        masked_updates(MASK, lottery_ticket(0.5))
    with pytest.raises(ValueError, match="needs params"):
        link = masked_updates(MASK)
        link.update(PARAMS, link.init(PARAMS))
    with pytest.raises(ValueError, match="needs the number of the step"):
        optimizer = refreshing()
        optimizer.update(PARAMS, optimizer.init(PARAMS), PARAMS)
    with pytest.raises(ValueError, match=r"not congruent.*'layer/bias'"):
        masked_updates({"layer": {"kernel": MASK["layer"]["kernel"]}}).init(PARAMS)
    with pytest.raises(ValueError, match="holds no masked_updates"):
        replace_mask(optax.adam(0.1).init(PARAMS), PARAMS, MASK)
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        every(0)
    with pytest.raises(ValueError, match="begin=-1"):
        every(1, begin=-1)

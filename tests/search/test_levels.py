import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from separable import SIZES, linear, problem

from rlprune_jax.search import candidate_costs, feasible
from rlprune_jax.search.levels import (
    counts_to_masks,
    fine_levels,
    group_levels,
    kept_counts,
    measured_errors,
    plan_measurements,
    prior_errors,
    put_on_budgets,
)


@given(
    number=st.integers(2, 30),
    least=st.integers(0, 4),
    multiple=st.integers(1, 4),
    fine=st.booleans(),
)
@settings(max_examples=40, deadline=None)
def test_levels_are_allowed_numbers_from_all_to_min_keep(number, least, multiple, fine):
    env = problem(None, [1.0], min_keep=least, round_to=multiple)
    levels = (fine_levels if fine else group_levels)(env, number)
    assert levels[:, 0].tolist() == list(SIZES) and levels[:, -1].tolist() == list(env.min_keep)
    assert (np.diff(levels, axis=1) <= 0).all()
    rest = (levels % np.array(env.multiples)[:, None] == 0) | (levels == np.array(SIZES)[:, None])
    assert rest.all()
    # No rounding on the way to masks.
    masks = counts_to_masks(env, jnp.asarray(levels.T))
    assert kept_counts(env, masks).T.tolist() == levels.tolist()


def test_fine_levels_are_all_there_are_where_they_fit():
    env = problem(linear, [40.0, 20.0])
    levels = fine_levels(env, 64)
    for row, size in zip(levels, SIZES, strict=True):
        assert list(dict.fromkeys(row.tolist())) == list(range(size, 0, -1))


def test_every_single_group_is_measured_once():
    env = problem(linear, [40.0, 20.0])
    plan = plan_measurements(env, 4, 5, 10)
    rows = plan.counts.reshape(-1, 4)
    assert rows[0].tolist() == list(SIZES)
    narrowed = (rows != np.array(SIZES)).sum(1)
    assert (narrowed <= 1).all()
    pairs = [tuple(row) for row in rows[narrowed == 1].tolist()]
    assert len(set(pairs)) == len(pairs)
    for group in range(4):
        for level, count in enumerate(plan.levels[group]):
            row = rows[plan.place[group, level]]
            assert row[group] == count


def test_fewer_levels_are_measured_where_evaluations_are_few():
    env = problem(linear, [40.0, 20.0])
    assert plan_measurements(env, 4, 12, 100).levels.shape == (4, 12)
    assert plan_measurements(env, 4, 12, 4).levels.shape[1] < 12
    short = plan_measurements(env, 4, 12, 1)
    assert short.counts.shape == (1, 4, 4) and (short.place == -1).any()
    assert plan_measurements(env, 4, 12, 0).counts.shape == (0, 4, 4)


def test_errors_are_what_single_groups_lose_and_never_fall():
    env = problem(linear, [40.0, 20.0])
    plan = plan_measurements(env, 4, 5, 10)
    rng = np.random.default_rng(0)
    rewards = jnp.asarray(rng.uniform(size=plan.counts.shape[:2]), jnp.float32)
    errors = np.asarray(measured_errors(env, plan, rewards))
    flat = np.asarray(rewards).reshape(-1)
    expected = np.maximum.accumulate(flat[0] - flat[plan.place], axis=1).clip(0)
    np.testing.assert_allclose(errors, expected, atol=1e-6)
    missing = rewards.at[0, 1].set(jnp.nan)
    assert np.isfinite(measured_errors(env, plan, missing)).all()


def test_what_is_not_measured_is_guessed_on_the_same_scale():
    env = problem(linear, [40.0, 20.0])
    plan = plan_measurements(env, 4, 3, 1)
    prior = np.asarray(prior_errors(env, plan.levels))
    assert prior[:, 0].tolist() == [0] * 4 and prior[:, -1].tolist() == [1] * 4
    rewards = 1 - 0.3 * prior.reshape(-1)[np.zeros((1, 4), int)]
    for number, (group, level) in enumerate(zip(*np.nonzero(plan.place > 0), strict=True)):
        rewards[0, plan.place[group, level]] = 1 - 0.3 * prior[group, level]
        assert number < 3
    errors = measured_errors(env, plan, jnp.asarray(rewards))
    np.testing.assert_allclose(errors, 0.3 * prior, rtol=1e-5)


def test_a_prior_depends_on_the_units_and_not_on_repeated_levels():
    env = problem(linear, [40.0, 20.0])
    levels = group_levels(env, 24)
    prior = np.asarray(prior_errors(env, levels))
    for row, errors in zip(levels, prior, strict=True):
        assert len({(count, error) for count, error in zip(row, errors)}) == len(set(row))  # noqa: B905
    assert (np.diff(prior, axis=1) >= 0).all()


@pytest.mark.parametrize("multiple", [1, 3])
def test_what_is_put_on_the_budgets_meets_them_and_keeps_what_fits(multiple):
    env = problem(linear, [30.0, 14.0], round_to=multiple)
    counts = jnp.asarray([SIZES, env.min_keep, (1, 3, 1, 3)], jnp.int32)
    masks = put_on_budgets(env, counts)
    assert bool(feasible(candidate_costs(env, masks), env.limits).all())
    assert (kept_counts(env, masks)[1:] >= jnp.asarray(env.min_keep)).all()

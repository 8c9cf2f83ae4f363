import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from reference import bits, network, network_mask, reference, vector

from rlprune_jax.sparsity.masks import make_mask, total_density
from rlprune_jax.sparsity.pruners import (
    cubic_schedule,
    gradual,
    lottery_ticket,
    magnitude,
    one_shot,
    random_pruning,
    sap,
)


def step(pruner, params, mask, **options):
    return pruner.update(params, mask, pruner.init(params, mask), **options)[0]


@jax.jit
def sap_grid(w, mask, p, q, eta_r, gamma):
    def one(p, q, eta_r, gamma):
        return step(sap(p, q, eta_r, gamma, 0.9), w, mask)

    return jax.vmap(one)(p, q, eta_r, gamma)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["normal20", "normal20_masked", "ties10", "two_level10", "ramp4"])
def test_masks_match_the_reference_all_settings_in_one_vmap(name, wide):
    check_rows(name, wide)


def test_masks_match_the_reference_on_every_vector():
    for name in {row["v"] for row in reference()["sap"]}:
        check_rows(name, wide=False)


def check_rows(name, wide):
    rows = [row for row in reference()["sap"] if row["v"] == name and not row["fragile"]]
    if not rows:
        return
    w, mask = vector(name)
    with jax.enable_x64(wide):
        w = jnp.asarray(w, float)
        numbers = (jnp.asarray([row[key] for row in rows]) for key in ("p", "q", "eta", "gamma"))
        found = sap_grid(w, jnp.asarray(mask), *numbers)
    for row, kept in zip(rows, np.asarray(found), strict=True):
        np.testing.assert_array_equal(kept, bits(row["mask_paper"]), err_msg=str(row))
        assert mask.sum() - kept.sum() == row["c_paper"]


def test_the_float32_switch_prunes_as_the_released_code():
    different = 0
    released = jax.jit(lambda w, mask, *settings: step(sap(*settings, 0.9, float32=True), w, mask))
    for name in ("normal20", "normal20_masked", "ties10", "uniform8", "half_zero10"):
        w, mask = vector(name)
        for row in reference()["sap"]:
            if row["v"] != name or row["fragile"]:
                continue
            settings = row["p"], row["q"], row["eta"], row["gamma"]
            kept = released(jnp.asarray(w, jnp.float32), jnp.asarray(mask), *settings)
            np.testing.assert_array_equal(kept, bits(row["mask_official_f32"]), err_msg=str(row))
            different += row["mask_official_f32"] != row["mask_paper"]
    assert different > 5


def test_two_steps_on_a_network_match_the_reference_in_every_scope():
    params, _, entry = network()
    tree = {name: jnp.asarray(values, jnp.float32) for name, values in params.items()}
    checked = {"global": 0, "layer": 0, "neuron": 0}
    for row in entry["sap"]:
        if any(each["fragile"] for each in row["steps"]):
            continue
        pruner = JITTED_SAP[row["scope"]]
        mask = make_mask(tree)
        for each in row["steps"]:
            mask = pruner(tree, mask, row["p"], row["q"], row["eta"], row["gamma"])
            expected = network_mask(each["mask_paper"], params)
            jax.tree.map(np.testing.assert_array_equal, dict(mask), expected)
        checked[row["scope"]] += 1
    assert min(checked.values()) >= 4, checked


JITTED_SAP = {
    scope: jax.jit(
        lambda tree, mask, p, q, eta, gamma, scope=scope: step(
            sap(p, q, eta, gamma, 0.9, scope, unit_axis=0), tree, mask
        )
    )
    for scope in ("global", "layer", "neuron")
}


@pytest.mark.parametrize("scope", ["global", "layer", "neuron"])
def test_lottery_ticket_matches_the_reference_up_to_one_weight_of_rounding(scope):
    """The released code takes an interpolated quantile, floor(0.2 (d - 1)) + 1; we floor(0.2 d).

    Where both counts agree the masks must.
    """
    params, order, entry = network()
    tree = {name: jnp.asarray(values, jnp.float32) for name, values in params.items()}
    rows = {row["scope"]: row for row in entry["lt_and_os_P0_2"]}
    mask, agreed = make_mask(tree), 0
    for encoded in rows[scope]["masks_after_1_2_3_prunes"]:
        expected = network_mask(encoded, params)
        ours = step(lottery_ticket(0.2, scope, unit_axis=0), tree, mask)
        for name in order:
            for u in range(len(tree[name])):
                mine, theirs = np.asarray(ours[name][u]), expected[name][u]
                if scope == "neuron" and mine.sum() == theirs.sum():
                    np.testing.assert_array_equal(mine, theirs)
                    agreed += 1
            if scope == "layer" and ours[name].sum() == expected[name].sum():
                np.testing.assert_array_equal(ours[name], expected[name])
                agreed += 1
        if scope == "global" and total_density(ours).live == total_density(expected).live:
            jax.tree.map(np.testing.assert_array_equal, dict(ours), expected)
            agreed += 1
        mask = {name: jnp.asarray(leaf) for name, leaf in expected.items()}
    assert agreed >= 1


def small_tree(seed=0, shape=(20, 10)):
    rng = np.random.default_rng(seed)
    return {
        "kernel": jnp.asarray(rng.standard_normal(shape), jnp.float32),
        "bias": jnp.ones(shape[-1]),
    }


@pytest.mark.parametrize("make", [lottery_ticket, one_shot])
def test_densities_follow_the_powers_exactly(make):
    params = small_tree()
    mask, live = make_mask(params), 200
    pruner = make(0.2)
    state = pruner.init(params, mask)
    update = jax.jit(chex.assert_max_traces(pruner.update, n=1))
    for t in range(10):
        mask, state = update(params, mask, state)
        live -= live // 5
        assert total_density(mask).live == live
        assert int(state.step) == t + 1
    assert mask["bias"].shape == ()


def test_the_rate_may_be_traced():
    params = small_tree()
    kept = jax.vmap(lambda rate: step(lottery_ticket(rate), params, make_mask(params))["kernel"])(
        jnp.array([0.0, 0.2, 0.5, 1.0])
    )
    assert kept.sum((1, 2)).tolist() == [200, 160, 100, 0]


def test_one_shot_ranks_by_the_first_weights():
    params, later = small_tree(0), small_tree(1)
    mask = make_mask(params)
    pruner = one_shot(0.5)
    state = pruner.init(params, mask)
    mask, state = pruner.update(params, mask, state)
    mask, state = pruner.update(later, mask, state)
    order = np.argsort(np.abs(np.asarray(params["kernel"])).reshape(-1))
    expected = np.ones(200, bool)
    expected[order[:150]] = False
    np.testing.assert_array_equal(np.asarray(mask["kernel"]).reshape(-1), expected)
    # The lottery ticket ranks by the weights as they are.
    mask = step(lottery_ticket(0.5), params, make_mask(params))
    assert (
        np.asarray(step(lottery_ticket(0.5), later, mask)["kernel"]).reshape(-1) != expected
    ).any()


def test_gradual_reaches_what_its_schedule_says():
    params = small_tree()
    mask = make_mask(params)
    pruner = gradual(cubic_schedule(0.9, updates=4), scope="layer")
    state = pruner.init(params, mask)
    seen = []
    for _ in range(5):
        mask, state = pruner.update(params, mask, state)
        seen.append(total_density(mask).live)
    shares = [0.9 * (1 - (1 - min((t + 1) / 4, 1)) ** 3) for t in range(5)]
    assert seen == [200 - int(np.floor(200 * share + 1e-4)) for share in shares]
    assert seen[-1] == seen[-2] == 20
    # A schedule that falls brings nothing back.
    falling = gradual(lambda step: 0.0)
    assert total_density(step(falling, params, mask)).live == 20


def test_random_pruning_is_a_function_of_its_key():
    params = small_tree()
    mask = make_mask(params)
    masks = [
        step(random_pruning(0.3, key=jax.random.key(seed)), params, mask)["kernel"]
        for seed in (0, 0, 1)
    ]
    assert [int(kept.sum()) for kept in masks] == [140] * 3
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    pruner = random_pruning(0.5, key=jax.random.key(0))
    first, state = pruner.update(params, mask, pruner.init(params, mask))
    again, _ = pruner.update(params, mask, state)
    assert (first["kernel"] != again["kernel"]).any()


def test_any_score_ranks():
    params = small_tree()
    mask = make_mask(params)
    scores = jax.tree.map(lambda leaf: -jnp.abs(leaf), params)
    largest = np.abs(np.asarray(params["kernel"])).reshape(-1).argmax()
    for kept in (
        step(lottery_ticket(0.005), params, mask, scores=scores),
        step(lottery_ticket(0.005, score=lambda tree: scores), params, mask),
    ):
        assert np.flatnonzero(~np.asarray(kept["kernel"]).reshape(-1)).tolist() == [largest]


def test_beta_bounds_and_gamma_scales():
    w, mask = jnp.array([1e-3] * 9 + [1.0]), jnp.ones(10, bool)
    assert int(step(sap(gamma=50.0, beta=0.3), w, mask).sum()) == 7
    assert int(step(sap(gamma=50.0, beta=0.9), w, mask).sum()) == 1
    base = int(step(sap(gamma=1.0), jnp.arange(1.0, 11.0), mask).sum())
    assert int(step(sap(gamma=3.0), jnp.arange(1.0, 11.0), mask).sum()) < base


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_a_scope_with_a_weight_that_is_no_number_loses_nothing(bad):
    params = {"a": jnp.array([[1.0, bad, 0.1, 0.2]]), "b": jnp.array([[1.0, -5.0, 0.1, 0.2]])}
    mask = make_mask(params)
    kept = step(sap(scope="layer"), params, mask)
    assert kept["a"].all() and int(kept["b"].sum()) == 3
    assert total_density(step(sap(), params, mask)).live == 8
    # Other pruners drop NaN last.
    assert bool(step(lottery_ticket(0.5, "layer"), params, mask)["a"][0, 1])


def test_nothing_left_stays_nothing():
    params = {"w": jnp.ones((2, 2))}
    mask = {"w": jnp.zeros((2, 2), bool)}
    for pruner in (sap(), lottery_ticket(), one_shot(), random_pruning(key=jax.random.key(0))):
        assert total_density(step(pruner, params, mask)).live == 0


def test_magnitude_leaves_integers_alone():
    scores = magnitude({"w": jnp.array([-1.0]), "n": jnp.array([-1])})
    assert scores["w"].tolist() == [1.0] and scores["n"].tolist() == [-1]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: sap(p=1.0, q=1.0), "p=1.0 must be below q=1.0"),
        (lambda: sap(p=-1.0), "p=-1.0 must be above 0"),
        (lambda: sap(eta_r=-0.5), "eta_r=-0.5 must be at least 0"),
        (lambda: sap(gamma=0.0), "gamma=0.0 must be above 0"),
        (lambda: sap(beta=0.0), "beta=0.0 must be above 0 and at most 1"),
        (lambda: sap(beta=1.5), "beta=1.5 must be above 0 and at most 1"),
        (lambda: sap(scope="filter"), "scope='filter' is unknown"),
        (lambda: lottery_ticket(1.2), "rate=1.2 must be at least 0 and at most 1"),
        (lambda: one_shot(scope="x"), "scope='x' is unknown"),
        (lambda: random_pruning(-0.1, key=jax.random.key(0)), "rate=-0.1 must be"),
        (lambda: gradual(lambda step: 0.5, "x"), "scope='x' is unknown"),
        (lambda: cubic_schedule(1.5, 3), "final_sparsity=1.5 must be"),
        (lambda: cubic_schedule(0.5, 0), "updates=0 must be at least 1"),
        (lambda: cubic_schedule(0.5, 3, initial=0.9), "initial=0.9 must be at most final_sparsity"),
        (lambda: sap(q=jnp.inf), "q=inf must be above 0 and finite"),
        (lambda: sap(gamma=jnp.inf), "gamma=inf must be above 0 and finite"),
        (lambda: random_pruning(key=0), "key=0 must be one typed key"),
        (lambda: random_pruning(key=jax.random.PRNGKey(0)), "must be one typed key"),
    ],
)
def test_bad_numbers_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_schedule_above_one_is_refused_where_it_is_known_and_clipped_where_it_is_not():
    params, mask = jnp.arange(4.0), jnp.ones(4, bool)
    pruner = gradual(lambda step: 1.5)
    state = pruner.init(params, mask)
    with pytest.raises(ValueError, match=r"schedule\(step\)=1.5 must be at least 0 and at most 1"):
        pruner.update(params, mask, state)
    traced = gradual(lambda step: 1.5 + step)
    assert not jax.jit(traced.update)(params, mask, state)[0].any()


def test_weights_whose_score_is_nan_go_last():
    params, mask = jnp.array([4.0, 3.0, 0.1, 2.0]), jnp.ones(4, bool)
    pruner = lottery_ticket(0.5, score=lambda w: jnp.where(w < 1, jnp.nan, w))
    kept, _ = pruner.update(params, mask, pruner.init(params, mask))
    assert kept.tolist() == [True, False, True, False]


def test_bad_masks_are_named():
    params = small_tree()
    for pruner in (sap(), lottery_ticket(), one_shot(), gradual(lambda step: 0.5)):
        with pytest.raises(ValueError, match=r"not congruent.*'kernel'"):
            pruner.init(params, {"kernel": jnp.ones((2, 2), bool), "bias": jnp.array(True)})

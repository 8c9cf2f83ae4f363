import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from reference import network, reference, vector

from rlprune_jax.sparsity.pqi import gini, pq_bound, pq_index, pq_index_grid

PAIRS = [(0.5, 1.0), (1.0, 2.0), (0.2, 2.0), (0.5, 2.0)]


def index_of(w, mask=None, p=0.5, q=1.0):
    """The definition, in NumPy float64."""
    w = np.abs(np.asarray(w, np.float64))
    w = w if mask is None else w[np.asarray(mask)]
    d = len(w)
    norm = lambda a: np.sum(w**a) ** (1 / a)  # noqa: E731
    return 1 - d ** (1 / q - 1 / p) * norm(p) / norm(q)


@jax.jit
def both_grids(w, mask, p, q, eta_r):
    index = jax.vmap(lambda p, q: pq_index(w, mask, p=p, q=q))(p, q)
    bound = jax.vmap(lambda p, q, eta: pq_bound(w, mask, p=p, q=q, eta_r=eta))(p, q, eta_r)
    return index, bound


@pytest.mark.parametrize("name", reference()["vectors"])
@pytest.mark.parametrize("wide", [False, True])
def test_index_and_bound_match_the_reference(name, wide):
    rows = [row for row in reference()["pqi"] if row["v"] == name]
    steps = [row for row in reference()["sap"] if row["v"] == name and row["gamma"] == 1]
    w, mask = vector(name)
    tolerance = 1e-9 if wide else 1e-5
    with jax.enable_x64(wide):
        w, mask = jnp.asarray(w, float), jnp.asarray(mask)
        for row in rows:
            index = pq_index(w, mask, p=row["p"], q=row["q"])
            assert index.dtype == (jnp.float64 if wide else jnp.float32)
            # Ten digits are given.
            assert abs(float(index) - row["pqi"]) < tolerance
            bound = pq_bound(w, mask, p=row["p"], q=row["q"])
            assert float(bound) == pytest.approx(row["r_eta0"], rel=tolerance)
            assert float(index) <= row["upper_bound"] + tolerance
        # Many at once, exponents traced.
        p, q, eta, r, index = (
            jnp.asarray([row[key] for row in steps or rows])
            for key in (("p", "q", "eta", "r", "pqi") if steps else ("p", "q", "p", "p", "pqi"))
        )
        indices, bounds = both_grids(w, mask, p, q, eta)
        np.testing.assert_allclose(indices, index, atol=tolerance)
        if steps:
            np.testing.assert_allclose(bounds, r, rtol=tolerance)


def test_every_scope_of_the_reference_network():
    params, order, entry = network()
    for row in entry["pqi"]:
        tree = {name: jnp.asarray(values, jnp.float32) for name, values in params.items()}
        found = pq_index(tree, p=row["p"], q=row["q"], scope=row["scope"], unit_axis=0)
        if row["scope"] == "global":
            flat = {"global": found}
        elif row["scope"] == "layer":
            flat = found
        else:
            flat = {f"{n}[{u}]": found[n][u] for n in order for u in range(len(found[n]))}
        assert set(flat) == set(row) - {"scope", "p", "q"}
        for name, value in flat.items():
            assert float(value) == pytest.approx(row[name], abs=1e-5)


def test_gini_matches_the_reference():
    for row in reference()["gini"]:
        w, mask = vector(row["v"])
        # The released code adds 1e-7 to every weight.
        found = gini(jnp.asarray(np.abs(w) + 1e-7, jnp.float32), jnp.asarray(mask))
        assert float(found) == pytest.approx(row["gini_official_f64"], abs=2e-6)


def test_gini_per_scope():
    rng = np.random.default_rng(0)
    w, mask = rng.standard_normal((6, 3)), rng.random((6, 3)) < 0.7
    tree, alive = {"w": jnp.asarray(w, jnp.float32)}, {"w": jnp.asarray(mask)}
    layer = gini(tree, alive, scope="layer")["w"]
    assert float(layer) == pytest.approx(float(gini(tree, alive)), rel=1e-6)
    units = gini(tree, alive, scope="neuron")["w"]
    for unit in range(3):
        values = jnp.asarray(w[mask[:, unit], unit], jnp.float32)
        assert float(units[unit]) == pytest.approx(float(gini(values)), rel=1e-5)


def test_limits_for_large_dimension():
    rng = np.random.default_rng(0)
    size = 400_000
    draws = {
        "gaussian": rng.standard_normal(size),
        "uniform_symmetric": rng.uniform(-1, 1, size),
        "laplace": rng.laplace(size=size),
    }
    rows = [row for row in reference()["analytic_large_d_limits"] if row["distribution"] in draws]
    assert len(rows) == 12
    for row in rows:
        w = jnp.asarray(draws[row["distribution"]], jnp.float32)
        assert float(pq_index(w, p=row["p"], q=row["q"])) == pytest.approx(row["pqi"], abs=4e-3)


def test_sums_of_millions_keep_their_digits():
    w = np.random.default_rng(0).standard_normal(5_000_000).astype(np.float32)
    for p, q in ((0.5, 1.0), (1.0, 2.0)):
        assert float(pq_index(jnp.asarray(w), p=p, q=q)) == pytest.approx(
            index_of(w, p=p, q=q), abs=1e-5
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("scale", [1e-30, 1e-4, 1.0, 1e4, 1e37])
def test_scale_does_not_matter_in_any_type(dtype, scale):
    with jax.enable_x64(dtype == "float64"):
        if dtype == "float16" and not 1e-4 <= scale <= 1e4:
            scale = {1e-30: 1e-4, 1e37: 1e4}[scale]
        w = jnp.asarray(np.array([1.0, 2.0, 3.0, 4.0]) * scale, dtype)
        for p, q in PAIRS:
            expected = index_of(np.asarray(w, np.float64) / scale, p=p, q=q)
            assert float(pq_index(w, p=p, q=q)) == pytest.approx(expected, abs=2e-6)


def test_one_hot_of_tiny_weights_keeps_its_index():
    # The released code returns 0 here: the sum of squares underflows.
    assert float(pq_index(jnp.array([1e-30, 0, 0, 0]), p=1, q=2)) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    "w, mask, index, bound",
    [
        ([0.0, 0.0, 0.0], [1, 1, 1], 0.0, 3.0),
        ([-3.0], [1], 0.0, 1.0),
        ([1.0, 2.0], [0, 0], 0.0, 0.0),
        ([5.0, np.nan, np.inf], [1, 0, 0], 0.0, 1.0),
    ],
)
def test_degenerate_vectors(w, mask, index, bound):
    w, mask = jnp.asarray(w, jnp.float32), jnp.asarray(mask, bool)
    assert float(pq_index(w, mask)) == index
    assert float(pq_bound(w, mask)) == bound
    assert float(gini(w, mask)) == 0.0
    gradient = jax.grad(lambda w: pq_index(w, mask))(w)
    assert not np.isnan(gradient).any()


def test_an_empty_leaf_is_empty():
    assert float(pq_index({"w": jnp.zeros((0, 3)), "v": jnp.eye(2)})) == 0.5
    assert float(pq_index(jnp.zeros(0))) == 0.0


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_live_weight_that_is_no_number_shows(bad):
    w = jnp.array([1.0, bad, 2.0])
    assert np.isnan(pq_index(w)) and np.isnan(pq_bound(w))
    assert not np.isnan(pq_index(w, jnp.array([True, False, True])))


WEIGHTS = st.lists(st.floats(0.01, 100.0), min_size=2, max_size=8)
SAFE = st.sampled_from([(0.5, 1.0), (1.0, 2.0), (0.3, 1.7), (1.0, 1.5)])


def index64(w, p, q):
    # Padded to one shape, so that each pair of exponents compiles once.
    padded = np.zeros(24)
    padded[: len(w)] = w
    alive = np.arange(24) < len(w)
    with jax.enable_x64(True):
        return float(JITTED(jnp.asarray(padded), jnp.asarray(alive), p, q))


JITTED = jax.jit(lambda w, alive, p, q: pq_index(w, alive, p=p, q=q))


@given(WEIGHTS, SAFE, st.floats(0.01, 0.49), st.floats(0.1, 50.0))
def test_the_six_properties(w, exponents, share, amount):
    p, q = exponents
    w = np.array(w)
    base = index64(w, p, q)
    assert base == pytest.approx(index_of(w, p=p, q=q), abs=1e-9)
    assert -1e-12 <= base <= 1 - len(w) ** (1 / q - 1 / p) + 1e-12
    # Scaling, cloning, babies.
    assert index64(w * amount, p, q) == pytest.approx(base, abs=1e-9)
    assert index64([*w, *w], p, q) == pytest.approx(base, abs=1e-9)
    assert index64([*w, 0.0], p, q) > base
    # Bill Gates: beyond some greatness of one weight, more of it is sparser.
    rich = w.copy()
    rich[0] += 1000 * w.sum()
    richer = rich.copy()
    richer[0] += amount * w.sum()
    assert index64(richer, p, q) > index64(rich, p, q)
    assume(w.max() > 1.05 * w.min())
    # Robin Hood: from the greatest to the least; rising tide.
    gift = share * (w.max() - w.min())
    poorer = w.copy()
    poorer[w.argmax()] -= gift
    poorer[w.argmin()] += gift
    assert index64(poorer, p, q) < base
    assert index64(w + amount, p, q) < base


@given(WEIGHTS, SAFE)
def test_the_bound_of_theorem_2(w, exponents):
    """For every r, the eta_r that r has gives a bound that r respects."""
    p, q = exponents
    powers = np.sort(np.array(w))[::-1] ** p
    index = index64(w, p, q)
    for r in range(1, len(w) + 1):
        eta_r = powers[r:].sum() / powers[:r].sum()
        factor = (1 + eta_r) ** (-q / (q - p))
        assert r >= len(w) * factor * (1 - index) ** (p * q / (q - p)) - 1e-9


def test_zeros_leave_the_bound_unchanged():
    w = jnp.array([1.0, 2.0, 3.0])
    padded = jnp.concatenate([w, jnp.zeros(5)])
    for p, q in PAIRS:
        assert float(pq_bound(w, p=p, q=q)) == pytest.approx(float(pq_bound(padded, p=p, q=q)))


def test_robin_hood_fails_outside_the_safe_range_and_a_warning_says_so():
    for row in reference()["robin_hood_D1"]:
        if isinstance(row["w"], str):
            continue
        w = np.array(row["w"])
        after = w.copy()
        after[row["take_from"]] -= row["alpha"]
        after[row["give_to"]] += row["alpha"]
        p, q = float(row["p"]), float(row["q"])
        assert index64(w, p, q) == pytest.approx(row["before"], abs=1e-9)
        assert index64(after, p, q) == pytest.approx(row["after"], abs=1e-9)
        if p > 1:
            assert index64(after, p, q) > index64(w, p, q)
            with pytest.warns(UserWarning, match=r"p=2.0, q=3.0: outside p <= 1 <= q"):
                pq_index(jnp.asarray(w), p=p, q=q)
    with pytest.warns(UserWarning, match="Robin Hood"):
        pq_index(jnp.ones(3), p=0.2, q=0.5)


def test_a_grid_shares_its_moments():
    w = {"a": jnp.asarray(np.random.default_rng(0).standard_normal((5, 4)), jnp.float32)}
    p, q = jnp.array([0.5, 1.0, 1.5]), jnp.array([1.0, 2.0])
    for scope in ("global", "layer", "neuron"):
        grid = pq_index_grid(w, p=p, q=q, scope=scope)
        grid = grid if scope == "global" else grid["a"]
        assert grid.shape[:2] == (3, 2)
        single = pq_index(w, p=0.5, q=2.0, scope=scope)
        single = single if scope == "global" else single["a"]
        np.testing.assert_allclose(grid[0, 1], single, atol=1e-6)
        assert (np.asarray(grid[1, 0]) == 0).all() and np.isnan(grid[2, 0]).all()


def test_gradients_agree_with_differences():
    w = np.array([0.3, -1.0, 2.0, 0.7])
    with jax.enable_x64(True):
        gradient = jax.grad(lambda w: pq_index(w, p=0.5, q=1.0))(jnp.asarray(w))
    steps = np.eye(4) * 1e-6
    expected = [(index_of(w + step) - index_of(w - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(gradient, expected, atol=1e-8)


def test_bad_input():
    w = jnp.ones(3)
    with pytest.raises(ValueError, match=r"p=1.0 must be below q=1.0"):
        pq_index(w, p=1.0, q=1.0)
    with pytest.raises(ValueError, match=r"p=0.0 must be above 0"):
        pq_index(w, p=0.0)
    with pytest.raises(ValueError, match=r"eta_r=-0.1 must be at least 0"):
        pq_bound(w, eta_r=-0.1)
    with pytest.raises(ValueError, match="scope='unit' is unknown; choose from global, layer"):
        pq_index(w, scope="unit")
    with pytest.raises(TypeError, match="int32"):
        pq_index(jnp.arange(3))
    with pytest.raises(ValueError, match="nothing is prunable"):
        pq_index({"bias": w})
    with pytest.raises(ValueError, match=r"congruent.*'a'"):
        pq_index({"a": jnp.eye(2)}, {"a": jnp.ones(3, bool)})
    with pytest.raises(ValueError, match="no prunable leaf"):
        pq_index({"a": jnp.eye(2)}, {"a": jnp.array(True)})
    with pytest.raises(ValueError, match="must be above 0"):
        pq_index_grid(w, p=[0.0], q=[1.0])
    with pytest.raises(ValueError, match=r"q has shape \(\)"):
        pq_index_grid(w, p=[0.5], q=1.0)
    with pytest.raises(ValueError, match="unit_axis=2 is no axis of 'a'"):
        pq_index({"a": jnp.eye(2)}, scope="neuron", unit_axis=2)
    with pytest.raises(ValueError, match="q=inf must be above 0 and finite"):
        pq_index(w, q=np.inf)
    with pytest.raises(ValueError, match=r"p has shape \(2,\); give one number, or several"):
        pq_index(w, p=jnp.array([0.5, 0.7]))
    with pytest.raises(ValueError, match="p='half' must be a number"):
        pq_index(w, p="half")
    with pytest.raises(ValueError, match="eta_r=inf must be at least 0 and finite"):
        pq_bound(w, eta_r=np.inf)
    with pytest.raises(ValueError, match=r"p has shape \(0,\); give f32\[P\] of one or more"):
        pq_index_grid(w, p=[], q=[1.0])
    with pytest.raises(ValueError, match=r"q=.*must be above 0 and finite"):
        pq_index_grid(w, p=[0.5], q=[1.0, np.inf])


def test_half_precision_exponents_are_numbers():
    index = pq_index(jnp.array([1.0, 2.0]), p=jnp.bfloat16(0.5), q=jnp.bfloat16(1.0))
    np.testing.assert_allclose(index, pq_index(jnp.array([1.0, 2.0])), atol=1e-6)

"""Masks that keep most within costs that do not rise with the widths, against enumeration."""

import itertools

import jax
import numpy as np
import pytest

from rlprune_jax.costs import Budget, Constraint, Cost
from rlprune_jax.costs.cost import without_noise
from rlprune_jax.kept import rank
from rlprune_jax.search import make_environment
from rlprune_jax.search.environment import round_masks
from rlprune_jax.workflow.fitting import allowed_mask, fit_to_budgets
from rlprune_jax.workflow.levels import Asked, largest_number, make_levels, unit_worth

SMALL, LARGE = (4, 3, 5), (16, 24, 12, 20)
FORBIDDEN = 1e6


def steps(widths):
    return (-(-widths // 4) * 4).sum(-1)


def hump(widths):
    total = widths.sum(-1)
    fraction = total / (12 if widths.shape[-1] == 3 else 72)
    return np.where((fraction > 0.4) & (fraction < 0.6), FORBIDDEN, total)


def parity(widths):
    return np.where(widths.sum(-1) % 2 == widths.shape[-1] % 2, widths.sum(-1), FORBIDDEN)


def dear_first_layer(widths):
    return 10 * widths[..., 0] + widths[..., 1:].sum(-1)


def rough(widths):
    """Noise that is the same each time: jagged by a fifth around a sum."""
    waves = np.sin(widths @ np.array([37, 11, 23, 5])[: widths.shape[-1]] * 12.9898)
    return widths.sum(-1) * (1 + 0.2 * waves)


ODD = [steps, hump, parity, dear_first_layer, rough]


def problem(sizes, function, limit, asks, round_to=1):
    """An environment and a cost of the host that counts how often it is asked."""
    calls = []

    def exact(gates):
        calls.append(1)
        return without_noise(float(function(np.array([gate.sum() for gate in gates.values()]))))

    cost = Cost("x", 1.0, None, exact, in_search=lambda gates: exact(gates).value, asks=asks)
    scores = [np.random.default_rng(7).gamma(1.0, 1.0, size) for size in sizes]
    env = make_environment(sizes, scores, np.eye(len(sizes)), [limit], round_to=round_to)
    return env, (Constraint(Budget("odd", limit, relative=False), cost),), calls


def limit_between(function, sizes, part):
    """A limit between the costs of the smallest and the largest network."""
    if function in (hump, parity):
        return len(sizes) + part * (sum(sizes) - len(sizes))
    low, high = (float(function(np.array(each))) for each in ([1] * len(sizes), sizes))
    return low + part * (high - low)


def draw(env, seed, keep):
    mask = jax.random.bernoulli(jax.random.key(seed), keep, env.ranks.shape)
    return allowed_mask(env, mask)


def best_below(env, function, limit, mask):
    """The most worth that any mask below one has within the limit, over all widths."""
    worth = [
        np.append(0, np.cumsum(np.sort(row[kept])[::-1]))
        for row, kept in zip(unit_worth(env), mask, strict=True)
    ]
    grids = np.meshgrid(*[np.arange(1, len(each)) for each in worth], indexing="ij")
    widths = np.stack(grids, -1).reshape(-1, len(mask))
    total = sum(each[widths[:, g]] for g, each in enumerate(worth))
    return total[function(widths) <= limit].max()


def as_mask(env, gates):
    return np.stack([np.pad(gate, (0, env.num_units - len(gate))) > 0 for gate in gates.values()])


@pytest.mark.parametrize("fill", [True, False])
@pytest.mark.parametrize("function", ODD)
def test_what_is_within_is_delivered_with_what_can_be_added_alone(function, fill):
    cases = 0
    for seed, part, keep in itertools.product(range(4), (0.3, 0.8), (0.2, 0.7)):
        limit = limit_between(function, SMALL, part)
        env, constraints, _ = problem(SMALL, function, limit, asks=128)
        mask = draw(env, seed, keep)
        if function(mask.sum(-1)) > limit:
            continue
        cases += 1
        given = as_mask(env, fit_to_budgets(env, constraints, mask, fill=fill))
        assert (given >= mask).all() and function(given.sum(-1)) <= limit
        if not fill:
            np.testing.assert_array_equal(given, mask)
            continue
        # Nothing within the limit lies above it, of all widths that there are.
        ranges = [range(a, b + 1) for a, b in zip(given.sum(-1), SMALL, strict=True)]
        above = np.array(list(itertools.product(*ranges)))
        assert (function(above) <= limit).sum() == 1
    assert cases >= 2


@pytest.mark.parametrize("asks", [12, 128])
@pytest.mark.parametrize("function", ODD)
def test_a_large_network_within_loses_nothing_however_few_are_asked_for(function, asks):
    for seed, keep in itertools.product(range(3), (0.2, 0.7)):
        env, _, _ = problem(LARGE, function, 1.0, asks)
        mask = draw(env, seed, keep)
        limit = float(function(mask.sum(-1)))
        if limit >= FORBIDDEN:
            continue
        _, constraints, calls = problem(LARGE, function, limit, asks)
        given = as_mask(env, fit_to_budgets(env, constraints, mask))
        assert (given >= mask).all() and function(given.sum(-1)) <= limit
        assert len(calls) <= asks + 1


@pytest.mark.parametrize("function", ODD)
def test_what_is_over_keeps_as_much_as_can_be_kept(function):
    """All widths of the small network are asked for, so none keeps more of the mask."""
    for seed, part in itertools.product(range(6), (0.2, 0.5)):
        limit = limit_between(function, SMALL, part)
        env, constraints, calls = problem(SMALL, function, limit, asks=128)
        mask = draw(env, seed, 0.8)
        gates = fit_to_budgets(env, constraints, mask)
        kept = as_mask(env, gates)
        assert function(kept.sum(-1)) <= limit and len(calls) <= 128 + 3
        worth = unit_worth(env)[kept & mask].sum()
        assert worth >= best_below(env, function, limit, mask) - 1e-9


@pytest.mark.parametrize(
    ("asks", "near"),
    [
        (128, dict.fromkeys(ODD, 0.95)),
        (12, {steps: 0.9, dear_first_layer: 0.7, rough: 0.8, hump: 0.3, parity: 0.3}),
    ],
)
@pytest.mark.parametrize("function", ODD)
def test_a_large_network_keeps_nearly_as_much_for_few_asks(function, asks, near):
    """Of 92,160 combinations of widths 128 are asked for, and 12 as of a latency."""
    for seed, part in itertools.product(range(4), (0.2, 0.6)):
        limit = limit_between(function, LARGE, part)
        env, constraints, calls = problem(LARGE, function, limit, asks)
        mask = draw(env, seed, 0.9)
        kept = as_mask(env, fit_to_budgets(env, constraints, mask))
        assert function(kept.sum(-1)) <= limit and len(calls) <= asks + 3
        worth = unit_worth(env)[kept & mask].sum()
        assert worth >= near[function] * best_below(env, function, limit, mask)


@pytest.mark.parametrize("function", ODD)
def test_multiples_stay_multiples_within_odd_costs(function):
    limit = limit_between(function, LARGE, 0.5)
    env, constraints, _ = problem(LARGE, function, limit, 128, round_to=4)
    for seed, fill in itertools.product(range(3), (True, False)):
        gates = fit_to_budgets(env, constraints, draw(env, seed, 0.8), fill=fill)
        widths = np.array([int(gate.sum()) for gate in gates.values()])
        assert (widths % 4 == 0).all() and function(widths) <= limit


def test_without_filling_all_groups_shrink_alike():
    env, constraints, _ = problem(LARGE, dear_first_layer, 100.0, 128)
    gates = fit_to_budgets(env, constraints, np.ones(env.ranks.shape), fill=False)
    widths = np.array([float(gate.sum()) for gate in gates.values()])
    assert dear_first_layer(widths) <= 100
    assert np.ptp(widths / np.array(LARGE)) < 0.1
    filled = fit_to_budgets(env, constraints, np.ones(env.ranks.shape))
    assert sum(float(gate.sum()) for gate in filled.values()) > widths.sum() + 10


def test_a_known_mask_is_delivered_rather_than_a_smaller_one():
    """Within the limit are the smallest network and one that the search found, nothing else."""
    known_widths = (9, 13, 7, 5)

    def only_two(widths):
        return 1.0 if tuple(widths) in (known_widths, (1, 1, 1, 1)) else 2.0

    env, constraints, _ = problem(LARGE, only_two, 1.0, 64)
    known = np.asarray(env.ranks) < np.array(known_widths)[:, None]
    over = np.asarray(env.ranks) < 10
    for given, widths in (((), (1, 1, 1, 1)), ((known,), known_widths)):
        gates = fit_to_budgets(env, constraints, over, known=given)
        assert tuple(int(gate.sum()) for gate in gates.values()) == widths


def test_a_mask_below_all_that_is_within_grows():
    def at_least_ten(widths):
        return max(0, 10 - sum(widths))

    env, constraints, _ = problem(LARGE, at_least_ten, 0.0001, 64)
    mask = np.asarray(env.ranks) < 1
    kept = as_mask(env, fit_to_budgets(env, constraints, mask, fill=False))
    assert kept.sum() >= 10 and (kept >= mask).all()
    with pytest.raises(ValueError, match=r"no mask with min_keep=.* was found that meets.*odd"):
        fit_to_budgets(*problem(LARGE, lambda widths: 3.0, 1.0, 64)[:2], mask)


def test_counts_come_first_and_asks_end():
    env, constraints, calls = problem(SMALL, steps, 8.0, asks=2)
    count = Cost("units", 12, None, lambda gates: without_noise(sum(map(np.sum, gates.values()))))
    both = (*constraints, Constraint(Budget("units", 7.0, relative=False), count))
    asked, levels = Asked(env, both), make_levels(env)
    widths = [(1, 1, 1), (4, 3, 5), (1, 2, 1), (1, 1, 2)]
    allowed = [asked.within(levels.mask(np.array(each) - 1)) for each in widths]
    # One is within; the second has too many units, so the host is not asked; two asks are all.
    assert allowed == [False, False, False, False] and len(calls) == 2 and asked.left == 0
    assert np.isnan(asked.uppers(levels.mask(np.array([0, 0, 1])))).tolist() == [False, True]
    assert not np.isnan(asked.uppers(levels.mask(np.array([0, 0, 1])), must=True)).any()


def test_a_group_is_worth_its_number_of_units_whatever_its_scale():
    scores = [[1.0, 3.0], [100.0, 0.0, 200.0], [0.0, 0.0, 0.0, 0.0]]
    env = make_environment([2, 3, 4], scores, np.eye(3), [1.0])
    worth = unit_worth(env)
    np.testing.assert_allclose(worth[0], [0.5, 1.5, 0, 0])
    np.testing.assert_allclose(worth.sum(-1), [2, 3, 4])


@pytest.mark.parametrize("asks", [6, 24, 200])
def test_the_largest_number_is_found_where_numbers_fit_up_to_one(asks):
    for last in range(0, 101, 5):
        tried = []

        def fits(number, last=last, tried=tried):
            tried.append(number)
            return number <= last

        found = largest_number(fits, 0, 100, asks)
        assert found == last and len(tried) <= asks + 7
    assert largest_number(lambda number: False, 0, 100, asks) is None
    assert largest_number(lambda number: True, 3, 2, asks) is None


@pytest.mark.parametrize(("least", "multiple"), [(1, 1), (2, 3), (3, 4)])
def test_numbers_of_units_are_those_that_a_search_rounds_to(least, multiple):
    """``round_masks`` is a second way to the same masks."""
    scores = [np.random.default_rng(3).normal(size=size) for size in (5, 8, 12)]
    env = make_environment((5, 8, 12), scores, np.eye(3), [1.0], min_keep=least, round_to=multiple)
    for seed in range(3):
        mask = np.random.default_rng(seed).random(env.ranks.shape) < 0.2 + 0.3 * seed
        # Groups below their least get their best units first.
        kept = np.where(mask & np.asarray(env.alive), np.inf, -np.asarray(env.ranks, float))
        enough = rank(kept) < np.maximum((kept == np.inf).sum(-1), least)[:, None]
        expected = np.asarray(round_masks(env, enough.astype(np.float32), env.raw_scores))
        np.testing.assert_array_equal(allowed_mask(env, mask), expected > 0)

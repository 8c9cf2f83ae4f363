import math
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.costs.budgets import Budget, format_number, parse_budget, parse_budgets
from rlprune_jax.costs.registry import COSTS, UNITS

RELATIVE, ABSOLUTE = True, False


@pytest.mark.parametrize(
    ("text", "limit", "relative"),
    [
        ("params=0.1", 0.1, RELATIVE),
        ("params=1", 1.0, RELATIVE),
        ("params=.5", 0.5, RELATIVE),
        ("params=1e-3", 0.001, RELATIVE),
        ("params=10%", 0.1, RELATIVE),
        ("params=0.5x", 0.5, RELATIVE),
        ("params=5000", 5000.0, ABSOLUTE),
        ("params=2", 2.0, ABSOLUTE),
        ("params=5e3", 5000.0, ABSOLUTE),
        ("params=50k", 50_000.0, ABSOLUTE),
        ("params=0.5k", 500.0, ABSOLUTE),
        # Not a whole number in floating point: 1.001 * 1000 = 1000.9999999999999.
        ("params=1.001k", 1001.0, ABSOLUTE),
        ("macs=1.5M", 1.5e6, ABSOLUTE),
        ("tiled_macs=2G", 2e9, ABSOLUTE),
        ("weight_bytes=0.5", 0.5, RELATIVE),
        ("weight_bytes=100kB", 100_000.0, ABSOLUTE),
        ("weight_bytes=1B", 1.0, ABSOLUTE),
        ("weight_bytes=4096", 4096.0, ABSOLUTE),
        ("activation_memory=2MB", 2e6, ABSOLUTE),
        ("activation_memory=2MiB", 2.0 * 2**20, ABSOLUTE),
        ("activation_memory=0.5KiB", 512.0, ABSOLUTE),
        ("latency=2.5", 2.5, ABSOLUTE),
        ("latency=0.5", 0.5, ABSOLUTE),
        ("latency=2.5ms", 2.5, ABSOLUTE),
        ("latency=800us", 0.8, ABSOLUTE),
        ("latency_table=0.1s", 100.0, ABSOLUTE),
        ("latency=0.5x", 0.5, RELATIVE),
        ("latency=50%", 0.5, RELATIVE),
        ("my_costs:energy=7", 7.0, ABSOLUTE),
        ("my_costs:energy=0.5", 0.5, ABSOLUTE),
        ("my_costs:energy=7.5k", 7500.0, ABSOLUTE),
        ("my_costs:energy=0.3x", 0.3, RELATIVE),
    ],
)
def test_limits(text, limit, relative):
    name = text.partition("=")[0]
    parsed = parse_budget(text)
    assert parsed == Budget(name=name, limit=limit, relative=relative)
    assert parsed.is_function == (":" in name)
    assert parse_budget(parsed) is parsed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("params", "'params' is not of the form NAME=LIMIT"),
        ("=0.1", "'=0.1' is not of the form NAME=LIMIT"),
        ("params=few", "the limit 'few' is not a number"),
        ("params=", "the limit '' is not a number"),
        ("params=1_0", "the limit '1_0' is not a number; write it as in 0.1, 5000, 50k"),
        ("params=0.1 ", "the limit '0.1 ' is not a number"),
        ("params=١", "is not a number"),
        ("params=nan", "the limit 'nan' is not a number"),
        ("params=-inf", "the limit '-inf' is not a number"),
        ("size=0.1", "'size' is unknown; known budgets: params, macs, .*latency; a function"),
        ("params=0", r"'params'=0 must be a fraction of the dense network in \(0, 1\]"),
        ("params=-0.5", "'params'=-0.5 must be a fraction"),
        ("params=-5k", "'params'=-5000 must be a finite number above 0"),
        ("params=0k", "'params'=0 must be a finite number above 0"),
        ("params=1e-999", "'params'=0 must be a fraction"),
        ("macs=1e999", "'macs'=inf must be a finite number above 0"),
        ("macs=1.5", r"'macs'=1.5 must be a fraction .* or a whole number of MACs; write macs=0.5"),
        ("params=0.0001k", "or a whole number of parameters"),
        ("weight_bytes=1.5B", "or a whole number of bytes"),
        ("params=1.5x", r"'params'=1.5 must be a fraction .* in \(0, 1\]"),
        ("latency=150%", r"'latency'=1.5 must be a fraction .* in \(0, 1\]"),
        ("latency=0%", "'latency'=0 must be a fraction"),
        ("latency=-1", "'latency'=-1 must be a finite number above 0"),
        ("latency=0", "'latency'=0 must be a finite number above 0"),
        ("params=5kB", "the unit 'kB' does not fit a cost counted in parameters; use no unit, k"),
        ("params=5ms", "the unit 'ms' does not fit a cost counted in parameters"),
        ("params=5K", "the unit 'K' does not fit"),
        ("params=5e", "the unit 'e' does not fit"),
        (
            "weight_bytes=5k",
            "'k' does not fit a cost counted in bytes; use no unit, B, kB",
        ),
        ("latency=5kB", "the unit 'kB' does not fit a cost counted in ms; use no unit, ms, us, s"),
        ("a:b=5ms", "the unit 'ms' does not fit a cost counted in its own unit"),
        ("a:b=-1", "'a:b'=-1 must be a finite number above 0"),
    ],
)
def test_texts_that_are_no_budget_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_budget(text)


def energy(widths, gates):
    return 1.0


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget("size", 0.1, RELATIVE), "'size' is unknown"),
        (Budget("params", 1.5, RELATIVE), "must be a fraction"),
        (Budget("params", math.nan, RELATIVE), "must be a fraction"),
        (Budget("params", math.inf, ABSOLUTE), "must be a finite number above 0"),
        (Budget("params", True, RELATIVE), "the limit must be a number"),
        (Budget("params", "0.1", RELATIVE), "the limit must be a number"),
        (Budget("params", 0.1, RELATIVE, energy), "'params' is a known cost; give your function"),
        (Budget("energy", 0.1, RELATIVE, 3), "function=3 cannot be called"),
    ],
)
def test_budgets_that_cannot_be_are_refused(budget, message):
    with pytest.raises(ValueError, match=message):
        parse_budget(budget)


def test_a_function_is_given_by_itself_or_by_its_name():
    mine = Budget("energy", 40.0, ABSOLUTE, energy)
    assert parse_budgets(["params=0.1", mine]) == (Budget("params", 0.1, RELATIVE), mine)
    assert parse_budgets([], ["a:b=7"]) == parse_budgets(["a:b=7"]) == parse_budgets("a:b=7")
    assert mine.is_function and parse_budgets(mine) == (mine,)


@pytest.mark.parametrize(
    ("texts", "functions", "message"),
    [
        ([], [], "no budget is given"),
        (["params=0.1", "params=5000"], [], "'params' is given twice"),
        (["a:b=1"], ["a:b=2"], "'a:b' is given twice"),
        ([], ["energy=3"], "'energy=3' is not of the form module:function=LIMIT"),
        ([], [":energy=3"], "not of the form module:function=LIMIT"),
        ([], ["a:b"], "not of the form module:function=LIMIT"),
        ([], ["a:b=nan"], "the limit 'nan' is not a number"),
    ],
)
def test_sets_of_budgets_that_cannot_be_are_refused(texts, functions, message):
    with pytest.raises(ValueError, match=message):
        parse_budgets(texts, functions)


@given(
    name=st.sampled_from([*COSTS, "mine:energy"]),
    relative=st.booleans(),
    fraction=st.floats(1e-6, 1.0),
    count=st.integers(2, 10**14),
)
def test_what_is_written_reads_back_the_same(name, relative, fraction, count):
    budget = Budget(name, fraction if relative else float(count), relative)
    assert parse_budget(str(budget)) == budget


@given(st.decimals(min_value=1, max_value=1000, places=3), st.sampled_from(["k", "M", "G"]))
def test_scales_are_exact(number, suffix):
    scale = {"k": 10**3, "M": 10**6, "G": 10**9}[suffix]
    assert parse_budget(f"macs={number}{suffix}").limit == Fraction(number) * scale


def test_every_cost_has_a_unit_and_numbers_are_written_whole():
    assert set(UNITS) == set(COSTS)
    assert format_number(1234567) == "1234567" and format_number(0.25) == "0.25"

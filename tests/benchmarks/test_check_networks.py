"""The check of networks: its own count, and that it would see what is wrong."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checked_networks import all_cases, checks
from checked_networks.case import Built, Case, parameters, randomise, rows
from checked_networks.counting import own_macs, own_params
from checked_networks.table import markdown, progress, summarise


def mlp():
    variables = parameters(3, a=(6, 8), b=(8, 5), c=(5, 4))

    def apply(v, x):
        return jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]

    return Built(apply=apply, variables=variables, inputs=(rows(6),))


MLP = Case(name="mlp", family="mlp", package="own", build=mlp)
PARAMS = 6 * 8 + 8 * 5 + 5 * 4


@functools.cache
def row_of_mlp():
    return checks.check(MLP)


@functools.cache
def row_of_resnet():
    case = next(case for case in all_cases() if case.name == "resnet_basic")
    return checks.check(case)


def test_a_network_whose_numbers_are_known():
    row = row_of_mlp()
    assert row.traces and not row.wrong and not row.errors
    assert (row.groups, row.units, row.parameters) == (2, 13, PARAMS)
    assert row.owned == 1.0
    assert row.left == pytest.approx((6 * 4 + 4 * 2 + 2 * 4) / PARAMS)
    assert row.macs_dense == (PARAMS, PARAMS) and row.macs_whole
    assert row.macs_slim[0] == row.macs_slim[1] < 3 * PARAMS
    assert row.framework == row.widths == "same"
    assert row.evaluation < checks.SINGLE < 0.1 < row.moved


def test_batch_norm_is_compared_in_both_modes():
    row = row_of_resnet()
    assert row.traces and not row.wrong and not row.errors
    assert row.training is not None and row.evaluation is not None
    assert row.owned > 0.99


def test_masked_unlike_slim_is_seen(monkeypatch):
    def leaking(apply, graph):
        def masked(variables, gates, *inputs):
            first = next(iter(gates.values()))
            return apply(variables, *inputs) * (1 + 1e-3 * (1 - first.mean()))

        return masked

    monkeypatch.setattr(checks, "gated", leaking)
    row = checks.check(MLP)
    assert any("masked and slim differ" in each for each in row.wrong)
    assert row.dense == 0.0


def test_ones_unlike_dense_are_seen(monkeypatch):
    gated = checks.gated

    def dimmed(apply, graph):
        masked = gated(apply, graph)
        return lambda variables, gates, *inputs: 0.999 * masked(variables, gates, *inputs)

    monkeypatch.setattr(checks, "gated", dimmed)
    row = checks.check(MLP)
    assert row.wrong and row.dense == pytest.approx(1e-3, rel=1e-2)


@pytest.mark.parametrize("name", ["count_params", "count_macs"])
def test_a_wrong_count_is_seen(monkeypatch, name):
    count = getattr(checks, name)
    monkeypatch.setattr(checks, name, lambda *arguments: count(*arguments) + 1)
    assert len(checks.check(MLP).wrong) == 1 + (name == "count_macs")


def test_an_exception_is_a_row(monkeypatch):
    def broken():
        raise RuntimeError("no such thing | at all\nand more")

    row = checks.check(Case(name="broken", family="cnn", package="own", build=broken))
    assert row.errors == ["build: RuntimeError: no such thing | at all"] and not row.traces

    monkeypatch.setattr(checks, "count_macs", lambda *_: 1 / 0)
    row = checks.check(MLP)
    assert row.wrong == ["fails to count MACs"] and row.evaluation is not None


def test_a_network_may_not_take_for_ever():
    def slow():
        while True:
            pass

    row = checks.check(Case(name="slow", family="cnn", package="own", build=slow), seconds=0.2)
    assert row.errors == ["took longer than 0 s"]


def test_rounding_is_decided_in_float64():
    def build():
        variables = parameters(3, a=(6, 40), b=(40, 30), c=(30, 4))

        def apply(v, x):
            return jnp.sin(1e4 * (jax.nn.relu(jax.nn.relu(x @ v["a"]) @ v["b"]) @ v["c"]))

        return Built(apply=apply, variables=variables, inputs=(rows(6),))

    row = checks.check(Case(name="magnifies", family="mlp", package="own", build=build))
    assert row.precision == "float64" and not row.wrong


def test_own_count_multiplies_loops_and_takes_the_dearer_branch():
    def apply(v, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, v["layers"])
        x = jax.lax.cond(x.sum() > 0, lambda x: x @ v["one"] @ v["two"], lambda x: 2 * x, x)
        return jax.jit(lambda x: x @ v["head"])(x)

    shapes = {"layers": (5, 4, 4), "one": (4, 7), "two": (7, 4), "head": (4, 3)}
    variables = {name: jnp.ones(shape) for name, shape in shapes.items()}
    counted = own_macs(apply, variables, (jnp.ones((3, 4)),), 1)
    assert counted == (5 * 16 + 28 + 28 + 12, True)
    assert own_params(variables) == 5 * 16 + 28 + 28 + 12
    assert own_params({"params": variables, "state": variables}) == own_params(variables)

    def waits(v, x):
        return jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ v["w"], x)

    assert own_macs(waits, {"w": jnp.ones((4, 4))}, (jnp.ones((3, 4)),), 1) == (16, False)


def test_own_count_of_convolutions():
    def apply(v, x):
        numbers = ("NHWC", "HWIO", "NHWC")
        x = jax.lax.conv_general_dilated(
            x, v["depth"], (2, 2), "SAME", dimension_numbers=numbers, feature_group_count=4
        )
        return jax.lax.conv_general_dilated(
            x, v["point"], (1, 1), "SAME", dimension_numbers=numbers
        )

    variables = {"depth": jnp.ones((3, 3, 1, 8)), "point": jnp.ones((1, 1, 8, 5))}
    counted = own_macs(apply, variables, (jnp.ones((3, 6, 6, 4)),), 1)
    assert counted.macs == 9 * (9 * 8) + 9 * 8 * 5


def test_random_variables_hide_nothing():
    start = {
        "params": {"kernel": jnp.zeros((4, 5)), "scale": jnp.zeros(5), "steps": jnp.arange(3)},
        "batch_stats": {"var": jnp.ones(5), "mean": jnp.zeros(5)},
    }
    drawn = randomise(start)
    assert (drawn["batch_stats"]["var"] > 0).all()
    for leaf in (drawn["params"]["kernel"], drawn["params"]["scale"]):
        assert (np.abs(leaf) > 0).all()
    np.testing.assert_array_equal(drawn["params"]["steps"], np.arange(3))
    kept = randomise(start, keep="scale")
    np.testing.assert_array_equal(kept["params"]["scale"], 0)


def test_names_are_unique_and_the_table_has_every_row():
    names = [case.name for case in all_cases()]
    assert len(set(names)) == len(names) >= 60
    rows_ = [row_of_mlp(), checks.Row(name="x", family="rnn", package="own", errors=["trace: no"])]
    summary = summarise(rows_)
    assert summary["networks"] == 2 and summary["traced"] == 1
    assert summary["aimed_missed"] == ["x"] and summary["failed"] == ["x"]
    page = markdown(rows_, summary)
    assert "| mlp | mlp | 2 | 100.0 % |" in page and "| x | rnn | none: trace: no |" in page
    assert "2 groups" in progress(rows_[0]) and "trace: no" in progress(rows_[1])

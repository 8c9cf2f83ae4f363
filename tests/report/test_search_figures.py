"""The figures of a run, and their SVG."""

import re

import numpy as np
import pytest
from matplotlib.colors import to_hex

from rlprune_jax.report.drawing import SERIES, colour_of, figure_svg
from rlprune_jax.report.page import (
    candidates_figure,
    layers_figure,
    progress_figure,
    search_figure,
)

LIMITS = np.array([0.1, 0.3])
BUDGETS = ["params", "macs"]


def metrics(steps=6):
    ramp = np.linspace(0, 1, steps)
    return {
        "reward_mean": 0.4 + 0.3 * ramp,
        "reward_best": np.where(ramp < 0.3, -np.inf, ramp),
        "cost_mean": np.stack([0.4 - 0.3 * ramp, 0.5 - 0.2 * ramp], -1),
        "multiplier": np.stack([1 - ramp, 0 * ramp], -1),
        "feasible_fraction": ramp,
    }


def histories(count=40):
    generator = np.random.default_rng(0)
    return {
        name: {
            "rewards": generator.uniform(size=count),
            "costs": generator.uniform(0, 0.6, size=(count, 2)) * [0.4, 1],
        }
        for name in ("agent", "uniform", "random search")
    }


def panels(figure):
    return [axes for axes in figure.axes if axes.axison]


def texts(figure):
    found = [text.get_text() for axes in figure.axes for text in axes.texts]
    found += [axes.get_title(loc="left") for axes in figure.axes]
    legends = [legend for legend in figure.legends]
    return found + [text.get_text() for legend in legends for text in legend.get_texts()]


def lines_of(axes, colour):
    return [line for line in axes.lines if to_hex(line.get_color()) == colour]


def test_search_shows_each_budget_and_its_limit():
    figure = search_figure(metrics(), BUDGETS, LIMITS)
    titles = [axes.get_title(loc="left") for axes in panels(figure)]
    assert titles == [
        "Held-out reward",
        "Cost: params (limit 10 %)",
        "Cost: macs (limit 30 %)",
        "Multipliers",
        "Within every budget",
    ]
    for axes, limit, cost in zip(
        panels(figure)[1:3], LIMITS, metrics()["cost_mean"].T, strict=True
    ):
        data, dashed = axes.lines
        np.testing.assert_allclose(data.get_ydata(), cost)
        np.testing.assert_allclose(dashed.get_ydata(), limit)
        assert axes.get_ylim()[1] > max(cost)
    assert {"mean", "best so far", "params", "macs"} <= set(texts(figure))


def test_search_draws_only_what_is_there_and_units():
    figure = search_figure({"reward": [1.0], "cost": [3.5]}, ["latency"], [2.5], units=["ms"])
    assert len(panels(figure)) == 2
    assert "Cost: latency (limit 2.5 ms)" in texts(figure)


def test_best_so_far_never_falls():
    best = [-np.inf, 0.3, np.nan, 0.2, 0.5]
    figure = search_figure({"reward": np.zeros(5), "reward_best": best}, BUDGETS, LIMITS)
    (line,) = lines_of(panels(figure)[0], SERIES[1])
    np.testing.assert_allclose(line.get_xdata(), [2, 3, 4, 5])
    np.testing.assert_allclose(line.get_ydata(), [0.3, 0.3, 0.3, 0.5])


def test_layers_show_units_and_shares():
    figure = layers_figure(["a", "b"], [8, 20], {"agent": [4, 5], "uniform": [2, 10]})
    units, shares = panels(figure)
    heights = [bar.get_height() for bar in units.patches]
    assert heights == [8, 20, 4, 5, 2, 10]
    np.testing.assert_allclose(
        [bar.get_height() for bar in shares.patches], [1, 1, 0.5, 0.25, 0.25, 0.5]
    )
    assert {"agent", "uniform", "dense", "50", "25"} <= set(texts(figure))


def test_front_and_limit_of_the_candidates():
    # The third breaks the other budget, the fifth is worse and costs more than the second.
    costs = [[0.02, 0.1], [0.04, 0.1], [0.05, 0.9], [0.2, 0.2], [0.06, 0.2], [np.nan, 0.1]]
    history = {"rewards": [0.5, 0.7, 0.99, 0.8, 0.6, 0.9], "costs": costs}
    figure = candidates_figure(
        {"agent": history}, BUDGETS, LIMITS, delivered={"agent": (0.7, [0.04, 0.1])}
    )
    params = panels(figure)[0]
    (front,) = [line for line in params.lines if line.get_drawstyle() == "steps-post"]
    np.testing.assert_allclose(front.get_xdata(), [0.02, 0.04, 0.2])
    np.testing.assert_allclose(front.get_ydata(), [0.5, 0.7, 0.8])
    assert any(np.allclose(line.get_xdata(), LIMITS[0]) for line in params.lines)
    assert "params ≤ 10 %" in texts(figure)
    broken, good, delivered = params.collections
    assert len(broken.get_offsets()) == 2 and len(good.get_offsets()) == 3
    np.testing.assert_allclose(delivered.get_offsets(), [[0.04, 0.7]])


def test_histories_may_keep_their_iterations():
    flat = histories()
    stacked = {
        name: {"rewards": h["rewards"].reshape(4, 10), "costs": h["costs"].reshape(4, 10, 2)}
        for name, h in flat.items()
    }
    for draw in (
        lambda h: candidates_figure(h, BUDGETS, LIMITS),
        lambda h: progress_figure(h, LIMITS),
    ):
        assert figure_svg(draw(flat), "a") == figure_svg(draw(stacked), "a")


def test_progress_counts_only_what_keeps_every_budget():
    costs = [[0.2, 0.1], [0.05, 0.1], [0.05, 0.4], [0.1, 0.3], [0.01, 0.1], [np.nan, 0.1]]
    history = {"rewards": [0.9, 0.4, 0.8, 0.6, np.nan, 0.99], "costs": costs}
    (axes,) = panels(progress_figure({"agent": history}, LIMITS))
    (line,) = axes.lines
    np.testing.assert_allclose(line.get_xdata(), [2, 3, 4, 5, 6])
    np.testing.assert_allclose(line.get_ydata(), [0.4, 0.4, 0.6, 0.6, 0.6])


def test_progress_names_a_method_that_never_kept_the_budgets():
    history = {"rewards": [0.9], "costs": [[0.5, 0.5]]}
    assert "agent: none within budget" in texts(progress_figure({"agent": history}, LIMITS))


NOTHING = {"rewards": np.zeros(0), "costs": np.zeros((0, 2))}
ALL_NAN = {"rewards": np.full(3, np.nan), "costs": np.full((3, 2), np.nan)}


@pytest.mark.parametrize(
    "figure",
    [
        lambda: search_figure({}, BUDGETS, LIMITS),
        lambda: search_figure({name: np.nan * v for name, v in metrics().items()}, BUDGETS, LIMITS),
        lambda: search_figure({name: v[:0] for name, v in metrics().items()}, BUDGETS, LIMITS),
        lambda: search_figure({name: v[:1] for name, v in metrics().items()}, BUDGETS, LIMITS),
        lambda: layers_figure([], [], {}),
        lambda: layers_figure(["a"], [0], {"agent": [0]}),
        lambda: layers_figure([f"layer {i}" for i in range(60)], [64] * 60, {"agent": [3] * 60}),
        lambda: candidates_figure({}, BUDGETS, LIMITS),
        lambda: candidates_figure({"agent": NOTHING}, BUDGETS, LIMITS),
        lambda: candidates_figure({"agent": ALL_NAN, "random": NOTHING}, BUDGETS, LIMITS),
        lambda: candidates_figure(
            {"agent": {"rewards": [0.5], "costs": [[0.0, 0.0]]}}, BUDGETS, LIMITS
        ),
        lambda: progress_figure({}, LIMITS),
        lambda: progress_figure({"agent": NOTHING, "random": ALL_NAN}, LIMITS),
        lambda: progress_figure({"agent": {"rewards": [0.5], "costs": [[0.0, 0.0]]}}, LIMITS),
    ],
)
def test_odd_data_is_drawn(figure):
    assert "<svg" in figure_svg(figure(), "odd")


def test_methods_keep_their_colours():
    names = ["agent", "uniform ratio", "random search", "cross-entropy", "magnitude", "evolution"]
    colours = [colour_of(name, names) for name in names]
    assert len(set(colours)) == len(names)
    assert colour_of("uniform ratio", ["agent", "uniform ratio"]) == colours[1]
    assert colour_of("cross-entropy", ["cross-entropy"]) == colours[3]
    agents = ["agent", "agent, fine"]
    assert colour_of("agent", agents) != colour_of("agent, fine", agents)


def test_svg_follows_the_page():
    svg = figure_svg(progress_figure(histories(), LIMITS), "first")
    assert "var(--ink, #1b1e24)" in svg and "var(--series-0, #0072b2)" in svg
    assert re.findall(r'id="(?!first-)', svg) == []
    assert svg == figure_svg(progress_figure(histories(), LIMITS), "first")


def test_many_points_do_not_swell_the_page():
    svg = figure_svg(candidates_figure(histories(3000), BUDGETS, LIMITS), "many")
    assert len(svg) < 800_000  # 9,000 points in two panels
    assert "data:image/png;base64" in svg

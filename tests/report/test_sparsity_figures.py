import numpy as np
import pytest

from rlprune_jax.report.drawing import figure_svg
from rlprune_jax.report.sparsity_figures import (
    density_figure,
    heat_map_figure,
    iterations_figure,
    layer_densities_figure,
    pruned_figure,
)

KEYS = ("accuracy", "accuracy_pruned", "density", "pq_index", "pq_index_pruned", "gini")


def curves(seeds, iterations):
    rng = np.random.default_rng(0)
    return {
        name: {key: rng.uniform(0.1, 0.9, (seeds, iterations)) for key in KEYS}
        for name in ("SAP (0.5, 1)", "lottery ticket")
    }


@pytest.mark.parametrize("seeds, iterations", [(1, 1), (3, 5)])
def test_every_figure_draws_every_curve(seeds, iterations):
    data = curves(seeds, iterations)
    for index, make in enumerate((iterations_figure, pruned_figure, density_figure)):
        svg = figure_svg(make(data), f"f{index}")
        assert all(name in svg for name in data)


def test_the_running_mean_is_dashed_beside_the_accuracy():
    figure = iterations_figure(curves(2, 4))
    lines = figure.axes[0].get_lines()
    dashed = [line for line in lines if line.get_linestyle() == "--"]
    assert len(dashed) == 2
    accuracy = curves(2, 4)["lottery ticket"]["accuracy"].mean(0)
    expected = np.cumsum(accuracy) / np.arange(1, 5)
    assert any(np.allclose(line.get_ydata(), expected) for line in dashed)


def test_of_many_layers_the_first_the_middle_and_the_last():
    layers = {"SAP": {f"layer{i}/kernel": np.full((2, 3), 0.5) for i in range(9)}}
    svg = figure_svg(layer_densities_figure(layers, "density"), "a")
    shown = [i for i in range(9) if f"layer{i}" in svg]
    assert shown == [0, 4, 8]


def test_heat_maps_stand_in_a_row_per_method():
    grids = {name: np.zeros((5, 10, 11)) for name in ("a", "b")}
    figure = heat_map_figure(grids, [0, 4], np.linspace(0.1, 1, 10), np.linspace(1, 2, 11))
    assert [axes.get_title(loc="left") for axes in figure.axes[:4]] == [
        *("a, t = 0", "a, t = 4", "b, t = 0", "b, t = 4"),
    ]


def test_no_curves_are_empty_axes():
    for make in (iterations_figure, pruned_figure, density_figure):
        assert "nothing to show" in figure_svg(make({}), "f")

"""Figures of a study."""

import numpy as np
import pytest

from rlprune_jax.report.drawing import figure_svg
from rlprune_jax.report.study_figures import (
    correlation_figure,
    effects_figure,
    front_figure,
    scaling_figure,
)


def front(offset):
    mean = np.array([0.4, 0.6, np.nan]) + offset
    return {"cost": [0.1, 0.05, 0.2], "mean": mean, "low": mean - 0.1, "high": mean + 0.1}


@pytest.mark.parametrize(
    ("figure", "words"),
    [
        (
            front_figure({"agent": front(0), "random_search": front(0.1)}, "params", "reward", 0.9),
            ("agent", "random_search", "budget on params"),
        ),
        (front_figure({}, "params", "reward"), ("nothing to show",)),
        (
            effects_figure(
                {"rate": list(np.logspace(-3, 0, 12)), "kind": ["a", "b"] * 6, "still": [1.0] * 12},
                [np.nan, *np.arange(11.0)],
                "area",
                ("rate",),
            ),
            ("rate", "kind", "area"),
        ),
        (effects_figure({"still": [1.0, 1.0]}, [1, 2], "area"), ("nothing to show",)),
        (
            correlation_figure({"plain": (np.arange(5.0), "rho 0.5")}, np.arange(5.0)),
            ("plain", "rho 0.5", "finetuned"),
        ),
        (scaling_figure([1, 4], {"one program": [1, 2], "one loop": [1, 4]}), ("one loop",)),
    ],
)
def test_figures_draw_and_name_what_they_show(figure, words):
    svg = figure_svg(figure, "f")
    for word in words:
        assert word in svg


def test_constant_hyper_parameters_are_left_out():
    svg = figure_svg(effects_figure({"a": [1, 2], "still": [1, 1]}, [0, 1], "m"), "f")
    assert ">still<" not in svg

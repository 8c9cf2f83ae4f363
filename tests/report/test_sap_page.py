"""The page of iterative pruning, from the content of ``result.json`` alone."""

import numpy as np
import pytest

from rlprune_jax.report.sap_page import curve_arrays, write_sap_page

GRID = {"p": [0.5, 1.0], "q": [1.0, 2.0]}


def content(metric, matched):
    """Two seeds, three iterations, two methods."""

    def row(iteration):
        density = 0.5**iteration
        numbers = {key: [0.2, 0.3] for key in ("pq_index", "pq_index_pruned", "gini")}
        layer = {"live": [8, 6], "pq_index": [0.1, 0.2], "gini": [0.1, 0.2]}
        return {
            "iteration": iteration,
            metric: [0.9, 0.8],
            f"{metric}_pruned": [0.5, 0.4],
            "density": [density, density],
            "pq_grid": np.zeros((2, 2, 2)).tolist(),
            "layers": {"a/kernel": layer},
            **numbers,
        }

    curve = {"iterations": [row(each) for each in range(3)]}
    return {
        **{"metric_name": metric, "curves": {"ours": curve, "lottery ticket": curve}},
        **{"matched": matched, "grid": GRID, "seeds": [0, 1], "seconds": 3.0},
        **{"dataset": "digits", "model": "mlp", "scope": "layer", "epochs": 4},
        **{"train_images": 100, "versions": {"jax": "0"}, "device": "none"},
    }


MATCHED = {"method": "ours", "iteration": 1, "density": 0.5, "seeds": 2}


def test_arrays_have_seeds_in_front():
    arrays = curve_arrays(content("accuracy", []))
    assert arrays["ours"]["density"].tolist() == [[1.0, 0.5, 0.25]] * 2
    assert arrays["ours"]["accuracy_pruned"].shape == (2, 3)


@pytest.mark.parametrize(
    "metric, difference", [("accuracy", "+1.00 ± 0.50"), ("negative_loss", "+0.0100 ± 0.0050")]
)
def test_the_page_writes_every_metric_in_its_own_unit(metric, difference, tmp_path):
    matched = [{**MATCHED, "difference": 0.01, "std": 0.005}]
    write_sap_page(tmp_path / "report.html", content(metric, matched), {"rate": 0.2})
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 6 and difference in page
    assert ("85.00 ± 5.00 %" in page) == (metric == "accuracy")
    assert ("in points" in page) == (metric == "accuracy")


def test_without_a_lottery_ticket_nothing_is_matched(tmp_path):
    write_sap_page(tmp_path / "report.html", content("accuracy", []), {})
    assert "matched density" not in (tmp_path / "report.html").read_text()

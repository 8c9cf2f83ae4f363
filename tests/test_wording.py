"""Metrics as people read them."""

import math

import pytest

from rlprune_jax.wording import difference_text, metric_text, metric_title


@pytest.mark.parametrize(
    ("metric", "title", "value", "difference"),
    [
        ("accuracy", "accuracy", "-125.00 %", "-125.00"),
        ("negative_loss", "loss", "1.25", "+1.25"),
        ("negative_loss_per_token", "loss per token", "1.25", "+1.25"),
        ("my_metric", "my metric", "-1.25", "-1.25"),
    ],
)
def test_a_loss_has_its_own_name_and_sign(metric, title, value, difference):
    assert metric_title(metric) == title
    assert metric_text(-1.25, metric) == value
    assert difference_text(-1.25, metric) == difference
    assert metric_text(math.nan, metric) == "–"

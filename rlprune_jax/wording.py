"""How results and pages write metrics."""

import math

NEGATIVE = "negative_"
"""Beginning of a metric's name that stands for a loss with its sign turned, higher being better."""


def metric_title(metric: str) -> str:
    """Return a metric's name as people read it.

    A loss with its sign turned is called by the loss.

    Example:
        >>> metric_title("top5_accuracy"), metric_title("negative_loss_per_token")
        ('top5 accuracy', 'loss per token')
    """
    return metric.removeprefix(NEGATIVE).replace("_", " ")


def metric_text(value: float, metric: str) -> str:
    """Write a metric as people read it.

    Accuracies are in percent, a loss has its own sign, and a dash stands where it is unknown.

    Example:
        >>> metric_text(0.9817, "accuracy"), metric_text(-1.25, "negative_loss")
        ('98.17 %', '1.25')
    """
    if not math.isfinite(value):
        return "–"
    if is_fraction(metric):
        return f"{100 * value:.2f} %"
    return f"{shown(value, metric):.4g}"


def difference_text(change: float, metric: str) -> str:
    """Write how far two values of a metric lie apart.

    Those of accuracies are in points of percent.

    Example:
        >>> difference_text(-0.0125, "accuracy"), difference_text(-0.25, "negative_loss")
        ('-1.25', '+0.25')
    """
    return f"{100 * change:+.2f}" if is_fraction(metric) else f"{shown(change, metric):+.3g}"


def is_fraction(metric: str) -> bool:
    """Return whether a metric is written in percent."""
    return "accuracy" in metric


def shown(value: float, metric: str) -> float:
    """Return a metric's value as it is shown.

    Example:
        >>> shown(-1.25, "negative_loss"), shown(0.5, "accuracy")
        (1.25, 0.5)
    """
    return -value if metric.startswith(NEGATIVE) else value

"""Say how sure a number is: of a fraction over examples, of a difference over seeds."""

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike

from rlprune_jax.checks import require, require_count, require_range
from rlprune_jax.study.results import Interval, summarise


def wilson_interval(fraction: float, count: int, confidence: float = 0.95) -> Interval:
    """Return a fraction with Wilson's interval.

    Use it for an accuracy: how far it may lie from that over all images there could be. Unlike the
    normal approximation it stays within 0 and 1, also for few examples and near the ends.

    Args:
        fraction: of successes, such as an accuracy.
        count: of examples that it was found on.
        confidence: of the interval.

    Raises:
        ValueError: a fraction outside [0, 1], no examples, or a confidence outside (0, 1).

    Reference: Wilson, "Probable inference, the law of succession, and statistical inference", 1927.

    Example:
        >>> low, high = wilson_interval(0.98, 450)[1:]
        >>> round(low, 4), round(high, 4)
        (0.9624, 0.9894)
    """
    require_range("fraction", fraction, 0.0, 1.0)
    require_count("count", count)
    require_range("confidence", confidence)
    require(0.0 < confidence < 1.0, "confidence", confidence, "between 0 and 1, such as 0.95")
    z = float(scipy.stats.norm.ppf(0.5 + confidence / 2))
    centre = (fraction + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = fraction * (1 - fraction) / count + z**2 / (4 * count**2)
    half = z / (1 + z**2 / count) * spread**0.5
    return Interval(
        value=float(fraction), low=max(centre - half, 0.0), high=min(centre + half, 1.0)
    )


def paired_difference(first: ArrayLike, second: ArrayLike, confidence: float = 0.95) -> Interval:
    """Return the mean difference of pairs with a bootstrap interval.

    Use it to compare two methods over the same seeds. The interval is unknown, NaN, of one pair.

    Args:
        first: f[S], a number of each seed.
        second: f[S], of the same seeds in their order.
        confidence: of the interval.

    Raises:
        ValueError: unequal lengths, no pairs, or a confidence outside (0, 1).

    Example:
        >>> paired_difference([3.0, 4.0], [1.0, 2.0])
        Interval(value=2.0, low=2.0, high=2.0)
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or x.ndim != 1:
        raise ValueError(f"first has shape {x.shape}, second {y.shape}: give two equal lengths")
    found = summarise((x - y)[None], confidence=confidence)
    mean, low, high = (float(found[name][0]) for name in ("mean", "low", "high"))
    return Interval(value=mean, low=low, high=high)

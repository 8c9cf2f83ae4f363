"""A cost with noise, for this process and others; nothing here imports JAX."""

import os
import random
import sys

import numpy as np

_RNG = random.Random(f"{os.environ.get('NOISE_SEED', 0)}")


def energy(units, rng=_RNG):
    """Units, a tenth more or less, and sometimes half as much again."""
    spike = 0.5 if rng.random() < 0.1 else 0.0
    return units * (1 + 0.1 * rng.gauss(0, 1) + spike)


if __name__ == "__main__":
    # The upper quartile of each of some numbers of units, measured afresh.
    for text in sys.argv[1:]:
        print(np.percentile([energy(int(text)) for _ in range(101)], 75))

"""An example of a budget of one's own: any Python function of a candidate's widths and gates.

Command:  python experiments/prune_rl.py --budget-fn experiments.example_budget:vectors=0.3x

Nothing about the function has to be traceable, differentiable or smooth.
"""

import math
from collections.abc import Mapping

import numpy as np

LANES = 8
"""float32 numbers that one AVX2 register holds."""


def vectors(widths: Mapping[str, int], gates: Mapping[str, np.ndarray]) -> float:
    """Count the vector registers that hold one position of every group's channels.

    Args:
        widths: units kept by group name.
        gates: f32[units] of 0 and 1 by group name.
    """
    return sum(math.ceil(width / LANES) for width in widths.values())

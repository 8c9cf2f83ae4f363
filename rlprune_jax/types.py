"""Aliases for the pytrees and functions that the whole package speaks of."""

from collections.abc import Callable
from typing import Any

import jax

PyTree = Any
"""Any nesting of containers with arrays at the leaves."""

Variables = PyTree
"""What a network reads besides its input: for Linen ``{"params": ..., "batch_stats": ...}``."""

Mask = PyTree
"""Weight mask: bool pytree congruent to params, a scalar ``True`` where a leaf is never pruned."""

Gates = dict[str, jax.Array]
"""Structured mask: group name -> f32[units], 1 kept and 0 pruned."""

Apply = Callable[..., Any]
"""A pure function ``(variables, x, ...) -> outputs``."""

"""Names of the pytrees and functions that the whole package takes."""

from typing import Any, Protocol

import jax

PyTree = Any
"""Any nesting of containers with arrays at the leaves."""

Variables = PyTree
"""What a network reads besides its input: for Linen ``{"params": ..., "batch_stats": ...}``."""

Mask = PyTree
"""Weight mask: bool pytree congruent to params, a scalar ``True`` where a leaf is never pruned."""

Gates = dict[str, jax.Array]
"""Structured mask: group name -> f32[units], 1 kept and 0 pruned."""


class Apply(Protocol):
    """Apply a network in evaluation mode.

    Any pure function of variables and inputs will do.
    """

    def __call__(self, variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        """Return the network's outputs."""


class ApplyTrain(Protocol):
    """Apply a network in training mode.

    Batch norm reads its batch and dropout drops.
    """

    def __call__(
        self, variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        """Return the outputs and the collections of the variables that changed."""

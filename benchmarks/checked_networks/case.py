"""A network to check: its name, how it is built, and random variables for it."""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.types import Apply, ApplyTrain, PyTree, Variables
from rlprune_jax.workflow.frameworks import from_equinox, from_linen, from_nnx


class Built(NamedTuple):
    """Hold a network that is ready to be traced.

    Attributes:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        variables: random and dense, see ``randomise``.
        inputs: with a batch in front.
        apply_train: ``(variables, *inputs, key=None) -> (outputs, updates)``, or None.
    """

    apply: Apply
    variables: Variables
    inputs: tuple[PyTree, ...]
    apply_train: ApplyTrain | None = None


@dataclass(frozen=True)
class Case:
    """Name a network and the way to build it.

    Attributes:
        name: unique among all cases.
        family: what kind of network it is, such as ``"transformer"``.
        package: that wrote it, ``"own"`` where it is written in this folder.
        build: makes the network; only then is its package imported.
    """

    name: str
    family: str
    package: str
    build: Callable[[], Built]


class Cases:
    """Collect the cases of one file, each the function below a decorator."""

    def __init__(self, package: str) -> None:
        self.package = package
        self.all: list[Case] = []

    def __call__(self, family: str, name: str = "") -> Callable[[Callable[[], Built]], Callable]:
        """Return a decorator that adds a builder under its own name or another."""

        def add(build: Callable[[], Built]) -> Callable[[], Built]:
            self.add(name or build.__name__, family, build)
            return build

        return add

    def add(self, name: str, family: str, build: Callable[[], Built]) -> None:
        """Add a builder; ``name`` is prefixed by the package if that is not ours."""
        full = name if self.package == "own" else f"{self.package}/{name}"
        self.all.append(Case(name=full, family=family, package=self.package, build=build))


BATCH = 3
"""Examples of a batch: unlike any width here, so that no axis is taken for another."""


def images(size: int = 16, channels: int = 3, batch: int = BATCH) -> jax.Array:
    """Draw images f32[batch, size, size, channels]."""
    return jnp.asarray(_generator(7).standard_normal((batch, size, size, channels)), jnp.float32)


def rows(*shape: int, batch: int = BATCH) -> jax.Array:
    """Draw f32[batch, *shape]."""
    return jnp.asarray(_generator(8).standard_normal((batch, *shape)), jnp.float32)


def tokens(length: int = 7, vocabulary: int = 29, batch: int = BATCH) -> jax.Array:
    """Draw tokens i32[batch, length], none of them 0 or 1, which some models take for padding."""
    return jnp.asarray(_generator(9).integers(2, vocabulary, (batch, length)), jnp.int32)


def weights(*shape: int, seed: int = 0) -> jax.Array:
    """Draw weights f32[shape]; the last axis is that of their outputs."""
    scale = math.prod(shape[:-1]) ** -0.5
    return jnp.asarray(_generator(seed).standard_normal(shape) * scale, jnp.float32)


def parameters(seed: int = 0, **shapes: tuple[int, ...]) -> dict[str, jax.Array]:
    """Draw one array a name: weights, or about 1 where there is one axis."""
    return {
        name: weights(*shape, seed=seed + number)
        if len(shape) > 1
        else 1 + 0.3 * jnp.asarray(_generator(seed + number).standard_normal(shape), jnp.float32)
        for number, (name, shape) in enumerate(shapes.items())
    }


def _generator(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


VARIANCE = re.compile(r"(?<![a-z])(running_|moving_|ema_)?var(iance|_ema)?(?![a-z])", re.IGNORECASE)
"""Paths of running variances, which must be positive; ``variables`` is none."""


def randomise(variables: Variables, keep: str = "(?!)", seed: int = 1) -> Variables:
    """Replace initial values by random ones, so that nothing hides behind a zero.

    Arrays of two axes or more are drawn anew, of a size that keeps activations about one. Shorter
    ones are moved about their initial value, as that may have a meaning (the time steps of a state
    space model). Variances stay positive. Integers, keys and what ``keep`` matches stay.

    Args:
        variables: of a framework's own initialisation.
        keep: regular expression of paths that stay.
        seed: of the draws.
    """
    generator = _generator(seed)

    def draw(path: tuple[object, ...], leaf: jax.Array) -> jax.Array:
        text = jax.tree_util.keystr(path)
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating) or re.search(keep, text):
            return leaf
        noise = generator.standard_normal(np.shape(leaf))
        if VARIANCE.search(text):
            values = np.abs(np.asarray(leaf, np.float64)) + 0.3 * np.abs(noise) + 0.2
        elif np.ndim(leaf) > 1:
            values = noise / math.sqrt(max(2, math.prod(np.shape(leaf)[:-1])))
        else:
            values = np.asarray(leaf, np.float64) + 0.3 * noise
        return jnp.asarray(values, leaf.dtype)

    return jax.tree_util.tree_map_with_path(draw, variables)


def compile_quickly(function: Callable, *arguments: PyTree) -> Callable:
    """Compile with little optimisation, as each program runs a few times."""
    options: dict[str, str | bool] = {
        "xla_backend_optimization_level": "0",
        "xla_llvm_disable_expensive_passes": True,
    }
    return jax.jit(function).lower(*arguments).compile(options)


def compiled(function: Callable, *arguments: PyTree) -> PyTree:
    """Compile a function and call it once."""
    return compile_quickly(function, *arguments)(*arguments)


def linen(module: PyTree, *inputs: PyTree, train: bool = True, keep: str = "(?!)") -> Built:
    """Build a Flax Linen module.

    Args:
        module: whose call may take ``train``, ``training`` or ``deterministic``.
        *inputs: of the call.
        train: whether it is checked in training mode too.
        keep: see ``randomise``.
    """
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    variables = dict(compiled(module.init, keys, *inputs))
    found = from_linen(module, variables, inputs, None, ("dropout", "params"), None)
    return Built(
        apply=found.apply,
        variables=randomise(found.variables, keep),
        inputs=inputs,
        apply_train=found.apply_train if train else None,
    )


def nnx(model: PyTree, *inputs: PyTree, train: bool = True, keep: str = "(?!)") -> Built:
    """Build a Flax NNX module; see ``linen``."""
    found = from_nnx(model, inputs, None)
    return Built(
        apply=found.apply,
        variables=randomise(found.variables, keep),
        inputs=inputs,
        apply_train=found.apply_train if train else None,
    )


def equinox(
    model: PyTree, *inputs: PyTree, state: PyTree = None, train: bool = True, keep: str = "(?!)"
) -> Built:
    """Build an Equinox module that reads one example; see ``linen``."""
    found = from_equinox(model, inputs, state, "batch", None)
    return Built(
        apply=found.apply,
        variables=randomise(found.variables, keep),
        inputs=inputs,
        apply_train=found.apply_train if train else None,
    )

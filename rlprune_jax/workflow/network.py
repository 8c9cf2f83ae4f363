"""A network: pure functions, variables, an example of its input, and its graph."""

import dataclasses
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.graph.trace import trace_graph
from rlprune_jax.models.convolution import rebind_convolutions
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.training.recalibration import untold_statistics
from rlprune_jax.training.task import positional
from rlprune_jax.types import Apply, ApplyTrain, Gates, PyTree, Variables

Function = TypeVar("Function", bound=Callable)


class NetworkError(ValueError):
    """A network cannot be pruned as it was given; the message names the argument and the leaf."""


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """What of a network does not change while its weights do.

    Static structure of jitted programs, equal to itself alone: networks that share a definition
    share all that was traced and compiled for it.

    Attributes:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        apply_train: ``(variables, *inputs, key=None) -> (outputs, updates)``, or None.
        example: inputs of the network, a batch of them.
        shapes: of the variables, as ``jax.ShapeDtypeStruct``.
        ignore: regular expressions of paths that are never pruned.
        own_apply: the framework's function with its own keyword arguments, for training loops of
            the user's; None where there is none.
        rebuild: ``variables -> module`` of the framework, or None.
    """

    apply: Apply
    apply_train: ApplyTrain | None
    example: tuple[PyTree, ...]
    shapes: Variables
    ignore: tuple[str, ...] = ()
    own_apply: Apply | None = None
    rebuild: Callable[[Variables], PyTree] | None = None

    @cached_property
    def jitted(self) -> Apply:
        """``apply``, compiled once per shape."""
        return jax.jit(self.apply)

    @cached_property
    def graph(self) -> Graph:
        """Groups of coupled units, traced once."""
        return trace_graph(self.apply, self.shapes, *self.example, ignore=self.ignore)

    @cached_property
    def masked(self) -> Apply:
        """The masked network ``(variables, gates, *inputs) -> outputs``."""
        return gated(self.apply, self.graph)

    @cached_property
    def jitted_masked(self) -> Apply:
        """``masked``, compiled once per shape."""
        return jax.jit(self.masked)

    @cached_property
    def masked_train(self) -> Apply:
        """The masked network in training mode ``(variables, gates, *inputs, key=None)``."""
        return gated(self.training_mode, self.graph)

    @cached_property
    def training_mode(self) -> ApplyTrain:
        """``apply_train``, or evaluation mode without updates where there is none."""
        if self.apply_train is not None:
            return self.apply_train
        apply = self.apply

        def unmoved(
            variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
        ) -> tuple[PyTree, dict[str, PyTree]]:
            return apply(variables, *inputs), {}

        return unmoved

    @cached_property
    def _slim(self) -> OrderedDict[bytes, "Definition"]:
        return OrderedDict()

    def slim(self, gates: Gates, shapes: Variables) -> "Definition":
        """Return the definition of the network that gates leave, the same for the same gates.

        Args:
            gates: group name -> f32[units], concrete.
            shapes: of the slim variables.
        """
        kept = b"".join(np.asarray(gates[name], np.float32).tobytes() for name in self.graph.names)
        if kept not in self._slim:
            graph, train, own = self.graph, self.apply_train, self.own_apply
            self._slim[kept] = dataclasses.replace(
                self,
                apply=respecialise(self.apply, graph, gates),
                apply_train=None if train is None else respecialise(train, graph, gates),
                own_apply=None if own is None else respecialise(own, graph, gates),
                shapes=shapes,
            )
            while len(self._slim) > REMEMBERED:
                self._slim.popitem(last=False)
        return self._slim[kept]


REMEMBERED = 32
"""Slim networks whose compiled programs one dense network remembers."""


@jax.tree_util.register_pytree_node_class
class Network:
    """A network that can be pruned, of any framework.

    Give it to ``prune``; or take ``apply``, ``variables`` and ``graph`` and do it by hand. It is a
    pytree whose leaves are the variables. Convolutions are bound to this package's own, which CPUs
    run fast in loops, so there is nothing to change in the network.

    Args:
        apply: pure function ``(variables, *inputs) -> outputs``, in evaluation mode.
        variables: a mapping with ``"params"`` and other collections such as running statistics, or
            a pytree of parameters alone. What is below ``"params"`` counts as parameters and is
            trained.
        example: an input of the network, or a tuple of several, with a batch in front; only shapes
            and dtypes matter.
        apply_train: ``(variables, *inputs, key=None) -> (outputs, updates)``, where ``updates``
            maps collections that changed to their new values; ``key`` is for dropout. A network
            without running statistics and dropout needs none.
        ignore: regular expressions; variables whose paths they match keep their shapes.
        own_apply: as in ``Definition``.
        rebuild: as in ``Definition``.

    Raises:
        NetworkError: weights that are NaN or infinite, or are no arrays; no example.

    Warns:
        UserWarning: there seem to be running statistics, but no ``apply_train`` to renew them.

    Example:
        >>> import jax.numpy as jnp
        >>> variables = {"a": jnp.ones((3, 5)), "b": jnp.ones((5, 2))}
        >>> network = Network(lambda v, x: (x @ v["a"]) @ v["b"], variables, jnp.ones((1, 3)))
        >>> network.graph.sizes, network(jnp.ones((4, 3))).shape
        ((5,), (4, 2))
    """

    variables: Variables
    definition: Definition

    def __init__(
        self,
        apply: Apply,
        variables: Variables,
        example: PyTree,
        *,
        apply_train: ApplyTrain | None = None,
        ignore: Sequence[str] | str = (),
        own_apply: Apply | None = None,
        rebuild: Callable[[Variables], PyTree] | None = None,
    ) -> None:
        if not callable(apply):
            raise NetworkError(f"apply={apply!r} is no function (variables, *inputs) -> outputs")
        variables = plain(variables)
        inputs = positional(example)
        if not jax.tree.leaves(inputs):
            raise NetworkError(f"example={example!r} holds no array; give an input with a batch")
        check_weights(variables)
        if apply_train is None and (found := untold_statistics(variables)):
            warnings.warn(
                f"the network seems to have running statistics ({', '.join(found[:3])}"
                f"{', ...' if len(found) > 3 else ''}) but no apply_train: candidates are "
                "evaluated with those of the dense network. Give apply_train=(variables, *inputs, "
                "key=None) -> (outputs, updates) so that they are recalibrated",
                stacklevel=2,
            )
        self.variables = variables
        self.definition = Definition(
            apply=bound(apply),
            apply_train=None if apply_train is None else bound(apply_train),
            example=inputs,
            shapes=shapes_of(variables),
            ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
            own_apply=None if own_apply is None else bound(own_apply),
            rebuild=rebuild,
        )

    def tree_flatten(self) -> tuple[tuple[Variables], Definition]:
        """Return the variables as the only child, the rest as structure."""
        return (self.variables,), self.definition

    @classmethod
    def tree_unflatten(cls, definition: Definition, children: tuple[Variables]) -> Self:
        """Return a network of a definition with given variables, unchecked."""
        return cls.of(definition, children[0])

    @classmethod
    def of(cls, definition: Definition, variables: Variables) -> Self:
        """Return a network of a definition with given variables, unchecked."""
        network = object.__new__(cls)
        network.variables, network.definition = variables, definition
        return network

    @classmethod
    def from_linen(
        cls,
        module: PyTree,
        variables: Variables,
        example: PyTree,
        *,
        train: Mapping[str, bool] | str | None = None,
        rngs: Sequence[str] = ("dropout",),
        mutable: Sequence[str] | None = None,
        ignore: Sequence[str] | str = (),
    ) -> Self:
        """Make a network of a Flax Linen module and its variables.

        Args:
            module: a ``flax.linen.Module``.
            variables: as ``module.init`` returns, trained or not.
            example: as in ``Network``.
            train: how a call is told to train: the name of its keyword (``"training"``), or name
                and value (``{"deterministic": False}``). None looks for ``train``, ``training``,
                ``is_training``, ``deterministic`` and ``use_running_average``.
            rngs: names of the streams of random numbers that training draws from.
            mutable: collections that training changes; by default all but ``"params"``.
            ignore: as in ``Network``.
        """
        from rlprune_jax.workflow.frameworks import from_linen

        return cls(
            **from_linen(module, plain(variables), example, train, rngs, mutable)._asdict(),
            ignore=ignore,
        )

    @classmethod
    def from_nnx(
        cls,
        model: PyTree,
        example: PyTree,
        *,
        train: Mapping[str, bool] | str | None = None,
        ignore: Sequence[str] | str = (),
    ) -> Self:
        """Make a network of a Flax NNX module.

        Parameters (``nnx.Param``), running statistics (``nnx.BatchStat``) and other state are told
        apart. ``network.module`` is an ``nnx.Module`` again, also of a slim network.

        Args:
            model: an ``nnx.Module``; it is not changed.
            example: as in ``Network``.
            train: name of a keyword of the call that tells it to train, or name and value;
                ``model.train()`` and ``model.eval()`` are called in any case.
            ignore: as in ``Network``.
        """
        from rlprune_jax.workflow.frameworks import from_nnx

        return cls(**from_nnx(model, example, train)._asdict(), ignore=ignore)

    @classmethod
    def from_equinox(
        cls,
        model: PyTree,
        example: PyTree,
        *,
        state: PyTree = None,
        axis_name: str = "batch",
        ignore: Sequence[str] | str = (),
    ) -> Self:
        """Make a network of an Equinox module that reads one example.

        It is vmapped over the batch; with a state (``eqx.nn.make_with_state``) over ``axis_name``,
        as its batch norm wants. ``network.module`` is an ``eqx.Module`` again, also of a slim
        network, or ``(module, state)`` where there is a state.

        Args:
            model: an ``eqx.Module``; called ``model(x)``, ``model(x, key=key)``, and with a state
                ``model(x, state)`` or ``model(x, state, key=key)``.
            example: as in ``Network``, with a batch in front.
            state: an ``eqx.nn.State``, or None.
            axis_name: of the vmapped axis.
            ignore: as in ``Network``.
        """
        from rlprune_jax.workflow.frameworks import from_equinox

        return cls(**from_equinox(model, example, state, axis_name)._asdict(), ignore=ignore)

    @property
    def apply(self) -> Apply:
        """``(variables, *inputs) -> outputs``, in evaluation mode."""
        return self.definition.apply

    @property
    def apply_train(self) -> ApplyTrain | None:
        """``(variables, *inputs, key=None) -> (outputs, updates)``, or None."""
        return self.definition.apply_train

    @property
    def example(self) -> tuple[PyTree, ...]:
        """Inputs of the network, a batch of them."""
        return self.definition.example

    @property
    def graph(self) -> Graph:
        """Groups of coupled units, traced once."""
        return self.definition.graph

    @property
    def module(self) -> PyTree:
        """The framework's own module with these variables.

        Raises:
            NetworkError: the network was not made of an NNX or Equinox module.
        """
        if self.definition.rebuild is None:
            raise NetworkError(
                "the network has no module; only from_nnx and from_equinox give one. Use "
                "network.apply(network.variables, inputs)"
            )
        return self.definition.rebuild(self.variables)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Return the outputs for a batch, in evaluation mode."""
        return self.apply(self.variables, *inputs)

    def __repr__(self) -> str:
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables))
        return f"Network({size:,} numbers in {len(jax.tree.leaves(self.variables))} variables)"

    def replace(self, variables: Variables) -> "Network":
        """Return the same network with other variables of the same shapes."""
        return type(self).of(self.definition, plain(variables))

    def slim(self, gates: Gates) -> "Network":
        """Return the smaller network that keeps the units that gates keep.

        Args:
            gates: group name -> f32[units], concrete, every gate 0 or 1.

        Raises:
            ValueError: the gates do not fit the graph, or prune a whole group.
        """
        variables = compact(self.graph, self.variables, gates)
        return type(self).of(self.definition.slim(gates, shapes_of(variables)), variables)

    def load_slim(self, folder: str) -> "Network":
        """Return the slim network that was saved to a folder, whole and unchanged.

        Only the shapes of this network's variables matter, so it may be fresh from its
        initialisation.

        Args:
            folder: with ``plan.json`` and ``weights.safetensors``, as ``PruneResult.save`` writes.

        Raises:
            ExportError: a file is missing, damaged or changed, or belongs to another network.
        """
        from rlprune_jax.export.restore import restore_slim

        found = restore_slim(folder, self.apply, self.graph, self.variables)
        variables = plain(found.variables)
        definition = self.definition.slim(found.gates, shapes_of(variables))
        return type(self).of(definition, variables)


def bound(apply: Function) -> Function:
    """Return a function whose convolutions are fast inside loops on this machine.

    Only CPUs need it: there XLA runs a convolution inside a loop ten times slower than outside.
    """
    if jax.default_backend() != "cpu":
        return apply
    rebound: PyTree = rebind_convolutions(apply)
    return rebound


def plain(variables: Variables) -> Variables:
    """Return variables with mappings such as FrozenDict as dictionaries, at any depth."""
    if isinstance(variables, FrozenDict):
        variables = variables.unfreeze()
    if isinstance(variables, dict):
        return {key: plain(value) for key, value in variables.items()}
    return variables


def shapes_of(variables: Variables) -> Variables:
    """Return the variables' ``jax.ShapeDtypeStruct``."""

    def shape(leaf: PyTree) -> jax.ShapeDtypeStruct:
        dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
        return jax.ShapeDtypeStruct(np.shape(leaf), dtype)

    return jax.tree.map(shape, variables)


def check_weights(variables: Variables) -> None:
    """Refuse variables that are no arrays, or NaN or infinite.

    Raises:
        NetworkError: naming the leaf.
    """
    for path, leaf in flatten_with_paths(variables).items():
        if not hasattr(leaf, "dtype") and not np.isscalar(leaf):
            raise NetworkError(
                f"variables hold a {type(leaf).__name__} at {path!r}; pass arrays alone and let "
                "apply put the rest back, as Network.from_nnx and Network.from_equinox do"
            )
        if not isinstance(leaf, jax.Array | np.ndarray) or isinstance(leaf, jax.core.Tracer):
            continue
        if jnp.issubdtype(leaf.dtype, jnp.inexact) and not bool(jnp.isfinite(leaf).all()):
            raise NetworkError(
                f"variables are not finite at {path!r}: a weight is NaN or infinite; load weights "
                "of a training that did not diverge"
            )

"""A network: pure functions, variables, an example of its input, and its graph."""

import dataclasses
import numbers
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import FrozenDict

from rlprune_jax.checks import shown
from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.slim import compact, respecialise
from rlprune_jax.graph.trace import trace_graph
from rlprune_jax.models.convolution import rebind_convolutions
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.training.loops import parameters_of
from rlprune_jax.training.recalibration import find_statistics, untold_statistics
from rlprune_jax.training.task import positional
from rlprune_jax.types import Apply, ApplyTrain, Gates, PyTree, Variables

Function = TypeVar("Function", bound=Callable)


class NetworkError(ValueError):
    """Say why a network cannot be pruned as given.

    The message names the argument and the leaf.
    """


class CallError(NetworkError):
    """Say why a network's functions cannot be called.

    Or that they return what they should not.
    """


@dataclasses.dataclass(frozen=True, eq=False)
class Definition:
    """Hold what of a network never changes.

    Static structure of jitted programs, equal to itself alone: networks that share a definition
    share all that was traced and compiled for it.

    Attributes:
        apply: ``(variables, *inputs) -> outputs``, in evaluation mode.
        apply_train: ``(variables, *inputs, key=None) -> (outputs, updates)``, or None.
        example: inputs of the network, a batch of them.
        shapes: of the variables, as ``jax.ShapeDtypeStruct``.
        ignore: regular expressions of paths that are never pruned.
        depth_groups: whether residual branches are units too.
        own_apply: the framework's function with its own keyword arguments, for training loops of
            the user's; None where there is none.
        rebuild: ``variables -> module`` of the framework, or None.
        init: ``key -> variables``, fresh ones; None where there is none.
        dense_apply: what ``apply`` was before units were cut; None where none were.
    """

    apply: Apply
    apply_train: ApplyTrain | None
    example: tuple[PyTree, ...]
    shapes: Variables
    ignore: tuple[str, ...] = ()
    depth_groups: bool = False
    own_apply: Apply | None = None
    rebuild: Callable[[Variables], PyTree] | None = None
    init: Callable[[jax.Array], Variables] | None = None
    dense_apply: Apply | None = None

    @cached_property
    def jitted(self) -> Apply:
        """``apply``, compiled once per shape."""
        return jax.jit(self.apply)

    @cached_property
    def graph(self) -> Graph:
        """Groups of coupled units, traced once."""
        return trace_graph(
            self.apply,
            self.shapes,
            *self.example,
            ignore=self.ignore,
            apply_train=self.apply_train,
            depth_groups=self.depth_groups,
        )

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
        """Return the definition of the slim network.

        It is the same for the same gates.

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
                init=None,
                dense_apply=self.dense_apply or self.apply,
            )
            while len(self._slim) > REMEMBERED:
                self._slim.popitem(last=False)
        return self._slim[kept]


REMEMBERED = 32
"""Slim networks whose compiled programs one dense network remembers."""


class Functions(NamedTuple):
    """Hold the functions that a network is made of.

    Attributes:
        apply: as in ``Network``.
        variables: as in ``Network``.
        example: as in ``Network``.
        apply_train: as in ``Network``.
        own_apply: as in ``Definition``.
        rebuild: as in ``Definition``.
        init: as in ``Definition``.
        assumed: what was assumed of the module, a sentence for error messages.
    """

    apply: Apply
    variables: Variables
    example: PyTree
    apply_train: ApplyTrain | None = None
    own_apply: Apply | None = None
    rebuild: Callable[[Variables], PyTree] | None = None
    init: Callable[[jax.Array], Variables] | None = None
    assumed: str = ""


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
            maps collections that changed to their new values; ``key`` is for dropout and always
            given. A network without running statistics and dropout needs none.
        ignore: regular expressions; variables whose paths they match keep their shapes.

    Raises:
        NetworkError: weights that are NaN or infinite, or are no arrays; no example.
        CallError: a function cannot be called with the example, or returns something else.

    Warns:
        UserWarning: there seem to be running statistics among the parameters, or no
            ``apply_train`` to renew them, or it leaves them as they are.

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
    ) -> None:
        self._start(Functions(apply, variables, example, apply_train), ignore)

    def _start(self, functions: Functions, ignore: Sequence[str] | str) -> None:
        apply, own = functions.apply, functions.own_apply
        if not callable(apply):
            raise NetworkError(f"apply={apply!r} is no function (variables, *inputs) -> outputs")
        variables = plain(functions.variables)
        inputs = positional(functions.example)
        if not jax.tree.leaves(inputs):
            raise NetworkError(
                f"example={functions.example!r} holds no array; give an input with a batch"
            )
        for place, leaf in enumerate(jax.tree.leaves(inputs)):
            if not hasattr(leaf, "dtype"):
                raise NetworkError(
                    f"example: leaf {place} is {shown(leaf)}; give arrays or "
                    "jax.ShapeDtypeStruct, with a batch in front"
                )
        check_weights(variables)
        train = functions.apply_train
        self.variables = variables
        self.definition = Definition(
            apply=bound(apply),
            apply_train=None if train is None else bound(with_key(train)),
            example=inputs,
            shapes=shapes_of(variables),
            ignore=(ignore,) if isinstance(ignore, str) else tuple(ignore),
            own_apply=None if own is None else bound(own),
            rebuild=functions.rebuild,
            init=functions.init,
        )
        check_calls(self.definition, functions.assumed)
        for doubt in doubts_of(self.definition):
            warnings.warn(with_assumed(doubt, functions.assumed), stacklevel=4)

    def with_depth_groups(self) -> Self:
        """Return the network with its residual branches as units.

        They are one more group, "depth", beside the widths: a branch that is pruned is neither
        stored nor computed in the slim network. One stays.

        Example:
            >>> import jax, jax.numpy as jnp
            >>> def apply(v, x):
            ...     x = x @ v["in"]
            ...     for name in "abc":
            ...         x = x + jax.nn.relu(x @ v[name]["up"]) @ v[name]["down"]
            ...     return x @ v["out"]
            >>> block = {"up": jnp.ones((4, 6)), "down": jnp.ones((6, 4))}
            >>> variables = {"in": jnp.ones((3, 4)), "out": jnp.ones((4, 2))}
            >>> network = Network(apply, variables | dict.fromkeys("abc", block), jnp.ones((1, 3)))
            >>> network.with_depth_groups().graph.group("depth").size
            3
        """
        definition = dataclasses.replace(self.definition, depth_groups=True)
        return self.of(definition, self.variables)

    def tree_flatten(self) -> tuple[tuple[Variables], Definition]:
        """Return the variables as the only child.

        The rest is structure.
        """
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
    def of_functions(cls, functions: Functions, ignore: Sequence[str] | str = ()) -> Self:
        """Make a network of a framework module's functions."""
        network = object.__new__(cls)
        network._start(functions, ignore)
        return network

    @classmethod
    def from_linen(
        cls,
        module: PyTree,
        variables: Variables,
        example: PyTree,
        *,
        train: Mapping[str, bool] | str | None = None,
        rngs: Sequence[str] = ("dropout", "params"),
        mutable: Sequence[str] | None = None,
        ignore: Sequence[str] | str = (),
    ) -> Self:
        """Make a network of a Flax Linen module.

        Args:
            module: a ``flax.linen.Module``.
            variables: as ``module.init`` returns, trained or not.
            example: as in ``Network``.
            train: how a call is told to train: the name of its keyword (``"training"``), or name
                and value (``{"deterministic": False}``). None looks for ``train``, ``training``,
                ``is_training``, ``deterministic``, ``use_running_average`` and the like among the
                keywords of the call, then among the module's fields.
            rngs: names of the streams of random numbers that training draws from; ``"params"``
                stands for all that are not named.
            mutable: collections that training changes; by default all but ``"params"`` that keep
                their shapes.
            ignore: as in ``Network``.

        Raises:
            CallError: the module cannot be called so; the message says what was assumed.
        """
        from rlprune_jax.workflow.frameworks import from_linen

        functions = from_linen(module, plain(variables), example, train, rngs, mutable)
        return cls.of_functions(functions, ignore)

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
        apart; random streams are no variables, they start anew from each ``key``.
        ``network.module`` is an ``nnx.Module`` again, also of a slim network.

        Args:
            model: an ``nnx.Module``; it is not changed.
            example: as in ``Network``.
            train: name of a keyword of the call that tells it to train, or name and value, see
                ``from_linen``; ``model.train()`` and ``model.eval()`` are called in any case.
            ignore: as in ``Network``.

        Raises:
            CallError: the module cannot be called so; the message says what was assumed.
        """
        from rlprune_jax.workflow.frameworks import from_nnx

        return cls.of_functions(from_nnx(model, example, train), ignore)

    @classmethod
    def from_equinox(
        cls,
        model: PyTree,
        example: PyTree,
        *,
        state: PyTree = None,
        axis_name: str = "batch",
        train: Mapping[str, bool] | str | None = None,
        ignore: Sequence[str] | str = (),
    ) -> Self:
        """Make a network of an Equinox module.

        The module reads one example. It is vmapped over the batch; with a state
        (``eqx.nn.make_with_state``) over ``axis_name``, as its batch norm wants. ``network.module``
        is an ``eqx.Module`` again, also of a slim network, or ``(module, state)`` where there is a
        state.

        Args:
            model: an ``eqx.Module``; called ``model(x)``, ``model(x, key=key)``, and with a state
                ``model(x, state)`` or ``model(x, state, key=key)``.
            example: as in ``Network``, with a batch in front.
            state: an ``eqx.nn.State``, or None.
            axis_name: of the vmapped axis.
            train: name of a keyword of the call that tells it to train, or name and value, see
                ``from_linen``; ``eqx.nn.inference_mode`` is set in any case.
            ignore: as in ``Network``.

        Raises:
            CallError: the module cannot be called so; the message says what was assumed.
        """
        from rlprune_jax.workflow.frameworks import from_equinox

        functions = from_equinox(model, example, state, axis_name, train)
        return cls.of_functions(functions, ignore)

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
        """The framework's own module with these variables, dense or slim.

        Layers of a slim module compute with the widths of their weights; fields such as
        ``out_features`` still tell the dense ones. It is compared with the network on an example.

        Raises:
            NetworkError: the network was not made of an NNX or Equinox module, or the code of its
                module stands on a dense width (``reshape``, a head's size), so that the slim module
                computes something else than the slim network.
        """
        if self.definition.rebuild is None:
            raise NetworkError(
                "the network has no module; only from_nnx and from_equinox give one. Use "
                "network.apply(network.variables, inputs)"
            )
        if self.definition.dense_apply is not None:
            check_module(self)
        return self.definition.rebuild(self.variables)

    def __call__(self, *inputs: PyTree) -> PyTree:
        """Return the outputs for a batch, in evaluation mode."""
        return self.apply(self.variables, *inputs)

    def __repr__(self) -> str:
        size = sum(np.size(leaf) for leaf in jax.tree.leaves(self.variables))
        return f"Network({size:,} numbers in {len(jax.tree.leaves(self.variables))} variables)"

    def replace(self, variables: Variables) -> "Network":
        """Return the network with other variables.

        They have the same shapes.
        """
        return type(self).of(self.definition, plain(variables))

    def slim(self, gates: Gates) -> "Network":
        """Return the smaller network that gates keep.

        Args:
            gates: group name -> f32[units], concrete, every gate 0 or 1.

        Raises:
            ValueError: the gates do not fit the graph, or prune a whole group.
        """
        variables = compact(self.graph, self.variables, gates)
        return type(self).of(self.definition.slim(gates, shapes_of(variables)), variables)

    def load_slim(self, folder: str) -> "Network":
        """Load a slim network that was saved.

        It is whole and unchanged, or refused. Only the shapes of this network's variables matter,
        so it may be fresh from its initialisation.

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
    """Return a function with convolutions fast on this machine.

    Only CPUs need it: there XLA runs a convolution inside a loop ten times slower than outside.
    """
    if jax.default_backend() != "cpu":
        return apply
    rebound: PyTree = rebind_convolutions(apply)
    return rebound


def plain(variables: Variables) -> Variables:
    """Return variables with plain dictionaries.

    Mappings such as FrozenDict are replaced at any depth.
    """
    if isinstance(variables, FrozenDict):
        variables = variables.unfreeze()
    if isinstance(variables, dict):
        return {key: plain(value) for key, value in variables.items()}
    return variables


def with_key(apply_train: ApplyTrain) -> ApplyTrain:
    """Return training mode that always has a key.

    It hands on one even where none is given.
    """

    def keyed(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        return apply_train(variables, *inputs, key=jax.random.key(0) if key is None else key)

    return keyed


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
        if not hasattr(leaf, "dtype") and not isinstance(leaf, numbers.Number):
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


def check_calls(definition: Definition, assumed: str = "") -> None:
    """Refuse functions that do not fit the example.

    Nothing is computed.

    Raises:
        CallError: with what was assumed of the module.
    """
    variables, inputs = definition.shapes, definition.example
    try:
        jax.eval_shape(definition.apply, variables, *inputs)
    except Exception as error:
        raise CallError(with_assumed(_failure("apply", inputs, error), assumed)) from error
    if definition.apply_train is None:
        return
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        found = jax.eval_shape(definition.apply_train, variables, *inputs, key=key)
    except Exception as error:
        raise CallError(with_assumed(_failure("apply_train", inputs, error), assumed)) from error
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Mapping):
        raise CallError(
            f"apply_train returns a {type(found).__name__}, not (outputs, updates) with the "
            "collections of the variables that changed, {} where none do"
        )
    for name, update in found[1].items():
        if not isinstance(variables, Mapping) or name not in variables:
            raise CallError(
                f"updates of apply_train hold {name!r}, which is no collection of the variables; "
                'give the variables as {"params": ..., collection: ...} and updates likewise'
            )
        if not same_shapes(update, variables[name]):
            raise CallError(
                with_assumed(
                    f"updates of apply_train hold {name!r} with other leaves or shapes than the "
                    "variables; return the collection whole",
                    assumed,
                )
            )


def _failure(name: str, inputs: PyTree, error: Exception) -> str:
    """Say which function fails with which inputs."""
    shapes = ", ".join(
        f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(shapes_of(inputs))
    )
    lines = [line for line in str(error).splitlines() if line.strip()]
    said = f": {lines[0].strip()}" if lines else ""
    return f"{name} cannot be called with the example ({shapes}): {type(error).__name__}{said}"


def with_assumed(message: str, assumed: str) -> str:
    """Add to a message what was assumed of modules."""
    return f"{message}. {assumed}" if assumed else message


def same_shapes(one: PyTree, other: PyTree) -> bool:
    """Return whether two pytrees agree but for values.

    They have the same paths, shapes and element types.
    """
    ours, theirs = (flatten_with_paths(shapes_of(plain(tree))) for tree in (one, other))
    return ours.keys() == theirs.keys() and all(
        ours[path].shape == theirs[path].shape and ours[path].dtype == theirs[path].dtype
        for path in ours
    )


def doubts_of(definition: Definition) -> Iterator[str]:
    """Yield what may be wrong with running statistics."""
    variables, train = definition.shapes, definition.apply_train
    for among in untold_statistics(parameters_of(variables))[:1]:
        yield (
            f"{among!r} looks like a running statistic but is among the parameters: it would be "
            'counted, trained and never recalibrated. Give variables as {"params": ..., '
            '"batch_stats": ...}'
        )
        return
    found = untold_statistics(variables)
    listed = f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
    if found and train is None:
        yield (
            f"the network seems to have running statistics ({listed}) but no apply_train: "
            "candidates are evaluated with those of the dense network. Give "
            "apply_train=(variables, *inputs, key=None) -> (outputs, updates) so that they are "
            "recalibrated"
        )
    elif found and train is not None and not find_statistics(train, variables, *definition.example):
        yield (
            f"the network seems to have running statistics ({listed}) but training mode leaves "
            "them as they are: candidates are evaluated with those of the dense network"
        )


MODULE_TOLERANCE = 1e-4
"""Of a slim module against the slim network, relative to the largest output."""


def check_module(network: Network) -> None:
    """Refuse a slim module that computes something else.

    The slim network is what it must compute.

    Raises:
        NetworkError: naming the difference.
    """
    definition, variables = network.definition, network.variables
    assert definition.dense_apply is not None
    inputs = _drawn(definition.example)
    # At their default precision accelerators round, each program in its own way.
    with jax.default_matmul_precision("highest"):
        expected = definition.jitted(variables, *inputs)
    way_out = "use network(inputs), network.apply and network.apply_train instead"
    try:
        with jax.default_matmul_precision("highest"):
            found = jax.jit(definition.dense_apply)(variables, *inputs)
    except Exception as error:
        raise NetworkError(
            f"the module's code stands on a dense width, so it cannot run with slim weights "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0]}); {way_out}"
        ) from error
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = MODULE_TOLERANCE * max(1.0, float(jnp.max(jnp.abs(other))))
        if one.shape != other.shape or not jnp.allclose(one, other, atol=scale, equal_nan=True):
            raise NetworkError(
                "the module's code stands on a dense width, so with slim weights its outputs "
                f"differ from the slim network's; {way_out}"
            )


def _drawn(example: tuple[PyTree, ...]) -> tuple[PyTree, ...]:
    """Return inputs shaped as an example; random numbers, and integers as they are."""

    def draw(number: int, leaf: PyTree) -> jax.Array:
        shape = shapes_of(leaf)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jax.random.normal(jax.random.key(number), shape.shape, shape.dtype)
        known = not isinstance(leaf, jax.ShapeDtypeStruct)
        return jnp.asarray(leaf) if known else jnp.zeros(shape.shape, shape.dtype)

    leaves, structure = jax.tree.flatten(example)
    return jax.tree.unflatten(structure, [draw(*each) for each in enumerate(leaves)])

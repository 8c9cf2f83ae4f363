"""Modules of Flax Linen, Flax NNX and Equinox as pure functions of variables."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax

from rlprune_jax.pytree import is_key
from rlprune_jax.types import Apply, ApplyTrain, PyTree, Variables

MODES = {
    "train": True,
    "training": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
}
"""Keywords by which modules are told to train, with the value that says so."""


class Functions(NamedTuple):
    """A module as pure functions; the arguments of ``Network``."""

    apply: Apply
    variables: Variables
    example: PyTree
    apply_train: ApplyTrain | None
    own_apply: Apply | None
    rebuild: Callable[[Variables], PyTree] | None


def training_mode(call: Callable, given: Mapping[str, bool] | str | None) -> dict[str, bool]:
    """Return the keyword and value that tell a call to train, or nothing.

    Args:
        call: whose signature is looked at.
        given: a name, a mapping from name to value, or None to look for those of ``MODES``.

    Raises:
        ValueError: the call takes no such keyword.

    Example:
        >>> training_mode(lambda x, deterministic=True: x, None)
        {'deterministic': False}
    """
    parameters = inspect.signature(call).parameters
    open_ended = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if given is None:
        found = [name for name in MODES if name in parameters]
        return {name: MODES[name] for name in found}
    mode = {given: MODES.get(given, True)} if isinstance(given, str) else dict(given)
    unknown = [name for name in mode if name not in parameters]
    if unknown and not open_ended:
        raise ValueError(
            f"train={given!r}: the network takes no keyword {unknown[0]!r}; it takes "
            f"{', '.join(parameters)}"
        )
    return mode


def from_linen(
    module: PyTree,
    variables: Variables,
    example: PyTree,
    train: Mapping[str, bool] | str | None,
    rngs: Sequence[str],
    mutable: Sequence[str] | None,
) -> Functions:
    """Return a Linen module as pure functions; see ``Network.from_linen``."""
    import flax.linen as nn

    if not isinstance(module, nn.Module):
        raise TypeError(
            f"module={module!r} is a {type(module).__name__}, not a Linen module; use from_nnx, "
            "from_equinox or Network(apply, variables, example)"
        )
    if not isinstance(variables, Mapping) or "params" not in variables:
        raise ValueError(
            "variables must be a mapping with 'params', as module.init returns; wrap bare "
            "parameters as {'params': parameters}"
        )
    learning = training_mode(type(module).__call__, train)
    still = {name: not value for name, value in learning.items()}
    moved = [name for name in variables if name != "params"] if mutable is None else list(mutable)

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        given: dict[str, PyTree] = {**still, **options}
        return module.apply(variables, *inputs, **given)

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        key = jax.random.key(0) if key is None else key
        streams = {name: jax.random.fold_in(key, i) for i, name in enumerate(rngs)}
        options: dict[str, PyTree] = {**learning, "rngs": streams, "mutable": moved or False}
        found = module.apply(variables, *inputs, **options)
        outputs, updates = found if moved else (found, {})
        return outputs, {name: updates[name] for name in moved if name in updates}

    return Functions(
        apply=apply,
        variables=variables,
        example=example,
        apply_train=apply_train,
        own_apply=apply,
        rebuild=None,
    )


def from_nnx(model: PyTree, example: PyTree, train: Mapping[str, bool] | str | None) -> Functions:
    """Return an NNX module as pure functions; see ``Network.from_nnx``."""
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not an nnx.Module")
    learning = training_mode(type(model).__call__, train)
    still = {name: not value for name, value in learning.items()}
    kinds = (nnx.Param, nnx.BatchStat, ...)
    names = ("params", "batch_stats", "state")
    own = nnx.clone(model)
    own.train()
    graphdef_train, *_ = nnx.split(own, *kinds)
    own.eval()
    graphdef, *states = nnx.split(own, *kinds)
    variables = {
        name: _strings(nnx.to_pure_dict(state))
        for name, state in zip(names, states, strict=True)
        if jax.tree.leaves(state)
    }
    abstract = [jax.tree.map(lambda leaf: leaf, state) for state in states]

    def filled(variables: Variables, key: jax.Array | None = None) -> list[PyTree]:
        found = []
        for name, template in zip(names, abstract, strict=True):
            values = variables.get(name, {})
            if key is not None and name == "state":
                values = _rekeyed(values, key)
            state = jax.tree.map(lambda leaf: leaf, template)
            nnx.replace_by_pure_dict(state, values)
            found.append(state)
        return found

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return nnx.merge(graphdef, *filled(variables))(*inputs, **{**still, **options})

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        live = nnx.merge(graphdef_train, *filled(variables, key))
        outputs = live(*inputs, **learning)
        _, _, *after = nnx.split(live, *kinds)
        updates = {
            name: _strings(nnx.to_pure_dict(state))
            for name, state in zip(names[1:], after, strict=True)
            if name in variables
        }
        return outputs, updates

    def rebuild(variables: Variables) -> PyTree:
        return nnx.merge(graphdef, *filled(variables))

    return Functions(
        apply=apply,
        variables=variables,
        example=example,
        apply_train=apply_train,
        own_apply=None,
        rebuild=rebuild,
    )


def _strings(tree: PyTree) -> PyTree:
    """Nested dictionaries with text for keys; those of an ``nnx.List`` are numbers."""
    if isinstance(tree, dict):
        return {str(key): _strings(value) for key, value in tree.items()}
    return tree


def _rekeyed(values: PyTree, key: jax.Array) -> PyTree:
    """The state of random streams, started from another key."""
    leaves, structure = jax.tree.flatten(values)
    fresh = [
        jax.random.fold_in(key, number) if is_key(leaf) and not leaf.shape else leaf
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, fresh)


def from_equinox(model: PyTree, example: PyTree, state: PyTree, axis_name: str) -> Functions:
    """Return an Equinox module as pure functions; see ``Network.from_equinox``."""
    import equinox as eqx

    if not isinstance(model, eqx.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not an eqx.Module")
    params, static = eqx.partition(model, eqx.is_inexact_array)
    draws = "key" in inspect.signature(type(model).__call__).parameters
    variables: Variables = {"params": params}
    if state is not None:
        variables["state"] = state

    def call(
        variables: Variables, inputs: tuple[PyTree, ...], learning: bool, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        whole = eqx.nn.inference_mode(eqx.combine(variables["params"], static), not learning)
        stateful = "state" in variables
        keys = None
        if draws and learning:
            count = jax.tree.leaves(inputs)[0].shape[0]
            keys = jax.random.split(jax.random.key(0) if key is None else key, count)

        def one(inputs: tuple[PyTree, ...], key: jax.Array | None, state: PyTree) -> PyTree:
            options = {} if key is None else {"key": key}
            found = whole(*inputs, *((state,) if stateful else ()), **options)
            return found if stateful else (found, None)

        mapped = jax.vmap(
            one,
            in_axes=(0, None if keys is None else 0, None),
            out_axes=(0, None),
            axis_name=axis_name,
        )
        return mapped(inputs, keys, variables.get("state"))

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return call(variables, inputs, False, None)[0]

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        outputs, after = call(variables, inputs, True, key)
        return outputs, {} if after is None else {"state": after}

    def rebuild(variables: Variables) -> PyTree:
        whole = eqx.combine(variables["params"], static)
        return (whole, variables["state"]) if "state" in variables else whole

    return Functions(
        apply=apply,
        variables=variables,
        example=example,
        apply_train=apply_train,
        own_apply=None,
        rebuild=rebuild,
    )

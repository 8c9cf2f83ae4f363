"""Modules of Flax Linen, Flax NNX and Equinox as pure functions of variables."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.pytree import is_key
from rlprune_jax.training.task import positional
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.network import Functions, plain, same_shapes, shapes_of

MODES = {
    "train": True,
    "training": True,
    "is_train": True,
    "is_training": True,
    "deterministic": False,
    "use_running_average": False,
    "inference": False,
}
"""Keywords by which modules are told to train, with the value that says so."""


def training_mode(call: Callable, given: Mapping[str, bool] | str | None) -> dict[str, bool]:
    """Return what tells a call to train, or nothing.

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


class Mode(NamedTuple):
    """Hold how a module trains and how it evaluates.

    Attributes:
        train: keywords of a call in training.
        evaluate: keywords of a call in evaluation.
    """

    train: dict[str, bool]
    evaluate: dict[str, bool]

    def __str__(self) -> str:
        if not self.train:
            return "with no keyword that tells training from evaluation"
        said = [
            ", ".join(f"{name}={value}" for name, value in each.items())
            for each in (self.train, self.evaluate)
        ]
        return f"with {said[0]} in training and {said[1]} in evaluation"


def mode_of(call: Callable, given: Mapping[str, bool] | str | None) -> Mode:
    """Return how a call trains and how it evaluates.

    See ``training_mode``.
    """
    train = training_mode(call, given)
    return Mode(train=train, evaluate={name: not value for name, value in train.items()})


def _initialised(
    module: PyTree,
    mode: Mode,
    streams: tuple[str, ...],
    example: tuple[PyTree, ...],
    collections: tuple[str, ...],
    key: jax.Array,
) -> Variables:
    """Return fresh variables of a Linen module, those collections that the network has."""
    inputs = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes_of(example))
    names = dict.fromkeys(("params", *streams))
    keys = {name: jax.random.fold_in(key, place) for place, name in enumerate(names)}
    found = module.init(keys, *inputs, **mode.evaluate)
    return {name: plain(found[name]) for name in collections if name in found}


def from_linen(
    module: PyTree,
    variables: Variables,
    example: PyTree,
    train: Mapping[str, bool] | str | None,
    rngs: Sequence[str],
    mutable: Sequence[str] | None,
) -> Functions:
    """Return a Linen module as pure functions.

    See ``Network.from_linen``.
    """
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
    mode = mode_of(type(module).__call__, train)
    learner, still, how = module, module, f"called {mode}"
    fields = {name: MODES[name] for name in MODES if isinstance(getattr(module, name, None), bool)}
    if train is None and not mode.train and fields:
        made = mode_of(lambda **_: None, fields)
        learner, still = _with_fields(module, made.train), _with_fields(module, made.evaluate)
        how = f"made {made}"
    moved = [name for name in variables if name != "params"] if mutable is None else list(mutable)
    streams = (rngs,) if isinstance(rngs, str) else tuple(rngs)

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        given: dict[str, PyTree] = {**mode.evaluate, **options}
        chosen = learner if options.keys() & {"mutable", "rngs"} else still
        return chosen.apply(variables, *inputs, **given)

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        assert key is not None
        options: dict[str, PyTree] = {
            **mode.train,
            "rngs": {name: jax.random.fold_in(key, i) for i, name in enumerate(streams)},
            "mutable": moved or False,
        }
        found = learner.apply(variables, *inputs, **options)
        outputs, changed = found if moved else (found, {})
        updates = {name: plain(changed[name]) for name in moved if name in changed}
        if mutable is None:
            # What training appends to, as sow does, is no state that the next step goes on from.
            updates = {
                name: update
                for name, update in updates.items()
                if same_shapes(update, variables[name])
            }
        return outputs, updates

    return Functions(
        apply=apply,
        variables=variables,
        example=example,
        apply_train=apply_train,
        own_apply=apply,
        init=partial(_initialised, still, mode, streams, positional(example), tuple(variables)),
        assumed=(
            f"Assumed: the module is {how}, with rngs={streams} and "
            f"mutable={tuple(moved)} in training; say otherwise with train=, rngs= and mutable="
        ),
    )


def _with_fields(module: PyTree, fields: Mapping[str, bool]) -> PyTree:
    return module.clone(**fields)


def from_nnx(model: PyTree, example: PyTree, train: Mapping[str, bool] | str | None) -> Functions:
    """Return an NNX module as pure functions.

    See ``Network.from_nnx``.
    """
    from flax import nnx

    if not isinstance(model, nnx.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not an nnx.Module")
    call = type(model).__call__
    mode = mode_of(call, train)
    draws = "rngs" in inspect.signature(call).parameters
    kinds: tuple[PyTree, ...] = (nnx.Param, nnx.BatchStat, nnx.RngState, ...)
    own = nnx.clone(model)
    nnx.pop(own, nnx.Intermediate)
    own.train()
    graphdef_train = nnx.graphdef(own)
    own.eval()
    graphdef = nnx.graphdef(own)
    params, statistics, streams, other = nnx.state(own, *kinds)
    states = {"params": params, "batch_stats": statistics, "state": other}
    states = {name: state for name, state in states.items() if jax.tree.leaves(state)}

    def filled(graphdef: PyTree, variables: Variables, key: jax.Array | None = None) -> PyTree:
        found = []
        for name, template in states.items():
            state = jax.tree.map(lambda leaf: leaf, template)
            nnx.replace_by_pure_dict(state, variables[name])
            found.append(state)
        # Copies of variables belong to the trace in which they are made, and may change there.
        random = _restarted(streams, key)
        return nnx.merge(graphdef, random, *found)

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return filled(graphdef, variables)(*inputs, **{**mode.evaluate, **options})

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        live = filled(graphdef_train, variables, key)
        options: dict[str, PyTree] = dict(mode.train)
        if draws:
            options["rngs"] = nnx.Rngs(key)
        outputs = live(*inputs, **options)
        nnx.pop(live, nnx.Intermediate)
        _, statistics, _, other = nnx.state(live, *kinds)
        updates = {"batch_stats": statistics, "state": other}
        return outputs, {
            name: _strings(nnx.to_pure_dict(update))
            for name, update in updates.items()
            if name in states
        }

    return Functions(
        apply=apply,
        variables={name: _strings(nnx.to_pure_dict(state)) for name, state in states.items()},
        example=example,
        apply_train=apply_train,
        rebuild=lambda variables: filled(graphdef, variables),
        assumed=(
            f"Assumed: the module is called after train() and eval(), {mode}; say otherwise with "
            "train="
        ),
    )


def _strings(tree: PyTree) -> PyTree:
    """Nested dictionaries with text for keys; those of an ``nnx.List`` are numbers."""
    if isinstance(tree, dict):
        return {str(key): _strings(value) for key, value in tree.items()}
    return tree


def _restarted(streams: PyTree, key: jax.Array | None) -> PyTree:
    """A copy of the state of random streams, started from another key where there is one."""
    leaves, structure = jax.tree.flatten(streams)
    fresh = []
    for number, leaf in enumerate(leaves):
        if key is not None and is_key(leaf):
            own = jax.random.fold_in(key, number)
            leaf = jax.random.split(own, leaf.shape) if leaf.shape else own
        fresh.append(leaf)
    return jax.tree.unflatten(structure, fresh)


def from_equinox(
    model: PyTree,
    example: PyTree,
    state: PyTree,
    axis_name: str,
    train: Mapping[str, bool] | str | None,
) -> Functions:
    """Return an Equinox module as pure functions.

    See ``Network.from_equinox``.
    """
    import equinox as eqx

    if not isinstance(model, eqx.Module):
        raise TypeError(f"model={model!r} is a {type(model).__name__}, not an eqx.Module")
    params, static = eqx.partition(model, eqx.is_inexact_array)
    call = type(model).__call__
    mode = mode_of(call, train)
    takes_key = inspect.signature(call).parameters.get("key")
    needs_key = takes_key is not None and takes_key.default is inspect.Parameter.empty
    variables: Variables = {"params": params}
    if state is not None:
        variables["state"] = state

    def run(
        variables: Variables, inputs: tuple[PyTree, ...], learning: bool, key: jax.Array | None
    ) -> tuple[PyTree, PyTree]:
        whole = eqx.nn.inference_mode(eqx.combine(variables["params"], static), not learning)
        stateful = "state" in variables
        keys = None
        if needs_key or (takes_key is not None and learning):
            count = jax.tree.leaves(inputs)[0].shape[0]
            keys = jax.random.split(jax.random.key(0) if key is None else key, count)

        def one(inputs: tuple[PyTree, ...], key: jax.Array | None, state: PyTree) -> PyTree:
            options: dict[str, PyTree] = dict(mode.train if learning else mode.evaluate)
            if key is not None:
                options["key"] = key
            found = whole(*inputs, *((state,) if stateful else ()), **options)
            return found if stateful else (found, None)

        in_axes = (0, None if keys is None else 0, None)
        mapped = jax.vmap(one, in_axes=in_axes, out_axes=(0, None), axis_name=axis_name)
        return mapped(inputs, keys, variables.get("state"))

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return run(variables, inputs, False, None)[0]

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        outputs, after = run(variables, inputs, True, key)
        return outputs, {} if after is None else {"state": after}

    def rebuild(variables: Variables) -> PyTree:
        whole = eqx.combine(variables["params"], static)
        return (whole, variables["state"]) if "state" in variables else whole

    key_text = "with no key"
    if takes_key is not None:
        key_text = f"with a key in training{' and evaluation' if needs_key else ''}"
    return Functions(
        apply=apply,
        variables=variables,
        example=example,
        apply_train=apply_train,
        rebuild=rebuild,
        assumed=_assumed_of_equinox(axis_name, state, key_text, mode),
    )


def _assumed_of_equinox(axis_name: str, state: PyTree, key_text: str, mode: object) -> str:
    return (
        f"Assumed: the module reads one example and is vmapped over axis {axis_name!r}, "
        f"{'with no state' if state is None else 'with a state after its inputs'}, "
        f"{key_text}, {mode}; say otherwise with state=, axis_name= and train="
    )

"""From options to a task and a network: ours by name, or the user's as module:function."""

import dataclasses
import hashlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from rlprune_jax.costs import import_function, source_digest
from rlprune_jax.export.weights import read_leaves
from rlprune_jax.models import create_model
from rlprune_jax.origin import Provenance, Stale, code_origin
from rlprune_jax.pytree import flatten_with_paths
from rlprune_jax.training import data
from rlprune_jax.training.image_task import image_task
from rlprune_jax.training.metrics import Metric, SoftmaxCrossEntropy, labels_of, next_token_loss
from rlprune_jax.training.task import SPLITS, Task, classification
from rlprune_jax.training.text import load_text, text_names, text_task
from rlprune_jax.types import PyTree, Variables
from rlprune_jax.workflow.fingerprints import data_digest
from rlprune_jax.workflow.network import Network, check_weights
from rlprune_jax.workflow.sources import LANGUAGE_MODELS, DataOptions, NetworkOptions, is_own


class Wanted(NamedTuple):
    """Say what a network has to fit.

    Attributes:
        example: inputs of the network, a tuple with a batch in front.
        num_classes: that are to be told apart, for the next token those of the vocabulary; None
            where the task is another.
        task: where there is one.
        seed: of initialisation.
        shapes_only: whether a network of ours is made without its values.
    """

    example: tuple[PyTree, ...]
    num_classes: int | None
    task: Task | None = None
    seed: int = 0
    shapes_only: bool = False


class Built(NamedTuple):
    """Hold a network and whether it is trained.

    Attributes:
        network: with its variables.
        is_trained: whether they are not fresh from an initialisation.
        init: ``(key, *inputs) -> variables`` for other fresh ones; None where there is none.
    """

    network: Network
    is_trained: bool
    init: Callable[..., Variables] | None = None


def build_task(options: DataOptions, seed: int) -> Task:
    """Return the task that the options name.

    Raises:
        ValueError: a function that cannot be imported, raises, or returns no task.
        OSError: the data are missing.
    """
    metric = load_metric(options.metric)
    if options.dataset in text_names():
        text = load_text(options.dataset, seed=seed)
        return text_task(text, metric="negative_loss" if metric is None else metric)
    if not is_own(options.dataset):
        loaded = data.load(options.dataset, options.data_dir, seed=seed)
        return image_task(loaded, metric="accuracy" if metric is None else metric)
    given: dict[str, PyTree] = {"seed": seed, "data_dir": options.data_dir}
    found, taken = call_own("dataset", options.dataset, given)
    if options.data_dir is not None and "data_dir" not in taken:
        raise ValueError(
            f"data_dir={options.data_dir!r} would do nothing: {options.dataset} has no argument "
            "data_dir; leave it out"
        )
    task = as_task(options.dataset, found)
    return task if metric is None else dataclasses.replace(task, metric=metric, metric_name=None)


def origin_of(task: Task, stale: Stale = "refuse") -> Provenance:
    """Return what makes results on a task.

    Args:
        task: whose data count.
        stale: what is done with results that others made.
    """
    return Provenance(code_origin(data=data_digest(task)), stale)


def load_metric(metric: str | None) -> Metric | str | None:
    """Return a metric's name or function."""
    if metric is None or not is_own(metric):
        return metric
    return import_function(metric, "metric")


def as_task(name: str, found: PyTree) -> Task:
    """Return what a user's function gave as a task.

    Raises:
        ValueError: it is neither a task nor three splits.
    """
    if isinstance(found, Task):
        return found
    if isinstance(found, tuple | list) and len(found) == 3:
        return classification(*(tuple(each) if isinstance(each, list) else each for each in found))
    raise ValueError(
        f"dataset={name!r} returned an object of type {type(found).__name__}; it must return a "
        "rlprune_jax.Task, or (train, held_out, test), each (inputs, labels)"
    )


def wanted_of(task: Task, seed: int) -> Wanted:
    """Return what a task asks of a network."""
    example = task.objective.network_inputs(task.sample("train", 2))
    return Wanted(
        example=jax.tree.map(jnp.asarray, example),
        num_classes=count_classes(task),
        task=task,
        seed=seed,
    )


def count_classes(task: Task) -> int | None:
    """Count the classes of a task, None without any.

    Those of predicting the next token are the tokens of the vocabulary.
    """
    if "vocabulary" in task.description:
        return int(task.description["vocabulary"])
    if task.loss is next_token_loss:
        return count_tokens(task)
    if "dataset" in task.description and task.description["dataset"] in data.dataset_names():
        return data.describe(task.description["dataset"]).num_classes
    if not isinstance(task.loss, SoftmaxCrossEntropy) or task.is_streamed("train"):
        return None
    return int(np.asarray(labels_of(task.train)).max()) + 1


def count_tokens(task: Task) -> int | None:
    """Count tokens up to the last one in the data."""
    if any(map(task.is_streamed, SPLITS)):
        return None
    return max(int(np.asarray(getattr(task, split)).max()) for split in SPLITS) + 1


def build_network(options: NetworkOptions, wanted: Wanted) -> Built:
    """Return the network that the options name.

    Raises:
        ValueError: a function that cannot be imported, raises, or returns no network; options or
            weights that do not fit.
    """
    built = own_network(options, wanted) if is_own(options.model) else zoo_network(options, wanted)
    if options.pretrained is None:
        return built
    network = with_weights(built.network, options.pretrained)
    return Built(network=network, is_trained=True)


def zoo_network(options: NetworkOptions, wanted: Wanted) -> Built:
    """Return a network of the zoo, initialised.

    Raises:
        ValueError: it does another task or reads something else.
    """
    own = "a network of your own as --model package.module:function"
    if wanted.num_classes is None:
        raise ValueError(
            f"model={options.model!r} tells classes apart, which the task does not ask for; give "
            f"{own}"
        )
    chosen: dict[str, PyTree] = {"widths": options.widths or None}
    chosen |= {"width": options.width, "pools": options.pools}
    first = jax.tree.leaves(wanted.example)[0]
    if options.model not in LANGUAGE_MODELS and is_tokens(first):
        raise ValueError(
            f"model={options.model!r} reads images and the task's inputs are tokens, {first.dtype}"
            f"{list(first.shape)}; choose from {', '.join(LANGUAGE_MODELS)}, or give {own}"
        )
    if options.model == "gpt":
        chosen["context"] = first.shape[1]
    chosen = {name: value for name, value in chosen.items() if value is not None}
    module = create_model(options.model, wanted.num_classes, **chosen)
    return initialised(module, options, wanted)


def is_tokens(inputs: jax.Array) -> bool:
    """Return whether inputs are sequences of integers."""
    return inputs.ndim == 2 and bool(jnp.issubdtype(inputs.dtype, jnp.integer))


def initialised(module: nn.Module, options: NetworkOptions, wanted: Wanted) -> Built:
    """Return a Linen module with fresh variables or their shapes."""
    try:
        if wanted.shapes_only:
            variables = jax.eval_shape(module.init, jax.random.key(0), *wanted.example)
        else:
            # Only here, since it loads the whole search.
            from rlprune_jax.workflow.keys import stage_key

            key = stage_key(wanted.seed, "init")
            # Under jit the forward pass of an initialisation is dead code and never runs.
            variables = jax.jit(module.init)(key, *wanted.example)
    except (ValueError, TypeError) as error:
        raise ValueError(f"model={options.model!r}: {error}") from error
    network = Network.from_linen(module, variables, wanted.example, ignore=options.ignore)
    network = network.with_depth_groups() if options.depth_groups else network
    return Built(network=network, is_trained=False, init=module.init)


def own_network(options: NetworkOptions, wanted: Wanted) -> Built:
    """Return the network that a user's function makes."""
    known: dict[str, PyTree] = {"task": wanted.task, "num_classes": wanted.num_classes}
    given = {name: value for name, value in known.items() if value is not None}
    found, _ = call_own(
        "model", options.model, given | {"example": unpacked(wanted.example), "seed": wanted.seed}
    )
    example, ignore = wanted.example, options.ignore
    if isinstance(found, nn.Module):
        return initialised(found, options, wanted)
    if isinstance(found, Network):
        definition = found.definition
        definition = dataclasses.replace(definition, ignore=(*definition.ignore, *ignore))
        network = Network.of(definition, found.variables) if ignore else found
        network = network.with_depth_groups() if options.depth_groups else network
        return Built(network=network, is_trained=True)
    module, state = found if isinstance(found, tuple) and len(found) == 2 else (found, None)
    if isinstance(module, nn.Module) and isinstance(state, Mapping):
        network = Network.from_linen(module, state, example, ignore=ignore)
    elif is_module_of("flax.nnx", module) and state is None:
        network = Network.from_nnx(module, example, ignore=ignore)
    elif is_module_of("equinox", module):
        network = Network.from_equinox(module, example, state=state, ignore=ignore)
    else:
        raise ValueError(
            f"model={options.model!r} returned an object of type {type(found).__name__}; it must "
            "return a rlprune_jax.Network, a Linen module with or without its variables, an NNX "
            "module, or an Equinox module with or without its state"
        )
    network = network.with_depth_groups() if options.depth_groups else network
    return Built(network=network, is_trained=True)


def unpacked(example: tuple[PyTree, ...]) -> PyTree:
    """Return the only input, or the tuple of several."""
    return example[0] if len(example) == 1 else example


def is_module_of(library: str, module: PyTree) -> bool:
    """Return whether something is a library's module.

    The library is not imported for it.
    """
    loaded = sys.modules.get(library)
    return loaded is not None and isinstance(module, loaded.Module)


def call_own(option: str, path: str, given: Mapping[str, PyTree]) -> tuple[PyTree, set[str]]:
    """Call a user's function with those arguments that it names.

    Returns:
        What it returns, and the names of the arguments that it took.

    Raises:
        ValueError: it cannot be imported, asks for something else, or raises.
    """
    function = import_function(path, option)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):
        parameters = []
    fixed = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [each for each in parameters if each.kind not in fixed]
    for each in named:
        if each.default is each.empty and each.name not in given:
            raise ValueError(
                f"{option}={path!r} has the argument {each.name!r}, for which there is nothing "
                f"here; it may name {', '.join(given)}"
            )
    taken = {each.name for each in named if each.name in given}
    try:
        return function(**{name: given[name] for name in taken}), taken
    except Exception as error:
        lines = str(error).strip().splitlines()
        raise ValueError(
            f"{option}={path!r} raised {type(error).__name__}{': ' if lines else ''}"
            f"{lines[0] if lines else ''}"
        ) from error


def own_code(paths: Mapping[str, str | None]) -> dict[str, str]:
    """Return digests of the user's code, by option."""
    return {
        option: source_digest(import_function(path, option))
        for option, path in paths.items()
        if path is not None and is_own(path)
    }


def with_weights(network: Network, place: str) -> Network:
    """Return the network with weights from disk.

    They lie in a safetensors file or an Orbax checkpoint.

    Raises:
        ValueError: naming the first path that does not fit.
        CheckpointError: the folder is no checkpoint.
        ExportError: the file is no safetensors file.
    """
    if os.path.isdir(place):
        from rlprune_jax.runs import read_checkpoint  # only here, since it loads Orbax

        stored = read_checkpoint(place)
    else:
        stored = {name: leaf.value for name, leaf in read_leaves(place).items()}
    wanted = flatten_with_paths(network.variables)
    stored = below(stored, wanted)
    where = f"pretrained={place!r} does not fit the network"
    for path, leaf in wanted.items():
        if path not in stored:
            raise ValueError(f"{where}: it lacks {path!r}; it holds {_first(stored)}")
        shape = np.shape(stored[path])
        if shape != np.shape(leaf):
            raise ValueError(f"{where}: {path!r} has shape {shape}, in the network {leaf.shape}")
        if jnp.issubdtype(stored[path].dtype, jnp.inexact) != jnp.issubdtype(
            leaf.dtype, jnp.inexact
        ):
            raise ValueError(
                f"{where}: {path!r} is {stored[path].dtype}, in the network {leaf.dtype}"
            )
    for path in stored:
        if path not in wanted:
            raise ValueError(f"{where}: it holds {path!r}, which the network lacks")
    leaves = [jnp.asarray(stored[path], leaf.dtype) for path, leaf in wanted.items()]
    variables = jax.tree.unflatten(jax.tree.structure(network.variables), leaves)
    check_weights(variables)
    return network.replace(variables)


def below(stored: Mapping[str, PyTree], wanted: Mapping[str, PyTree]) -> dict[str, PyTree]:
    """Return stored leaves by the network's paths.

    They may lie deeper or less deep. Checkpoints hold the state of a training,
    ``variables/params/...`` beside ``step``, or the parameters alone. What lies beside the
    network's own collections is left out.
    """
    roots = {path.split("/")[0] for path in wanted}
    for renamed in (
        dict(stored),
        {path.removeprefix("variables/"): leaf for path, leaf in stored.items()},
        {f"params/{path}": leaf for path, leaf in stored.items()},
    ):
        inside = {path: leaf for path, leaf in renamed.items() if path.split("/")[0] in roots}
        if set(inside) & set(wanted):
            return inside
    return dict(stored)


def _first(stored: Mapping[str, PyTree]) -> str:
    names = sorted(stored)
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing"


def digest_of(place: str) -> str:
    """Return ten hexadecimal digits of a place's files."""
    root = Path(place)
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")) if root.is_dir() else [root]:
        if file.is_file():
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:10]

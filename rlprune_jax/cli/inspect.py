"""Print what of a network can be pruned, and what budgets can reach; no data are read.

Example: rlprune inspect --model resnet20 --dataset cifar10

Printed are the groups of coupled units, the axes that cannot be pruned with the reasons, and for
every cost that is known without timing the dense network's and the least that pruning leaves.
"""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

from rlprune_jax.checks import MOST_COUNTED, refuse_unless, require_count
from rlprune_jax.cli.common import run_command
from rlprune_jax.cli.options import Flat, check_unit_options
from rlprune_jax.workflow.config import PruneConfig, UnitConfig, overrides
from rlprune_jax.workflow.sources import (
    DATASETS,
    LANGUAGE_MODELS,
    TEXTS,
    NetworkOptions,
    check_network,
    check_pair,
    check_path,
    is_own,
    with_usual_widths,
)

if TYPE_CHECKING:
    from rlprune_jax.graph.groups import Graph
    from rlprune_jax.types import PyTree
    from rlprune_jax.workflow.building import Wanted
    from rlprune_jax.workflow.network import Network

COUNTED = ("params", "macs", "weight_bytes", "tiled_macs", "activation_memory")
"""Costs that need no timing and that every network has."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """Say what the network reads."""

    dataset: str | None = None
    """Of the input: digits unless told, mnist, fashion_mnist, cifar10, cifar100, text (for gpt and
    llama); only its shape is used. Or data of yours as package.module:function, which is called."""
    input_shape: tuple[int, ...] | None = None
    """Shape of one input of float32 instead, such as 224 224 3; of gpt and llama the number of
    tokens."""
    classes: int | None = None
    """Outputs of a network of the zoo; those of the data set, or 10, unless told; of gpt and llama
    tokens of the vocabulary, 128 unless told."""


@dataclasses.dataclass(frozen=True)
class OutputOptions:
    """Say what is printed."""

    json: bool = False
    """One line of JSON instead of text."""


@dataclasses.dataclass(frozen=True)
class InspectOptions:
    """Options of the inspection."""

    network: Annotated[NetworkOptions, Flat] = dataclasses.field(default_factory=NetworkOptions)
    inputs: Annotated[InputOptions, Flat] = InputOptions()
    units: Annotated[UnitConfig, Flat] = dataclasses.field(default_factory=UnitConfig)
    output: Annotated[OutputOptions, Flat] = OutputOptions()


def main(prog: str, args: list[str]) -> None:
    """Run the command."""
    run_command(inspect, InspectOptions, __doc__, prog=prog, args=args)


def inspect(options: InspectOptions) -> str:
    """Return what there is to print.

    Raises:
        ValueError: an option is wrong, or the network does not take the input.
    """
    check_options(options)
    from rlprune_jax.workflow.building import build_network

    network = build_network(usual_widths(options), wanted_of_options(options)).network
    found = summary(network, options.units)
    return json.dumps(found) if options.output.json else text_of(network.graph, found)


def check_options(options: InspectOptions) -> None:
    """Refuse options that cannot be, before JAX is imported.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_network(options.network)
    check_unit_options(options.units)
    inputs = options.inputs
    if inputs.dataset is not None and inputs.input_shape is not None:
        raise ValueError(
            f"give either dataset={inputs.dataset!r} or input_shape={inputs.input_shape}, not both"
        )
    if inputs.dataset is not None and is_own(inputs.dataset):
        check_path("dataset", inputs.dataset)
    elif inputs.dataset is not None and inputs.dataset not in (*DATASETS, *TEXTS):
        known = ", ".join((*DATASETS, *TEXTS))
        raise ValueError(f"dataset={inputs.dataset!r} is unknown; choose from {known}")
    elif inputs.dataset is not None:
        check_pair(options.network.model, inputs.dataset)
    shape = inputs.input_shape
    if shape is not None:
        sizes = [isinstance(each, int) and 1 <= each <= MOST_COUNTED for each in shape]
        good = bool(sizes) and all(sizes)
        refuse_unless(
            "input_shape", shape, good, f"must be above 0 and at most {MOST_COUNTED} each"
        )
    classes = inputs.classes
    if classes is not None:
        require_count("classes", classes)


def usual_widths(options: InspectOptions) -> NetworkOptions:
    """Fill in the widths that ``prune`` takes for digits."""
    inputs = options.inputs
    dataset = "" if inputs.input_shape is not None else inputs.dataset or "digits"
    return with_usual_widths(options.network, dataset)


def wanted_of_options(options: InspectOptions) -> "Wanted":
    """Return what the network has to fit."""
    import jax.numpy as jnp

    from rlprune_jax.training import data
    from rlprune_jax.training.text import VOCABULARY, describe_text
    from rlprune_jax.workflow.building import Wanted, build_task, wanted_of
    from rlprune_jax.workflow.sources import DataOptions

    inputs = options.inputs
    reads_tokens = options.network.model in LANGUAGE_MODELS
    dataset = inputs.dataset or (TEXTS[0] if reads_tokens else "digits")
    shapes_only = options.network.pretrained is None
    shape: tuple[int, ...]
    if inputs.input_shape is not None:
        shape, classes = inputs.input_shape, VOCABULARY if reads_tokens else 10
    elif dataset in TEXTS:
        text = describe_text(dataset)
        shape, classes = (text.context,), text.vocabulary
    elif is_own(dataset):
        found = wanted_of(build_task(DataOptions(dataset=dataset), seed=0), seed=0)
        return found._replace(
            num_classes=inputs.classes or found.num_classes,
            shapes_only=shapes_only,
        )
    else:
        source = data.describe(dataset)
        shape, classes = source.image_shape, source.num_classes
    return Wanted(
        example=(jnp.zeros((2, *shape), jnp.int32 if reads_tokens else jnp.float32),),
        num_classes=inputs.classes or classes,
        shapes_only=shapes_only,
    )


def summary(network: "Network", units: UnitConfig) -> "dict[str, PyTree]":
    """Return groups, frozen axes and costs as plain JSON."""
    from rlprune_jax.costs import constrain
    from rlprune_jax.units.gates import round_gates, smallest_gates

    graph, config = network.graph, PruneConfig(**vars(units))
    gates = smallest_gates(graph, overrides(config, "min_keep"))
    round_to = overrides(config, "round_to")
    gates = round_gates(graph, gates, round_to=round_to, towards="more")
    costs = {}
    names = (*COUNTED, *(["kv_cache_bytes"] if makes_keys_and_values(graph) else []))
    for name, (_, cost) in zip(
        names, constrain(network, [f"{name}=1" for name in names]), strict=True
    ):
        least = cost.exact(gates).value
        costs[name] = {
            "unit": cost.unit,
            "dense": int(cost.dense),
            "least": int(least),
            "least_fraction": least / max(cost.dense, 1),
        }
    return {
        "groups": dict(zip(graph.names, graph.sizes, strict=True)),
        "frozen": [dataclasses.asdict(axis) for axis in graph.frozen],
        "owned": graph.report().fraction,
        "remarks": list(graph.remarks),
        "params": costs["params"]["dense"],
        "macs": costs["macs"]["dense"],
        "costs": costs,
        "min_keep": units.min_keep,
        "round_to": units.round_to,
    }


def makes_keys_and_values(graph: "Graph") -> bool:
    """Return whether a network has layers called so."""
    from rlprune_jax.costs.kv_cache import find_keys_and_values

    try:
        find_keys_and_values(graph)
    except ValueError:
        return False
    return True


def text_of(graph: "Graph", found: "dict[str, PyTree]") -> str:
    """Return the graph and what budgets can reach."""
    title = f"{'cost':<18}{'dense':>16}{'least':>14} {'unit':<11}smallest budget"
    lines = [str(graph), "", str(graph.report()), "", title]
    for name, cost in found["costs"].items():
        # Rounded up, so that what is printed can be met.
        fraction = -(-cost["least"] * 10_000 // max(cost["dense"], 1)) / 10_000
        lines.append(
            f"{name:<18}{cost['dense']:>16,}{cost['least']:>14,} {cost['unit']:<11}"
            f"{name}={fraction:g} or {name}={max(cost['least'], 2)}"
        )
    lines.append(
        f"(min_keep={found['min_keep']}, round_to={found['round_to']}; one example a call)"
    )
    return "\n".join(lines)

"""Prune a twin by Torch-Pruning, step by step, and carry the kept channels back as gates.

The loop is that of the library's own example (``progressive_pruning``): importance is found anew
before each of many small steps, until the network is within the budget.
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import torch
import torch_pruning
from torch import nn

from rlprune_jax.costs import count_params
from rlprune_jax.graph.groups import PRODUCER, Graph
from rlprune_jax.types import Gates
from torch_rival.twins import layer_of, tensor

Kept = dict[str, np.ndarray]
"""Channels that are left of each convolution, by the layer's name, in their order."""


class SummedHessian(torch_pruning.importance.GroupHessianImportance):
    """The library's diagonal Hessian, its squared gradients summed over the examples.

    ``accumulate_grad`` of 1.6 looks for names among tensors and so keeps the last example alone.
    """

    def accumulate_grad(self, model: nn.Module) -> None:
        """Add the squared gradients of one example."""
        for param in model.parameters():
            if param.grad is not None:
                self._accu_grad[param] = self._accu_grad.get(param, 0) + param.grad.pow(2)
                self._counter[param] = self._counter.get(param, 0) + 1


class Criterion(NamedTuple):
    """Hold what channels are ranked by, and among which.

    Attributes:
        make: makes the library's importance.
        options: of its pruner.
    """

    make: Callable[[], object]
    options: dict[str, bool] = {}  # noqa: RUF012


ALL, ALIKE = {"global_pruning": True}, {"global_pruning": True, "isomorphic": True}
_importance = torch_pruning.importance

CRITERIA: dict[str, Criterion] = {
    "magnitude_local": Criterion(lambda: _importance.GroupMagnitudeImportance(p=2)),
    "magnitude_global": Criterion(lambda: _importance.GroupMagnitudeImportance(p=2), ALL),
    "magnitude_isomorphic": Criterion(lambda: _importance.GroupMagnitudeImportance(p=2), ALIKE),
    "lamp_global": Criterion(lambda: _importance.LAMPImportance(p=2), ALL),
    "batch_norm_scale_global": Criterion(lambda: _importance.BNScaleImportance(), ALL),
    "taylor_local": Criterion(lambda: _importance.GroupTaylorImportance()),
    "taylor_global": Criterion(lambda: _importance.GroupTaylorImportance(), ALL),
    "taylor_isomorphic": Criterion(lambda: _importance.GroupTaylorImportance(), ALIKE),
    "hessian_global": Criterion(lambda: _importance.GroupHessianImportance(), ALL),
    "hessian_summed_global": Criterion(SummedHessian, ALL),
    "hessian_summed_isomorphic": Criterion(SummedHessian, ALIKE),
}
"""Of the library, with its defaults; the summed ones are its Hessian mended."""


class Cut(NamedTuple):
    """Hold what a criterion keeps within one budget.

    Attributes:
        gates: filled up to the budget by undoing part of the last step.
        exact: as the library left them.
        slim: the library's network.
        seconds: from the dense network on.
    """

    gates: Gates
    exact: Gates
    slim: nn.Module
    seconds: float


class Examples(NamedTuple):
    """Hold images that gradients are taken on.

    Attributes:
        images: prepared, f32[n, H, W, C].
        labels: i32[n].
    """

    images: np.ndarray
    labels: np.ndarray

    def draw(self, generator: np.random.Generator, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return some of them, without replacement."""
        chosen = generator.permutation(len(self.labels))[:count]
        return tensor(self.images[chosen]), torch.tensor(np.asarray(self.labels)[chosen]).long()


def cuts(
    twin: nn.Module,
    graph: Graph,
    criterion: Criterion,
    limits: Sequence[int],
    examples: Examples,
    *,
    steps: int,
    seed: int,
    batch: int = 64,
) -> Iterator[Cut]:
    """Yield what is kept within each limit on parameters, from the largest on.

    Args:
        twin: dense; it is not changed.
        graph: of our network, to count by.
        criterion: what channels are ranked by.
        limits: parameters, falling.
        examples: to take gradients on; a new draw for each step.
        steps: from the dense network to none.
        seed: of the draws.
        batch: examples a step.
    """
    began, spent = time.perf_counter(), 0.0
    model, generator = copy.deepcopy(twin), np.random.default_rng(seed)
    kept = {
        name: np.arange(layer.out_channels)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d)
    }
    pruner = torch_pruning.pruner.BasePruner(
        model,
        tensor(examples.images[:2]),
        importance=criterion.make(),
        pruning_ratio=1.0,
        iterative_steps=steps,
        ignored_layers=[model.head],
        **criterion.options,
    )
    left = list(limits)
    before = gates = gates_of(graph, kept)
    for _ in range(steps):
        before = gates
        take_gradients(model, pruner.importance, *examples.draw(generator, batch))
        prune_once(pruner, model, kept)
        gates = gates_of(graph, kept)
        while left and count_params(graph, gates) <= left[0]:
            filled = fill(graph, gates, before, left.pop(0))
            # What the caller does between two cuts does not count.
            spent += time.perf_counter() - began
            yield Cut(filled, gates, copy.deepcopy(model), spent)
            began = time.perf_counter()
        if not left:
            return
    raise RuntimeError(f"Torch-Pruning left {count_params(graph, gates)} parameters of {left}")


def take_gradients(
    model: nn.Module, importance: object, images: torch.Tensor, labels: torch.Tensor
) -> None:
    """Give an importance the gradients that it reads, as the library's examples do."""
    if isinstance(importance, torch_pruning.importance.GroupHessianImportance):
        losses = nn.functional.cross_entropy(model(images), labels, reduction="none")
        importance.zero_grad()
        for loss in losses:
            model.zero_grad()
            loss.backward(retain_graph=True)
            importance.accumulate_grad(model)
    elif isinstance(importance, torch_pruning.importance.GroupTaylorImportance):
        model.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()


def prune_once(pruner: torch_pruning.pruner.BasePruner, model: nn.Module, kept: Kept) -> None:
    """Take one step and note what it removes of every convolution."""
    names = {layer: name for name, layer in model.named_modules()}
    removes = torch_pruning.prune_conv_out_channels
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group in pruner.step(interactive=True):
            for dependency, indices in group:
                name = names.get(dependency.target.module, "")
                if name in kept and dependency.handler == removes:
                    kept[name] = np.delete(kept[name], indices)
            group.prune()


def gates_of(graph: Graph, kept: Kept) -> Gates:
    """Return the gates of what convolutions have kept.

    Raises:
        RuntimeError: convolutions of one group have kept different units.
    """
    gates = {}
    for group in graph.groups:
        found = set()
        for slot in group.slots_of(PRODUCER):
            gate = np.isin(slot.indices[:, 0], kept[layer_of(slot.path)])
            found.add(gate.tobytes())
        if len(found) != 1:
            raise RuntimeError(f"convolutions of {group.name} were not pruned together")
        gates[group.name] = jnp.asarray(gate, jnp.float32)
    return gates


def fill(graph: Graph, gates: Gates, before: Gates, limit: int) -> Gates:
    """Undo as much of the last step as the limit leaves room for.

    A step overshoots; the rival is not to lose by it.
    """
    filled = dict(gates)
    undone = [
        (name, int(unit))
        for name in graph.names
        for unit in np.flatnonzero(np.asarray(before[name] - gates[name]))
    ]
    for name, unit in undone:
        wider = filled | {name: filled[name].at[unit].set(1.0)}
        if count_params(graph, wider) <= limit:
            filled = wider
    return filled

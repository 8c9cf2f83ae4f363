"""Trace and cut VGG16, ResNet56 and ResNet50 to half of every width; Torch-Pruning beside it.

Command:  python benchmarks/bench_slim.py [--quick]
          (Torch-Pruning is optional: pip install torch torch-pruning)

For each network, at images of 32x32: seconds that ``trace_graph`` and ``compact`` take together
(the first time, as a user feels it, and the median of all rounds), MACs of the dense network over
those of the slim one, and the forward pass of the dense network over that of the slim one, timed in
turn. With Torch-Pruning the same networks are built and cut there in the same run, each group to
one half by a random score; its time is that of building the pruner and of its one step.

Last comes JSON; its keys say what is divided by what, and more than 1 is in favour of the slim
network, or of ours over Torch-Pruning. Seconds stand beside them.

Measured on 2 quiet cores of an AMD EPYC, JAX 0.10.2, ``--rounds 3 --batch 16``, two minutes
(2026-11-21): trace and cut 0.28, 0.42 and 0.62 s the first time (Torch-Pruning 0.10, 0.09, 0.42);
slim forward 3.65, 2.16 and 2.93 times as fast as dense at 4.0 times fewer MACs (its: 3.48,
1.87, 3.7); slim forward in ms 21.5, 21.7, 106.5 (its: 15.7, 16.9, 98.8).
"""

import dataclasses
import functools
import importlib.util
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from rlprune_jax import compact, count_macs, respecialise, trace_graph
from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model, model_functions

NETWORKS: dict[str, dict[str, Any]] = {
    "vgg16": {},
    # Torch-Pruning does not see through a shortcut that pads channels.
    "resnet56": {"shortcut": "projection"},
    "resnet50": {},
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    quick: bool = False
    """A quarter of the width, four images and three rounds."""
    batch: int = 32
    """Images of a batch."""
    rounds: int = 7
    """Times everything is measured."""
    keep: float = 0.5
    """Share of units kept in every group."""
    torch: bool = True
    """Measure Torch-Pruning too, if it is installed."""


def measure_ours(name: str, config: Config) -> dict[str, Any]:
    """Return seconds of tracing and cutting, MACs dense over slim, and forward calls."""
    width = 0.25 if config.quick else 1.0
    network = create_model(name, 10, width=width, **NETWORKS[name])
    functions = model_functions(network)
    x = np.random.default_rng(0).standard_normal((config.batch, 32, 32, 3), np.float32)
    variables = jax.block_until_ready(functions.init(jax.random.key(0), jnp.asarray(x)))

    seconds: list[float] = []
    graph: Any = None
    gates: Any = None
    slim: Any = None
    for _ in range(config.rounds):
        # New functions, as JAX keeps the traces of those it has seen.
        functions = model_functions(network)
        start = time.perf_counter()
        graph = trace_graph(functions.apply, variables, x[:1])
        gates = {
            group.name: np.arange(group.size) < max(1, round(config.keep * group.size))
            for group in graph.groups
        }
        slim = jax.block_until_ready(compact(graph, variables, gates))
        seconds.append(time.perf_counter() - start)

    dense_forward = jax.jit(functions.apply).lower(variables, x).compile()
    slim_forward = jax.jit(respecialise(functions.apply, graph, gates)).lower(slim, x).compile()
    return {
        "seconds": seconds,
        "macs": (count_macs(graph), count_macs(graph, gates)),
        "calls": (
            lambda: jax.block_until_ready(dense_forward(variables, x)),
            lambda: jax.block_until_ready(slim_forward(slim, x)),
        ),
    }


def measure_torch(name: str, config: Config) -> dict[str, Any]:
    """Return the same of Torch-Pruning."""
    import torch
    import torch_pruning as pruning

    torch.set_num_threads(describe_device()["cores"])
    images = torch.randn(config.batch, 3, 32, 32)
    seconds, dense, slim = [], None, None
    for _ in range(config.rounds):
        dense = torch_network(name, 0.25 if config.quick else 1.0).eval()
        slim = torch_network(name, 0.25 if config.quick else 1.0).eval()
        start = time.perf_counter()
        pruner = pruning.pruner.BasePruner(
            slim,
            images[:1],
            importance=pruning.importance.RandomImportance(),
            pruning_ratio=1 - config.keep,
            ignored_layers=[slim.head],
        )
        pruner.step()
        seconds.append(time.perf_counter() - start)
    count = pruning.utils.count_ops_and_params

    def forward(network: Any) -> None:
        with torch.inference_mode():
            network(images)

    return {
        "seconds": seconds,
        "macs": (count(dense, images[:1])[0], count(slim, images[:1])[0]),
        "calls": (functools.partial(forward, dense), functools.partial(forward, slim)),
    }


def torch_network(name: str, width: float) -> Any:
    """Build the network of the zoo with that name in PyTorch, with its last layer as ``head``."""
    import torch
    from torch import nn

    def conv(channels: int, outputs: int, size: int, stride: int = 1) -> Any:
        layer = nn.Conv2d(channels, outputs, size, stride, size // 2, bias=False)
        return nn.Sequential(layer, nn.BatchNorm2d(outputs))

    class Block(nn.Module):
        def __init__(self, channels: int, inner: int, outputs: int, stride: int) -> None:
            super().__init__()
            if outputs == inner:
                convs = [conv(channels, inner, 3, stride), nn.ReLU(), conv(inner, outputs, 3)]
            else:
                convs = [conv(channels, inner, 1), nn.ReLU(), conv(inner, inner, 3, stride)]
                convs += [nn.ReLU(), conv(inner, outputs, 1)]
            self.body = nn.Sequential(*convs)
            changes = stride != 1 or channels != outputs
            self.shortcut = conv(channels, outputs, 1, stride) if changes else nn.Identity()

        def forward(self, x: Any) -> Any:
            return torch.relu(self.body(x) + self.shortcut(x))

    class Network(nn.Module):
        def __init__(self, layers: list[Any], channels: int) -> None:
            super().__init__()
            self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
            self.head = nn.Linear(channels, 10)

        def forward(self, x: Any) -> Any:
            return self.head(self.body(x))

    layers: list[Any] = []
    if name == "vgg16":
        channels = 3
        for outputs, depth in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
            for _ in range(depth):
                layers += [conv(channels, round(outputs * width), 3), nn.ReLU()]
                channels = round(outputs * width)
            layers.append(nn.MaxPool2d(2))
        return Network(layers, channels)
    first, blocks, expansion = (16, (9, 9, 9), 1) if name == "resnet56" else (64, (3, 4, 6, 3), 4)
    channels = round(first * width)
    layers += [conv(3, channels, 3), nn.ReLU()]
    for stage, count in enumerate(blocks):
        inner = round(first * 2**stage * width)
        for number in range(count):
            stride = 2 if stage and not number else 1
            layers.append(Block(channels, inner, inner * expansion, stride))
            channels = inner * expansion
    return Network(layers, channels)


def time_in_turn(calls: list[Callable[[], Any]], rounds: int) -> list[list[float]]:
    """Return seconds of each call in every round, after one that warms up."""
    seconds: list[list[float]] = [[] for _ in calls]
    for number in range(rounds + 1):
        for call, times in zip(calls, seconds, strict=True):
            start = time.perf_counter()
            call()
            if number:
                times.append(time.perf_counter() - start)
    return seconds


def median_ratio(above: list[float], below: list[float]) -> float:
    """Return the median over the rounds of one time over another."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and return the last line."""
    if config.quick:
        config = dataclasses.replace(config, batch=min(config.batch, 4), rounds=3)
    with_torch = config.torch and importlib.util.find_spec("torch_pruning") is not None
    line: dict[str, Any] = {}
    for name in NETWORKS:
        sides = {"ours": measure_ours(name, config)}
        if with_torch:
            sides["torch_pruning"] = measure_torch(name, config)
        times = time_in_turn(
            [call for side in sides.values() for call in side["calls"]], config.rounds
        )
        for number, (side, found) in enumerate(sides.items()):
            prefix = name if side == "ours" else f"{name}_{side}"
            dense, slim = times[2 * number : 2 * number + 2]
            line[f"{prefix}_dense_macs_over_slim"] = found["macs"][0] / found["macs"][1]
            line[f"{prefix}_dense_seconds_over_slim"] = median_ratio(dense, slim)
            line[f"{prefix}_trace_and_cut_seconds"] = statistics.median(found["seconds"])
            line[f"{prefix}_trace_and_cut_seconds_first"] = found["seconds"][0]
            print(
                f"{name:9s} {side:14s} trace and cut {found['seconds'][0]:6.2f} s first, "
                f"{statistics.median(found['seconds']):6.2f} s median; MACs dense over slim "
                f"{line[f'{prefix}_dense_macs_over_slim']:5.2f}; forward "
                f"{statistics.median(dense) * 1e3:8.1f} ms dense, "
                f"{statistics.median(slim) * 1e3:8.1f} ms slim"
            )
        if with_torch:
            line[f"{name}_trace_and_cut_torch_pruning_over_ours"] = median_ratio(
                sides["torch_pruning"]["seconds"], sides["ours"]["seconds"]
            )
            line[f"{name}_slim_forward_torch_over_ours"] = median_ratio(times[3], times[1])
    line = {key: round(value, 4) for key, value in line.items()}
    line |= {
        "batch": config.batch,
        "keep": config.keep,
        "quick": config.quick,
        "hardware": describe_device(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

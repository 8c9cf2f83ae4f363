"""VGG16 with batch norm: our convolution against XLA's and PyTorch's, forward and in training.

Command:  python benchmarks/bench_conv.py [--quick]      (PyTorch is optional: pip install torch)

Everything is timed in turn in one run; the medians of the ratios are printed. Last comes JSON:
``forward_over_xla``, ``train_in_scan_over_xla``, ``forward_over_torch`` and
``train_in_scan_over_torch``; more than 1 means that ours is faster. A training step is forward,
backward and SGD with momentum, three of them in one `lax.scan`; PyTorch takes the same steps in a
Python loop, in the faster of its two memory formats. XLA's own convolution takes minutes for such a
step at batch 128 on CPU, so against it both sides are measured at ``batch_over_xla`` images.

Measured on 2 quiet cores of an AMD EPYC (AVX2), float32, batch 128, JAX 0.10.2, PyTorch 2.13, 3
minutes (2026-11-21): forward 292 images/s, 8.8 times XLA's 33 and 0.83 times PyTorch's 352
(channels last; 282 in its default format); training in a scan 88 images/s, 0.80 times PyTorch's
106; against XLA's at batch 16, 27.8 times (52 and 1.9 images/s), at batch 32,
34.8 times. With ``--batch-over-xla 128`` the
three steps of XLA's did not end in the 6 minutes that were left to them, where ours take 4.3 s:
more than 80 times, how many more is not known.
"""

import dataclasses
import importlib.util
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
import tyro

from rlprune_jax.devices import describe_device
from rlprune_jax.models import create_model, model_functions
from rlprune_jax.models.convolution.conv import conv_general_dilated

STEPS = 3
CONVOLUTIONS = {"ours": conv_general_dilated, "xla": jax.lax.conv_general_dilated}


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    quick: bool = False
    """A quarter of the width, small batches and three rounds: half a minute."""
    batch: int = 128
    """Images of a batch."""
    batch_over_xla: int = 16
    """Images of a training batch where XLA's convolution is one side."""
    rounds: int = 5
    """Times everything is measured."""
    torch: bool = True
    """Measure PyTorch too, if it is installed."""


def compile_forward(name: str, width: float, batch: int) -> Callable[[], Any]:
    """Return a call of the compiled forward pass with a convolution."""
    network = create_model("vgg16", 10, width=width, conv_general_dilated=CONVOLUTIONS[name])
    functions = model_functions(network)
    x = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    variables = jax.jit(functions.init)(jax.random.key(1), x[:1])
    compiled = jax.jit(functions.apply).lower(variables, x).compile()
    return lambda: jax.block_until_ready(compiled(variables, x))


def compile_training(name: str, width: float, batch: int) -> Callable[[], Any]:
    """Return a call of the compiled scan over training steps with a convolution."""
    network = create_model("vgg16", 10, width=width, conv_general_dilated=CONVOLUTIONS[name])
    functions = model_functions(network)
    x = jax.random.normal(jax.random.key(0), (batch, 32, 32, 3))
    labels = jnp.arange(batch) % 10
    variables = jax.jit(functions.init)(jax.random.key(1), x[:1])
    optimizer = optax.sgd(0.01, momentum=0.9)

    def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
        variables, state = carry

        def loss(params: Any) -> tuple[jax.Array, Any]:
            logits, updates = functions.apply_train({**variables, "params": params}, x)
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return entropy.mean(), updates

        (value, updates), gradients = jax.value_and_grad(loss, has_aux=True)(variables["params"])
        changes, state = optimizer.update(gradients, state, variables["params"])
        params = optax.apply_updates(variables["params"], changes)
        return ({**variables, **updates, "params": params}, state), value

    def train(carry: Any) -> Any:
        return jax.lax.scan(step, carry, None, length=STEPS)

    carry = (variables, optimizer.init(variables["params"]))
    compiled = jax.jit(train).lower(carry).compile()
    return lambda: jax.block_until_ready(compiled(carry))


def torch_calls(width: float, batch: int) -> dict[str, Callable[[], Any]]:
    """Return calls of PyTorch's forward pass and training steps, in both memory formats."""
    import torch
    from torch import nn

    torch.set_num_threads(describe_device()["cores"])
    calls: dict[str, Callable[[], Any]] = {}
    for name, memory_format in (
        ("torch", torch.contiguous_format),
        ("torch channels last", torch.channels_last),
    ):
        layers: list[Any] = []
        channels = 3
        for stage, depth in zip((64, 128, 256, 512, 512), (2, 2, 3, 3, 3), strict=True):
            for _ in range(depth):
                outputs = round(stage * width)
                layers += [
                    nn.Conv2d(channels, outputs, 3, padding=1),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(),
                ]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        network: Any = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels, 10))
        network = network.to(memory_format=memory_format)
        optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
        x = torch.randn(batch, 3, 32, 32).to(memory_format=memory_format)
        labels = torch.arange(batch) % 10

        def forward(network: Any = network, x: Any = x) -> None:
            network.eval()
            with torch.inference_mode():
                network(x)

        def train(
            network: Any = network, x: Any = x, labels: Any = labels, optimizer: Any = optimizer
        ) -> None:
            network.train()
            for _ in range(STEPS):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x), labels).backward()
                optimizer.step()

        calls[f"forward {name}"], calls[f"train {name}"] = forward, train
    return calls


def time_in_turn(
    calls: Mapping[str, Callable[[], Any]], rounds: int, warm_up: int = 1
) -> dict[str, list[float]]:
    """Time every call once per round, after rounds that warm up, in seconds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + warm_up):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if round_number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(others: list[list[float]], ours: list[float]) -> float:
    """Median over the rounds of the fastest other's time over ours."""
    fastest = min(others, key=statistics.median)
    return statistics.median(a / b for a, b in zip(fastest, ours, strict=True))


def main(config: Config) -> dict[str, Any]:
    """Measure, print, and return the last line."""
    width, batch = (0.25, min(config.batch, 32)) if config.quick else (1.0, config.batch)
    rounds = 3 if config.quick else config.rounds
    start = time.perf_counter()
    calls = {
        "forward ours": compile_forward("ours", width, batch),
        "forward xla": compile_forward("xla", width, batch),
        "train ours": compile_training("ours", width, batch),
    }
    few = min(batch, config.batch_over_xla)
    slow_calls = {
        "train ours, few": compile_training("ours", width, few),
        "train xla, few": compile_training("xla", width, few),
    }
    with_torch = config.torch and importlib.util.find_spec("torch") is not None
    if with_torch:
        calls.update(torch_calls(width, batch))
    compile_seconds = time.perf_counter() - start

    seconds = time_in_turn(calls, rounds)
    # All is compiled already, and one call of XLA's can take a minute.
    seconds.update(time_in_turn(slow_calls, 1, warm_up=0))
    for name, times in seconds.items():
        images = (few if name.endswith("few") else batch) * (STEPS if "train" in name else 1)
        print(f"{name:28s} {images / statistics.median(times):8.1f} images/s")
    print(f"Training against XLA's convolution at batch {few}, the rest at batch {batch}.")

    line: dict[str, Any] = {
        "forward_over_xla": median_ratio([seconds["forward xla"]], seconds["forward ours"]),
        "train_in_scan_over_xla": median_ratio(
            [seconds["train xla, few"]], seconds["train ours, few"]
        ),
    }
    if with_torch:
        for key, part in (("forward", "forward"), ("train_in_scan", "train")):
            others = [seconds[f"{part} torch"], seconds[f"{part} torch channels last"]]
            line[f"{key}_over_torch"] = median_ratio(others, seconds[f"{part} ours"])
    line = {name: round(value, 3) for name, value in line.items()}
    line |= {
        "batch": batch,
        "batch_over_xla": few,
        "width": width,
        "compile_seconds": round(compile_seconds, 1),
        "hardware": describe_device(),
    }
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

"""Train a network of others in a scan, rebound and as it is.

Command:  python benchmarks/bench_rebinding.py [--quick]

The network has Flax's own `nn.Conv`, `nn.BatchNorm` and shortcuts, for 28x28 grey images; the same
training step with AdamW runs

- rebound, inside `lax.scan`: ``rebind_convolutions(network.apply)``;
- as it is, inside `lax.scan`, where XLA's gradients of convolutions are slow on CPUs;
- as it is, one compiled step at a time in a Python loop, where they are not;
- rebound, in a Python loop.

All are timed in turn in one run, the forward pass too, and the medians of the ratios are printed.
The same is done for such a network with channels first, the layout of Equinox. Last comes JSON;
more than 1 means that rebinding is faster:

- ``scan_over_rebound_scan``: time of a step of the scan as it is, over that of the rebound scan;
- ``python_loop_over_rebound_scan``: of a step in the Python loop, over that of the rebound scan;
- ``python_loop_over_rebound_python_loop``, ``forward_over_rebound_forward``: likewise;
- ``channels_first_...``: the same with channels first.

Measured on 2 cores of an AMD EPYC that others kept busy (load 7), JAX 0.10.2, batch 128, three
minutes (2026-11-28): the scan takes 14.5 times as long as the rebound one (2199 and 159 ms a step),
13.9 times with channels first; the Python loop of XLA's convolution 0.76 and 0.70 of the rebound
scan's time, and half of a rebound Python loop's: rebind what runs inside a loop. Forward 1.5 and
1.9. By processor time, which a busy machine disturbs less: 10 and 12 (779 over 77 ms, 930 over 76);
Python loop over rebound scan 0.66 and 0.62.
"""

import dataclasses
import json
import statistics
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from jax import lax

from rlprune_jax.devices import describe_device
from rlprune_jax.models.convolution import rebind_convolutions
from rlprune_jax.types import Apply, PyTree, Variables


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of the benchmark."""

    quick: bool = False
    """Small batches and three rounds: under a minute."""
    batch: int = 128
    """Images of a batch."""
    steps: int = 5
    """Training steps of one scan."""
    rounds: int = 5
    """Times everything is measured."""


class ChannelsFirst(nn.Module):
    """A convolution in the layout of Equinox and PyTorch: NCHW and OIHW."""

    features: int
    size: int
    stride: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Convolve f32[B,C,H,W] to f32[B,features,H/stride,W/stride]."""
        shape = (self.features, x.shape[1], self.size, self.size)
        kernel = self.param("kernel", nn.initializers.he_normal(in_axis=1, out_axis=0), shape)
        return lax.conv(x, kernel, (self.stride, self.stride), "SAME")


class Outsider(nn.Module):
    """Residual blocks of layers that know nothing of our convolution."""

    channels_first: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, training: bool = False) -> jax.Array:
        """Return logits f32[B,10] of images f32[B,28,28,1], or f32[B,1,28,28]."""

        def conv(width: int, size: int, stride: int, x: jax.Array) -> jax.Array:
            if self.channels_first:
                x = ChannelsFirst(width, size, stride)(x)
            else:
                x = nn.Conv(width, (size, size), stride, use_bias=False)(x)
            axis = 1 if self.channels_first else -1
            return nn.BatchNorm(use_running_average=not training, momentum=0.9, axis=axis)(x)

        x = nn.relu(conv(16, 3, 2, x))
        for width, stride in ((16, 1), (32, 2), (64, 2)):
            y = nn.relu(conv(width, 3, stride, x))
            y = conv(width, 3, 1, y)
            x = nn.relu(y + (x if stride == 1 else conv(width, 1, stride, x)))
        return nn.Dense(10)(x.mean((2, 3) if self.channels_first else (1, 2)))


class Carry(NamedTuple):
    """What a training step hands on."""

    variables: Variables
    optimizer: PyTree


def compile_calls(
    network: Outsider, batch: int, steps: int
) -> dict[str, tuple[int, Callable[[], PyTree]]]:
    """Compile all programs; each comes with how many steps a call takes."""
    generator = np.random.default_rng(0)
    size = (batch, 1, 28, 28) if network.channels_first else (batch, 28, 28, 1)
    images = jnp.asarray(generator.normal(size=size), jnp.float32)
    labels = jnp.arange(batch) % 10
    variables = network.init(jax.random.key(0), images[:1])
    optimizer = optax.adamw(1e-3)
    carry = Carry(variables=variables, optimizer=optimizer.init(variables["params"]))

    def make_step(apply: Apply) -> Callable[[Carry], Carry]:
        def loss(params: PyTree, variables: Variables) -> tuple[jax.Array, PyTree]:
            logits, updates = apply(
                {**variables, "params": params}, images, training=True, mutable=["batch_stats"]
            )
            entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return entropy.mean(), updates

        def step(carry: Carry) -> Carry:
            params = carry.variables["params"]
            gradients, updates = jax.grad(loss, has_aux=True)(params, carry.variables)
            changes, state = optimizer.update(gradients, carry.optimizer, params)
            variables = {**updates, "params": optax.apply_updates(params, changes)}
            return Carry(variables=variables, optimizer=state)

        return step

    calls: dict[str, tuple[int, Callable[[], PyTree]]] = {}

    def add(name: str, count: int, function: Callable[..., PyTree], *args: PyTree) -> None:
        start = time.perf_counter()
        compiled = jax.jit(function).lower(*args).compile()
        print(f"{name:22s} traced and compiled in {time.perf_counter() - start:5.1f} s", flush=True)
        calls[name] = (count, lambda: jax.block_until_ready(compiled(*args)))

    for prefix, apply in (("", network.apply), ("rebound ", rebind_convolutions(network.apply))):
        step = make_step(apply)
        add(f"{prefix}forward", 1, apply, variables, images)
        add(f"{prefix}python loop", 1, step, carry)
        scan = lambda carry, step=step: lax.scan(  # noqa: E731
            lambda carry, _: (step(carry), None), carry, None, length=steps
        )[0]
        add(f"{prefix}scan", steps, scan, carry)
    return calls


def time_in_turn(
    calls: Mapping[str, tuple[int, Callable[[], PyTree]]], rounds: int
) -> dict[str, list[float]]:
    """Time every call once per round after one that warms up, in seconds per step."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, (count, call) in calls.items():
            start = time.perf_counter()
            call()
            if round_number:
                seconds[name].append((time.perf_counter() - start) / count)
    return seconds


RATIOS = {
    "scan_over_rebound_scan": ("scan", "rebound scan"),
    "python_loop_over_rebound_scan": ("python loop", "rebound scan"),
    "python_loop_over_rebound_python_loop": ("python loop", "rebound python loop"),
    "forward_over_rebound_forward": ("forward", "rebound forward"),
}


def measure(config: Config, channels_first: bool) -> dict[str, float]:
    """Measure one network, print milliseconds, and return the medians of the ratios."""
    batch = min(config.batch, 32) if config.quick else config.batch
    rounds = 3 if config.quick else config.rounds
    print(f"channels {'first' if channels_first else 'last'}, batch {batch}:")
    calls = compile_calls(Outsider(channels_first), batch, config.steps)
    seconds = time_in_turn(calls, rounds)
    for name, times in seconds.items():
        print(f"{name:22s} {1000 * statistics.median(times):8.1f} ms a step", flush=True)
    prefix = "channels_first_" if channels_first else ""
    return {
        prefix + name: round(
            statistics.median(a / b for a, b in zip(seconds[over], seconds[under], strict=True)), 3
        )
        for name, (over, under) in RATIOS.items()
    }


def main(config: Config) -> dict[str, object]:
    """Measure, print, and return the last line."""
    line: dict[str, object] = {**measure(config, False), **measure(config, True)}
    line |= {"steps": config.steps, "hardware": describe_device()}
    print(json.dumps(line))
    return line


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))

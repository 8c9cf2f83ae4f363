"""N gates to N rewards in one call: candidates share the dense weights and differ in gates alone.

Under ``vmap`` over gates the weights are shared, so N candidates cost what N plain batches cost,
less what stands before the first gate. Weights finetuned per candidate are no longer shared and go
one after the other.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.graph.gating import gated
from rlprune_jax.graph.groups import Graph
from rlprune_jax.graph.program import trace_program
from rlprune_jax.training.classification import cross_entropy_and_hits
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.types import Apply, Gates, Variables

Finetune = Callable[[Variables, Gates, jax.Array], Variables]
"""``(variables, gates, key) -> variables`` of the masked network, trained a little further."""


CPU_CACHE = 4 * 2**20
"""Bytes of intermediate arrays that a core keeps close."""


class CandidateData(NamedTuple):
    """Images that candidates are judged on.

    Attributes:
        calibration: f32[B, ...], whose batch statistics replace the running ones.
        images: f32[B, ...], held out from training.
        labels: i32[B].
    """

    calibration: jax.Array
    images: jax.Array
    labels: jax.Array


class Judgement(NamedTuple):
    """Of N candidates ``loss`` f32[N], mean cross-entropy in nats, and ``accuracy`` f32[N]."""

    loss: jax.Array
    accuracy: jax.Array


def judge(
    apply: Apply,
    apply_train: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    data: CandidateData,
    *,
    recalibration: bool = True,
) -> Judgement:
    """Loss and accuracy of one masked network, batch-norm statistics recalibrated before.

    Without recalibration the statistics are those of the dense network and the result says little
    of what finetuning makes of the candidate.

    Args:
        apply: ``(variables, x) -> logits``, evaluation mode.
        apply_train: ``(variables, x) -> (logits, updates)``, train mode.
        graph: of the network.
        variables: dense.
        gates: group name -> f32[units].
        data: to calibrate and judge on.
        recalibration: whether statistics are recalibrated; a network without any skips it.

    Returns:
        The judgement, scalars.
    """
    if recalibration:
        masked_train = gated(apply_train, graph)
        variables = recalibrate(
            lambda variables, x: masked_train(variables, gates, x), variables, data.calibration
        )
    logits = gated(apply, graph)(variables, gates, data.images)
    losses, hits = cross_entropy_and_hits(logits, data.labels)
    return Judgement(losses.mean(), hits.astype(jnp.float32).mean())


def judge_candidates(
    apply: Apply,
    apply_train: Apply,
    graph: Graph,
    variables: Variables,
    gates: Gates,
    data: CandidateData,
    key: jax.Array,
    *,
    chunk: int | None = None,
    recalibration: bool = True,
    finetune: Finetune | None = None,
) -> Judgement:
    """Judge N candidates, vmapped in chunks; call it under ``jit``.

    Args:
        apply: ``(variables, x) -> logits``, evaluation mode.
        apply_train: ``(variables, x) -> (logits, updates)``, train mode.
        graph: of the network.
        variables: dense, shared by all candidates.
        gates: group name -> f32[N, units].
        data: to calibrate and judge on.
        key: for finetuning; unused without.
        chunk: how many are evaluated at once; by default as ``chunk_for_memory`` says.
        recalibration: whether batch-norm statistics are recalibrated.
        finetune: training of each candidate before it is judged, one after the other.

    Returns:
        The judgement, f32[N] each.

    Raises:
        ValueError: no candidates, or a chunk below 1.
    """
    count = jax.tree.leaves(gates)[0].shape[0]
    if count < 1:
        raise ValueError("gates hold no candidates; ask for at least one")
    if chunk is None:
        chunk = 1 if finetune else chunk_for_memory(apply, variables, data.images)
    if chunk < 1:
        raise ValueError(f"chunk={chunk} must be at least 1")

    def one(inputs: tuple[Gates, jax.Array]) -> Judgement:
        gates, key = inputs
        tuned = variables if finetune is None else finetune(variables, gates, key)
        return judge(apply, apply_train, graph, tuned, gates, data, recalibration=recalibration)

    keys = jax.random.split(key, count)
    if finetune is None and chunk >= count:
        return jax.vmap(one)((gates, keys))
    return jax.lax.map(one, (gates, keys), batch_size=None if finetune or chunk == 1 else chunk)


def chunk_for_memory(
    apply: Apply, variables: Variables, images: Any, memory: int | None = None
) -> int:
    """How many candidates to evaluate at once.

    A candidate is taken to hold three copies of the network's largest intermediate array. On an
    accelerator half of its memory is used, on a CPU what stays in a core's caches: one candidate of
    a convolutional network at a time is two to three times as fast as sixteen at once
    (``benchmarks/bench_candidates.py``), and only small networks gain from going together.

    Args:
        apply: ``(variables, x) -> logits``.
        variables: dense.
        images: the batch each candidate sees, or its ``jax.ShapeDtypeStruct``.
        memory: bytes to use.
    """
    program, _ = trace_program(apply, variables, images)
    outputs = [slot for equation in program.equations for slot in equation.outputs]
    largest = max(
        math.prod(program.avals[slot].shape) * program.avals[slot].dtype.itemsize
        for slot in outputs
    )
    return max(1, (memory or _usable_memory()) // (3 * largest))


def _usable_memory() -> int:
    device = jax.local_devices()[0]
    statistics = device.memory_stats() or {}
    if device.platform == "cpu" or "bytes_limit" not in statistics:
        return CPU_CACHE
    return statistics["bytes_limit"] // 2

"""N gates to N rewards in one call: candidates share the dense weights and differ in gates alone.

Under ``vmap`` over gates the weights are shared, so N candidates cost what N plain batches cost,
less what stands before the first gate. Weights finetuned per candidate are no longer shared and go
one after the other; so are repaired ones, but they need no gradient.
"""

import dataclasses
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from rlprune_jax.checks import require, require_count
from rlprune_jax.devices import is_out_of_memory
from rlprune_jax.graph.program import trace_program
from rlprune_jax.training.loops import init_train_state, make_train_step, train
from rlprune_jax.training.recalibration import recalibrate
from rlprune_jax.training.task import Batch, Evaluation, Objective, count_examples
from rlprune_jax.types import Apply, ApplyTrain, Gates, PyTree, Variables
from rlprune_jax.units.repair import (
    DenseReference,
    RepairMethod,
    dense_reference,
    repair_towards,
)
from rlprune_jax.workflow.config import Precision
from rlprune_jax.workflow.network import Definition
from rlprune_jax.workflow.precision import in_precision
from rlprune_jax.workflow.recipes import FinetuneRecipe

SHORT = FinetuneRecipe(batch_size=64)
"""How candidates are finetuned before a reward unless told."""

CPU_CACHE = 4 * 2**20
"""Bytes of intermediate arrays that a core keeps close."""

EXAMPLES_IN_FLIGHT = 8_000
"""Examples that an accelerator evaluates at once, of all candidates together.

Fewer leave it idle and more gain nothing, but compile for longer: on an H200 VGG16 ran at the same
rate with 4,000 images at once as with 36,000, and compiled in 2 s instead of 54.
"""


class CandidateData(NamedTuple):
    """Examples that candidates are evaluated on.

    Attributes:
        calibration: inputs of the network, whose batch statistics replace the running ones.
        batch: raw examples, held out from training.
        train: raw examples that candidates are finetuned on; None where they are not.
        reference: what candidates are repaired towards; None where they are not.
    """

    calibration: tuple[PyTree, ...]
    batch: Batch
    train: Batch | None = None
    reference: DenseReference | None = None


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Hold how candidates are evaluated.

    Static structure of jitted programs.

    Attributes:
        definition: of the network.
        objective: of the task.
        recalibration: whether running statistics are recalibrated; a network without any skips it,
            and so does a candidate whose weights are refitted, so that its activations are like the
            dense network's, and not finetuned. Without either the result says little of what
            finetuning makes of a candidate.
        chunk: how many candidates are evaluated at once; None as ``usual_chunk`` says.
        finetune_steps: steps that each candidate is trained before it is evaluated, which goes one
            after the other.
        recipe: of that training.
        repair: how candidates are repaired before that; None leaves them as they are.
        precision: of contractions, but in a repair.
    """

    definition: Definition
    objective: Objective
    recalibration: bool = True
    chunk: int | None = None
    finetune_steps: int = 0
    recipe: FinetuneRecipe = SHORT
    repair: RepairMethod | None = None
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        if self.chunk is not None:
            require_count("chunk", self.chunk)

    @property
    def recalibrates(self) -> bool:
        """Tell whether candidates get statistics of their own."""
        refits = self.repair is not None and self.repair.kind != "fold"
        fits_dense = refits and not self.finetune_steps
        return self.recalibration and not fits_dense and self.definition.apply_train is not None


def masked_training(definition: Definition, gates: Gates) -> ApplyTrain:
    """Return the masked network in training mode, for given gates."""

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        return definition.masked_train(variables, gates, *inputs, key=key)

    return apply_train


@partial(jax.jit, static_argnums=(0, 1))
def reference_of(
    definition: Definition, method: RepairMethod, variables: Variables, inputs: tuple[PyTree, ...]
) -> DenseReference:
    """Run the dense network for the repairs of candidates.

    Args:
        definition: of the network.
        method: how they are repaired.
        variables: dense.
        inputs: of the network, to repair on.

    Raises:
        ValueError: no inputs, or one without examples.
    """
    return dense_reference(method, definition.apply, definition.graph, variables, inputs)


def repair_candidate(
    evaluator: Evaluator, variables: Variables, gates: Gates, data: CandidateData
) -> Variables:
    """Repair one masked network, where the evaluator says how.

    Args:
        evaluator: how.
        variables: dense, of which the reference was made.
        gates: group name -> f32[units].
        data: with its reference.

    Raises:
        ValueError: there is no reference.
    """
    if evaluator.repair is None:
        return variables
    require(
        data.reference is not None,
        "reference",
        data.reference,
        "what reference_of gives; a repair needs the dense network's activations",
    )
    assert data.reference is not None
    apply, graph = evaluator.definition.apply, evaluator.definition.graph
    return repair_towards(evaluator.repair, apply, graph, variables, gates, data.reference)


def evaluate_candidate(
    evaluator: Evaluator, variables: Variables, gates: Gates, data: CandidateData
) -> Evaluation:
    """Evaluate one masked network.

    Its statistics are recalibrated before.

    Args:
        evaluator: how.
        variables: dense, or repaired or finetuned with the gates.
        gates: group name -> f32[units].
        data: to calibrate and evaluate on.

    Returns:
        Scalars.
    """
    definition = evaluator.definition
    if evaluator.recalibrates:
        masked = in_precision(masked_training(definition, gates), evaluator.precision)
        variables = recalibrate(masked, variables, *data.calibration)
    inputs = evaluator.objective.network_inputs(data.batch)
    masked_network = in_precision(definition.masked, evaluator.precision)
    outputs = masked_network(variables, gates, *inputs)
    found = evaluator.objective.evaluate(outputs, data.batch)
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), found)


def evaluate_candidates(
    evaluator: Evaluator, variables: Variables, gates: Gates, data: CandidateData, key: jax.Array
) -> Evaluation:
    """Return loss and metric of N candidates, vmapped in chunks.

    Each is repaired and finetuned before, as the evaluator says. Call it under ``jit``, with the
    evaluator static.

    Args:
        evaluator: how.
        variables: dense, shared by all candidates.
        gates: group name -> f32[N, units].
        data: to calibrate and evaluate on.
        key: for finetuning; unused without.

    Returns:
        f32[N] each.

    Raises:
        ValueError: no candidates.
    """
    count = jax.tree.leaves(gates)[0].shape[0]
    if count < 1:
        raise ValueError("gates hold no candidates; ask for at least one")
    chunk = evaluator.chunk
    if chunk is None:
        chunk = usual_chunk(evaluator, variables, data)

    def one(each: tuple[Gates, jax.Array]) -> Evaluation:
        gates, key = each
        repaired = repair_candidate(evaluator, variables, gates, data)
        tuned = short_finetune(evaluator, repaired, gates, data.train, key)
        return evaluate_candidate(evaluator, tuned, gates, data)

    keys = jax.random.split(key, count)
    if evaluator.finetune_steps or chunk == 1:
        return jax.lax.map(one, (gates, keys))
    if chunk >= count:
        return jax.vmap(one)((gates, keys))
    return jax.lax.map(one, (gates, keys), batch_size=chunk)


def short_finetune(
    evaluator: Evaluator, variables: Variables, gates: Gates, batch: Batch, key: jax.Array
) -> Variables:
    """Train a masked network for the evaluator's steps."""
    if not evaluator.finetune_steps:
        return variables
    optimizer = evaluator.recipe.optimizer(evaluator.finetune_steps)
    masked = in_precision(masked_training(evaluator.definition, gates), evaluator.precision)
    step = make_train_step(masked, optimizer, evaluator.objective)
    state, _ = train(
        step,
        init_train_state(variables, optimizer),
        batch,
        batch_size=min(evaluator.recipe.batch_size, count_examples(batch)),
        num_steps=evaluator.finetune_steps,
        key=key,
    )
    return state.variables


class Halving:
    """Evaluate candidates in smaller chunks once memory runs out.

    What was found small enough stays.

    Attributes:
        chunk: the most that are evaluated at once; None as long as memory lasts.
    """

    def __init__(self) -> None:
        """Start without a limit."""
        self.chunk: int | None = None

    def __call__(
        self,
        evaluate: Callable[[Evaluator], Evaluation],
        evaluator: Evaluator,
        at_once: Callable[[], int],
    ) -> Evaluation:
        """Return what the evaluation returns.

        Args:
            evaluate: under an evaluator, a jitted call.
            evaluator: how candidates are evaluated.
            at_once: how many of them without a limit.

        Raises:
            RuntimeError: memory does not suffice for one candidate.

        Warns:
            UserWarning: memory ran out, and how many candidates go together from now on.
        """
        while True:
            limited = evaluator
            if self.chunk is not None:
                limited = dataclasses.replace(evaluator, chunk=self.chunk)
            try:
                return jax.block_until_ready(evaluate(limited))
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                used = at_once() if self.chunk is None else self.chunk
                if used <= 1 or evaluator.finetune_steps:
                    raise RuntimeError(
                        "memory ran out with one candidate at a time; lower reward_images and "
                        "calibration_images"
                    ) from error
                self.chunk = used // 2
                warnings.warn(
                    f"memory ran out with {used} candidates at once; {self.chunk} go together "
                    f"from now on, which chunk={self.chunk} asks for from the start",
                    stacklevel=2,
                )


def usual_chunk(evaluator: Evaluator, variables: Variables, data: CandidateData) -> int:
    """Return how many candidates are evaluated at once unless told.

    As memory allows; on an accelerator no more than make ``EXAMPLES_IN_FLIGHT``.

    Args:
        evaluator: how.
        variables: dense.
        data: that each candidate sees.
    """
    inputs = evaluator.objective.network_inputs(data.batch)
    if evaluator.recalibrates and count_examples(data.calibration) > count_examples(inputs):
        inputs = data.calibration
    fitting = chunk_for_memory(evaluator.definition.apply, variables, inputs)
    if jax.default_backend() == "cpu":
        return fitting
    return max(1, min(fitting, EXAMPLES_IN_FLIGHT // count_examples(inputs)))


def chunk_for_memory(
    apply: Apply,
    variables: Variables,
    inputs: tuple[PyTree, ...],
    memory: int | None = None,
) -> int:
    """Return how many candidates memory holds at once.

    A candidate is taken to hold three copies of the network's largest intermediate array. On an
    accelerator half of its memory is used, on a CPU what stays in a core's caches: one candidate of
    a convolutional network at a time is two to three times as fast as sixteen at once
    (``benchmarks/bench_candidates.py``), and only small networks gain from going together.

    Args:
        apply: ``(variables, *inputs) -> outputs``.
        variables: dense.
        inputs: the batch each candidate sees, arrays or ``jax.ShapeDtypeStruct``.
        memory: bytes to use.
    """
    program, _ = trace_program(apply, variables, *inputs)
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

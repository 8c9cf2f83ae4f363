"""What a pruned network is to be compared with: dense trained on, and its widths from scratch.

Each is trained by the recipe of the last finetune, on the same data, and evaluated once on the test
data. Without them a table cannot tell what pruning gave from what training gave.
"""

from typing import NamedTuple

import jax

from rlprune_jax.graph.groups import ones_gates
from rlprune_jax.runs import MemoryRun, Run
from rlprune_jax.types import Gates, Variables
from rlprune_jax.workflow.delivery import Delivered, evaluate_masked
from rlprune_jax.workflow.keys import stage_key
from rlprune_jax.workflow.network import NetworkError, same_shapes
from rlprune_jax.workflow.pruning import Pruning
from rlprune_jax.workflow.tuning import Finetune, Tuner


class Control(NamedTuple):
    """Hold what a control came to.

    Attributes:
        metric: on the test data.
        loss: on the test data.
        steps: of training.
    """

    metric: float
    loss: float
    steps: int


def trained_on(
    pruning: Pruning,
    steps: int | None = None,
    *,
    finetune: Finetune | None = None,
    run: Run | None = None,
) -> Control:
    """Train the dense network on, as pruned ones are.

    Use it to see what a finetune gives to a network that lost nothing.

    Args:
        pruning: the problem.
        steps: of training; those of the last finetune where None.
        finetune: training of the user's own in place of ours.
        run: where checkpoints and metrics go; None keeps them in memory.

    Raises:
        DivergenceError: training diverged.
    """
    tuner = Tuner(pruning, "dense", finetune, MemoryRun() if run is None else run)
    total = steps or int(pruning.config.finetune_steps or 0)
    gates = ones_gates(pruning.graph)
    return _trained(tuner, f"trained_on{total}", gates, total, pruning.network.variables)


def from_scratch(
    delivered: Delivered,
    steps: int | None = None,
    *,
    fresh: Variables | None = None,
    finetune: Finetune | None = None,
    run: Run | None = None,
) -> Control:
    """Train the widths that were found from fresh weights.

    Use it to see whether the weights were worth keeping, or the widths alone.

    Args:
        delivered: whose widths.
        steps: of training; those of the last finetune where None.
        fresh: dense variables as initialised; drawn by the network where None.
        finetune: training of the user's own in place of ours.
        run: where checkpoints and metrics go; None keeps them in memory.

    Raises:
        NetworkError: the network does not know how to draw fresh variables.
        DivergenceError: training diverged.
    """
    pruning = delivered.pruning
    if fresh is None:
        fresh = fresh_variables(pruning)
    if fresh is None:
        raise NetworkError(
            "the network does not know how it is initialised, only one made by from_linen does; "
            "give fresh=variables as they were before any training"
        )
    tuner = Tuner(pruning, delivered.method, finetune, MemoryRun() if run is None else run)
    total = steps or int(pruning.config.finetune_steps or 0)
    return _trained(tuner, f"scratch{total}", delivered.gates, total, fresh)


def fresh_variables(pruning: Pruning) -> Variables | None:
    """Return fresh variables, other ones than training began from.

    None where it is unknown how.
    """
    network = pruning.network
    init = network.definition.init
    if init is None:
        return None
    found = jax.jit(init)(stage_key(pruning.config.seed, "scratch"))
    return found if same_shapes(found, network.variables) else None


def all_controls(
    delivered: Delivered, finetune: Finetune | None = None, run: Run | None = None
) -> dict[str, Control]:
    """Return every control of a delivered network by its name.

    They are ``trained_on``, and where the network can be initialised ``scratch`` with as many steps
    and ``scratch_twice`` with twice as many.

    Args:
        delivered: to compare with.
        finetune: training of the user's own in place of ours.
        run: where checkpoints and metrics go; None keeps them in memory.

    Raises:
        DivergenceError: training diverged.
    """
    pruning = delivered.pruning
    steps = int(pruning.config.finetune_steps or 0)
    found = {"trained_on": trained_on(pruning, finetune=finetune, run=run)}
    fresh = fresh_variables(pruning)
    if fresh is not None:
        for name, times in (("scratch", 1), ("scratch_twice", 2)):
            found[name] = from_scratch(
                delivered, times * steps, fresh=fresh, finetune=finetune, run=run
            )
    return found


def _trained(tuner: Tuner, stage: str, gates: Gates, steps: int, start: Variables) -> Control:
    """Train from a start as the last finetune does, and evaluate."""
    network, task = tuner.pruning.network, tuner.pruning.task
    tuned = tuner.control(stage, gates, steps, start)
    found = evaluate_masked(network, task.objective, tuned, gates, task.test)
    return Control(metric=float(found.metric), loss=float(found.loss), steps=steps)

"""Compare pruning by the PQ Index with its rivals, by the paper's recipe."""

import re

import jax
import jax.numpy as jnp

from rlprune_jax.runs import Run
from rlprune_jax.sparsity.masks import Prunable
from rlprune_jax.sparsity.pruners import Pruner, lottery_ticket, one_shot, random_pruning, sap
from rlprune_jax.training.augmentation import CropAndFlip
from rlprune_jax.training.task import Task
from rlprune_jax.workflow.curves import (
    Initialise,
    IterativeResult,
    count_training,
    paper_optimizer,
    prune_iteratively,
)
from rlprune_jax.workflow.iterative import Schedule
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.sap_config import SapConfig, check_batch, resolve_sap

PAPER_AUGMENTATION = {
    name: CropAndFlip(pad=4, flip=True, padding_mode="reflect") for name in ("cifar10", "cifar100")
}
"""Augmentation by data set, as in the paper: none for the others."""


def compare_pruners(
    network: Network,
    task: Task,
    config: SapConfig,
    run: Run | None = None,
    init: Initialise | None = None,
    prunable: Prunable | None = None,
) -> IterativeResult:
    """Run the pruners of a configuration on a network.

    Use it for the paper's comparison on a network and task of your own; ``prune_iteratively``
    leaves more open.

    Args:
        network: to prune.
        task: what it is to do.
        config: pruners, recipe and seeds.
        run: where checkpoints and metrics go; None keeps them in memory.
        init: as in ``IterativeOptions``.
        prunable: likewise.

    Raises:
        TaskError: as ``prune_iteratively``.
        ValueError: a setting that cannot be, or more examples wanted than there are.
    """
    config = resolve_sap(config)
    assert config.epochs is not None
    examples = count_training(task, config.train_images)
    check_batch(config.batch_size, examples)
    per_epoch = examples // config.batch_size
    return prune_iteratively(
        network,
        task,
        sap_pruners(config),
        Schedule(
            batch_size=config.batch_size,
            num_steps=config.epochs * per_epoch,
            rewind_step=config.rewind_epoch * per_epoch,
            batch_statistics=config.batch_statistics,
        ),
        run,
        iterations=config.iterations,
        seeds=range(config.seed, config.seed + config.seeds),
        optimizer=paper_optimizer(config.epochs * per_epoch, config.learning_rate, config.decayed),
        examples=config.train_images,
        init=init,
        prunable=prunable,
    )


def sap_pruners(config: SapConfig) -> dict[str, Pruner]:
    """Return the pruners of a configuration by name.

    Example:
        >>> list(sap_pruners(SapConfig(p=(0.5,), q=(1.0,))))
        ['SAP (0.5, 1)', 'lottery ticket', 'one-shot']
    """
    rate, scope = config.rate, config.scope
    found: dict[str, Pruner] = {}
    for method in config.method:
        if method == "sap":
            for p, q in zip(config.p, config.q, strict=True):
                name = f"SAP ({p:g}, {q:g})"
                found[name] = sap(p, q, config.eta_r, config.gamma, config.beta, scope)
        elif method == "lottery_ticket":
            found["lottery ticket"] = lottery_ticket(rate, scope)
        elif method == "one_shot":
            found["one-shot"] = one_shot(rate, scope)
        else:
            # One mask for all seeds; weights and batches differ.
            found["random"] = random_pruning(rate, scope, key=jax.random.key(config.seed))
    return found


class NotIgnored:
    """Choose the usual parameters but for some.

    Args:
        ignore: regular expressions of paths that are left alone.
    """

    def __init__(self, ignore: tuple[str, ...]) -> None:
        self.ignore = ignore

    def __call__(self, path: str, leaf: jax.Array) -> bool:
        """Return whether a parameter is pruned."""
        usual = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.ndim > 1
        return usual and not any(re.search(expression, path) for expression in self.ignore)

    def __repr__(self) -> str:
        return f"all kernels but ignore={self.ignore}"


def prunable_of(ignore: tuple[str, ...]) -> NotIgnored | None:
    """Return the choice of parameters, None for the usual one."""
    return NotIgnored(ignore) if ignore else None

"""Tell what is done otherwise than the settings say."""

import jax

from rlprune_jax.training.task import Task
from rlprune_jax.units.repair import repair_reach
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.searches import ARCHIVE_SIZE


def notes(config: PruneConfig, task: Task, network: Network | None = None) -> dict[str, str]:
    """Return which settings are cut to what there is.

    Use it to tell a user before anything is trained.

    Args:
        config: as given.
        task: whose examples count.
        network: whose weights a repair may reach; None leaves that out.

    Returns:
        A sentence by the setting's name.

    Example:
        >>> import numpy as np
        >>> from rlprune_jax import regression
        >>> x = np.ones((4, 1), np.float32)
        >>> task = regression((x, x), (x, x), (x, x))
        >>> config = PruneConfig(evaluations=12, candidates=4, rerank=99, reward_images=4)
        >>> notes(config, task)["rerank"]
        'rerank=99: a search evaluates 12 candidates, and all that differ are re-ranked'
    """
    found = {}
    evaluations, candidates = config.evaluations, config.candidates
    done = evaluations // candidates * candidates
    if done != evaluations:
        found["evaluations"] = (
            f"evaluations={evaluations} is no multiple of candidates={candidates}; {done} are done"
        )
    if config.rerank > done:
        found["rerank"] = (
            f"rerank={config.rerank}: a search evaluates {done} candidates, and all that differ "
            "are re-ranked"
        )
    elif config.rerank > 2 * ARCHIVE_SIZE:
        found["rerank"] = (
            f"rerank={config.rerank}: a search keeps {ARCHIVE_SIZE} candidates within the budgets "
            f"and {ARCHIVE_SIZE} others, and all that differ are re-ranked"
        )
    if config.chunk is not None and config.chunk > candidates:
        found["chunk"] = (
            f"chunk={config.chunk}: an iteration has {candidates} candidates, and all are "
            "evaluated at once"
        )
    if config.chunk is not None and any(config.reward_finetune):
        found["chunk"] = (
            f"chunk={config.chunk}: candidates that are finetuned go one after the other"
        )
    if config.precision != "float32" and jax.default_backend() == "cpu":
        found["precision"] = (
            f"precision={config.precision}: CPUs emulate it and are slower than in float32"
        )
    for name, split in (
        ("reward_images", "held_out"),
        ("calibration_images", "train"),
        ("repair_images", "train"),
        ("batch_size", "train"),
    ):
        size, value = task.size(split), getattr(config, name)
        if size is not None and value is not None and value > size:
            found[name] = f"{name}={value}: there are {size} examples, and all are taken"
    return found | ({} if network is None else repair_notes(config, network))


def repair_notes(config: PruneConfig, network: Network) -> dict[str, str]:
    """Return what a repair leaves as it is.

    Args:
        config: as given.
        network: whose weights are to be refitted.

    Returns:
        A sentence by the setting's name.
    """
    asked = {"repair_reward": config.repair_reward != "none", "repair": bool(config.repair)}
    if not any(asked.values()):
        return {}
    reach = repair_reach(network.apply, network.graph, network.variables, network.example)
    if not reach.skipped and reach.refitted:
        return {}
    why = ", ".join(f"{reason} ({count})" for reason, count in reach.skipped.items())
    left = sum(reach.skipped.values())
    text = f"{left} of {left + reach.refitted} contractions stay as they are: {why}"
    if not left:
        text = "no contraction stands behind a gate; nothing is refitted"
    return {
        name: f"{name}={getattr(config, name)}: {text}"
        for name, is_asked in asked.items()
        if is_asked
    }

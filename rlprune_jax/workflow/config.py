"""Settings of a pruning run. Nothing here imports JAX, so a command line can read it at once."""

import dataclasses
import re
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Union, get_args, get_origin

import tyro

from rlprune_jax.checks import require, require_count, require_range
from rlprune_jax.costs.options import KV_LAYERS
from rlprune_jax.per_group import read_overrides

Granularity = Literal["fine", "coarse"]
ConstraintHandling = Literal["projection", "multiplier", "both"]
DualRule = Literal["pid", "projected_gradient", "adam_clip", "softplus_adam"]
Rule = Literal["sgd", "adam"]
UnitScore = Literal["taylor", "magnitude", "random"]
RewardName = Literal["metric", "accuracy", "loss"]
MethodName = Literal[
    "uniform",
    "global_threshold",
    "structured_sap",
    "random_search",
    "cross_entropy",
    "random_search_coarse",
    "cross_entropy_coarse",
    "agent_sparsity_informed",
]

Lines = tyro.conf.UseAppendAction[tuple[str, ...]]
"""An option that may be given any number of times."""

AGENT = "agent"
"""The method that every run has."""

FINETUNE_RATES = {"sgd": 0.1, "adam": 3e-3}
"""Peak learning rate of a finetune unless told, by its rule (``benchmarks/choose_finetune.py``)."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a network is searched for."""

    granularity: Granularity = "fine"
    """coarse: a keep ratio per group of units; fine: every unit by itself."""
    constraint: ConstraintHandling | None = None
    """multiplier: Lagrangian; projection: every candidate is put on the budgets; both. By default
    projection; with latency or a function among the budgets, whose place in the projection is
    taken by an estimate, both."""
    dual: DualRule = "pid"
    """Update of the multipliers."""
    evaluations: int = 768
    """Candidates that the agent, and each baseline, may evaluate."""
    candidates: int = 16
    """Candidates an iteration."""
    baselines: tuple[MethodName, ...] = (
        "uniform",
        "global_threshold",
        "random_search",
        "cross_entropy",
    )
    """What to run beside the agent."""
    score: UnitScore = "taylor"
    """What ranks the units of a group."""
    sparsity_informed: bool = False
    """Show the agent each group's PQ Index and the fraction of units that it says are enough, and
    start from these fractions."""
    reward: RewardName = "metric"
    """What candidates are rewarded with on held-out data after batch-norm recalibration: the task's
    metric (accuracy, of a classification), or its loss with the sign turned."""
    reward_images: int = 512
    """Held-out examples a candidate is rewarded on."""
    calibration_images: int | None = None
    """Training examples for its batch-norm statistics; as many as reward_images unless told."""
    reward_finetune: tuple[int, ...] = (0,)
    """Finetuning steps before each reward: a staircase, one entry per equal part of the search."""
    chunk: int | None = None
    """Candidates evaluated at once; by default as memory allows."""


@dataclasses.dataclass(frozen=True)
class UnitConfig:
    """Which numbers of units are allowed."""

    min_keep: int = 2
    """Units that every group keeps, all of a smaller one."""
    round_to: int = 1
    """Keep a multiple of so many units of every group, or all of it: 8 suits vector units. Holds
    for every candidate of the search and for what is delivered."""
    min_keep_of: Lines = ()
    """REGEX=N, any number of times: another min_keep for groups whose names it is found in."""
    round_to_of: Lines = ()
    """REGEX=N, any number of times: another round_to for groups whose names it is found in."""


@dataclasses.dataclass(frozen=True)
class DeliveryConfig:
    """How what was found is finetuned."""

    rerank: int = 3
    """Candidates of each method that get the short finetune."""
    rerank_steps: int | None = None
    """Steps of the short finetune; 100 unless told."""
    finetune_steps: int | None = None
    """Steps of the last finetune; 1000 unless told."""
    finetune_rule: Rule | None = None
    """How it is trained, after a warm-up, along a cosine and with the gradient's norm clipped at 1:
    sgd with momentum, or adam. By default as the dense network is, where that is known; else sgd of
    a network with running statistics and adam of one without."""
    finetune_rate: float | None = None
    """Its peak learning rate; 0.1 of sgd and 0.003 of adam unless told."""
    controls: bool = False
    """Beside the methods: the dense network trained on for as many steps, and the widths that were
    found trained from fresh weights for as many steps and for twice as many."""
    batch_size: int = 128
    """Examples a step, in training and finetuning; at most 64 in the finetune before a reward."""


@dataclasses.dataclass(frozen=True)
class MeasureConfig:
    """How costs are measured."""

    tile: tuple[int, int] = (8, 8)
    """Multiples that tiled_macs rounds a layer's input and output channels up to."""
    kv_layers: str = KV_LAYERS
    """Of kv_cache_bytes: regular expression of the layers that make keys and values, searched for
    in their paths; unless told those called k, key, v, value or kv, also with _proj behind."""
    latency_batch: int = 128
    """Examples a call, in budgets on latency."""
    latency_steps: int = 4
    """Steps of a group's width in timing candidates, rounded up: with 2 none is timed narrower than
    half of dense, so a low limit needs more. What is delivered is timed as it is."""
    latency_programs: int = 64
    """Networks that timing candidates may compile; then the nearest one timed answers."""
    cost_seconds: float = 60.0
    """Time limit of one candidate's latency or function."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where randomness and checkpoints come from."""

    seed: int = 0
    """Of data split, initialisation, training and search."""
    save_seconds: float = 20.0
    """A kill loses at most so many seconds, and the step under way."""


@dataclasses.dataclass(frozen=True)
class PruneConfig(SearchConfig, UnitConfig, DeliveryConfig, MeasureConfig, RunConfig):
    """Hold the settings of a pruning run.

    Network, task and budgets come beside them.

    Example:
        >>> resolve(PruneConfig(evaluations=64)).finetune_steps
        1000
    """


def resolve(config: PruneConfig, measured: bool = False) -> PruneConfig:
    """Fill in defaults that depend on others.

    What cannot be run is refused.

    Args:
        config: as given.
        measured: whether a cost is among the budgets that only the host knows.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(config)
    filled: dict[str, object] = {}
    for name, value in (
        ("rerank_steps", 100),
        ("finetune_steps", 1000),
        ("calibration_images", config.reward_images),
    ):
        if getattr(config, name) is None:
            filled[name] = value
    if config.finetune_rate is None and config.finetune_rule is not None:
        filled["finetune_rate"] = FINETUNE_RATES[config.finetune_rule]
    if config.constraint is None:
        filled["constraint"] = "both" if measured else "projection"
    config = dataclasses.replace(config, **filled)  # type: ignore[arg-type]
    check_numbers(config)
    for name in ("min_keep_of", "round_to_of"):
        read_overrides(name, getattr(config, name))
    layers: object = config.kv_layers
    require(isinstance(layers, str), "kv_layers", layers, "a regular expression")
    try:
        re.compile(config.kv_layers)
    except re.error as error:
        raise ValueError(f"kv_layers={layers!r} is no regular expression: {error}") from None
    return config


COUNTS = (
    *("evaluations", "candidates", "reward_images", "calibration_images"),
    *("min_keep", "round_to", "rerank", "rerank_steps", "finetune_steps", "batch_size"),
    *("latency_batch", "latency_steps", "latency_programs"),
)
"""Settings that are numbers of something, at least one."""

TUPLES = ("baselines", "reward_finetune", "min_keep_of", "round_to_of", "tile")
"""Settings that hold several values."""


def check_numbers(config: PruneConfig) -> None:
    """Refuse numbers that are out of their range.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for name in COUNTS:
        require_count(name, getattr(config, name), 2 if name == "candidates" else 1)
    if config.chunk is not None:
        require_count("chunk", config.chunk)
    require(len(config.tile) == 2, "tile", config.tile, "two integers of at least 1")
    for width in config.tile:
        require_count("tile", width)
    for name in ("cost_seconds", "finetune_rate"):
        if name == "finetune_rate" and config.finetune_rate is None:
            continue
        value = require_range(name, getattr(config, name))
        require(value > 0, name, value, "above 0")
    require_range("save_seconds", config.save_seconds, 0.0)
    require(
        require_count("seed", config.seed, 0) < 2**32, "seed", config.seed, "from 0 to 4294967295"
    )
    require(
        config.candidates <= config.evaluations,
        "candidates",
        config.candidates,
        f"at most evaluations={config.evaluations}, for one iteration evaluates so many",
    )
    require(
        bool(config.reward_finetune),
        "reward_finetune",
        config.reward_finetune,
        "at least one number of steps; (0,) rewards without finetuning",
    )
    for steps in config.reward_finetune:
        require_count("reward_finetune", steps, 0)


def check_choices(config: object) -> None:
    """Refuse values that a field's type does not name.

    Fields are typed ``Literal`` or ``tuple``. The names of methods are left to ``METHODS``, which a
    user may add to.

    Raises:
        ValueError: naming the option, its value and the choices.
    """
    for field in dataclasses.fields(config):  # type: ignore[arg-type]
        value = getattr(config, field.name)
        if field.name in TUPLES:
            require(isinstance(value, tuple), field.name, value, "a tuple")
        choices = _choices(field.type)
        if any(isinstance(choice, str) for choice in choices):
            known = ", ".join(str(choice) for choice in choices if choice is not None)
            require(value in choices, field.name, value, f"one of {known}")
        if field.type is bool:
            require(isinstance(value, bool), field.name, value, "True or False")


def check_methods(baselines: Sequence[str], known: Collection[str]) -> None:
    """Refuse rivals that are unknown or named twice.

    Args:
        baselines: names of the rivals.
        known: names of all methods.

    Raises:
        ValueError: naming the method.
    """
    for name in baselines:
        require(name in known, "baselines", name, f"among {', '.join(known)}")
    repeated = [name for name in (AGENT, *baselines) if (AGENT, *baselines).count(name) > 1]
    require(
        not repeated, "baselines", tuple(baselines), "each method once; the agent runs in any case"
    )


def _choices(kind: object) -> tuple[object, ...]:
    """What a type allows, where it is a ``Literal``, or one with None beside."""
    if get_origin(kind) is Literal:
        return get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        return tuple(
            choice
            for part in get_args(kind)
            for choice in ((None,) if part is type(None) else _choices(part))
        )
    return ()


def overrides(config: PruneConfig, option: str) -> Mapping[str, int] | int:
    """Return ``min_keep`` or ``round_to`` with its overrides.

    It is as the graph's functions take it. One number where there are no overrides, else regular
    expressions in order, the last match counting.
    """
    base = int(getattr(config, option))
    given = getattr(config, f"{option}_of")
    if not given:
        return base
    return {".*": base, **read_overrides(f"{option}_of", given)}

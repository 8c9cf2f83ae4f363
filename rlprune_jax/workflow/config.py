"""Settings of a pruning run. Nothing here imports JAX, so a command line can read it at once."""

import dataclasses
import re
import types
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, Union, get_args, get_origin

import tyro

from rlprune_jax.checks import require, require_count, require_extra, require_range, require_seed
from rlprune_jax.costs.options import KV_LAYERS
from rlprune_jax.per_group import read_overrides

Granularity = Literal["fine", "coarse"]
ConstraintHandling = Literal["projection", "multiplier", "both"]
PolicyKind = Literal["table", "network"]
DualRule = Literal["pid", "projected_gradient", "adam_clip", "softplus_adam"]
Rule = Literal["sgd", "adam"]
Precision = Literal["float32", "bfloat16"]
PRECISIONS = get_args(Precision)
UnitScore = Literal[
    "taylor",
    "fisher",
    "magnitude",
    "magnitude_l1",
    "lamp",
    "geometric_median",
    "norm_scale",
    "activation",
    "activation_variance",
    "random",
]
ScoreReduction = Literal["usual", "sum", "mean", "max", "first"]
ScoreNormaliser = Literal["usual", "none", "mean", "max", "sum", "standard", "lamp", "cost"]
ScoreScope = Literal["network", "isomorphic"]
RewardName = Literal["metric", "accuracy", "loss"]
RewardRepair = Literal["none", "fold", "merge", "ridge"]
MethodName = Literal[
    "uniform",
    "global_threshold",
    "structured_sap",
    "random_search",
    "cross_entropy",
    "global_magnitude",
    "uniform_magnitude",
    "network_slimming",
    "isomorphic_magnitude",
    "isomorphic_fisher",
    "iterative_fisher",
    "random_search_coarse",
    "cross_entropy_coarse",
    "agent_sparsity_informed",
    "fastnas",
    "dynamic_programming",
    "spdy",
    "evopress",
    "knapsack",
    "cma_es",
]

Lines = tyro.conf.UseAppendAction[tuple[str, ...]]
"""An option that may be given any number of times."""

LIBRARIES = {"cma_es": "cmaes"}
"""What methods need beside this package, all of the extra ``rivals``."""

PLANNED = ("fastnas", "dynamic_programming", "cma_es")
"""Methods that plan all of their evaluations at once, so that more of them are another search."""

AGENT = "agent"
"""The method that every run has."""

FINETUNE_RATES = {"sgd": 0.1, "adam": 3e-3}
"""Peak learning rate of a finetune unless told, by its rule (``benchmarks/choose_finetune.py``)."""


@dataclasses.dataclass(frozen=True)
class SearchConfig:
    """How a network is searched for."""

    granularity: Granularity = "fine"
    """coarse: a keep ratio per group of units; fine: every unit by itself."""
    constraint: ConstraintHandling = "both"
    """How the agent meets budgets. both: every candidate is put on the budgets, and a Lagrange
    multiplier per budget holds what is sampled near them. projection: the same without multipliers.
    multiplier: candidates are evaluated as sampled, and multipliers alone learn to meet the
    budgets. Latency or a function of yours is put on its budget by an estimate."""
    policy: PolicyKind = "table"
    """table: a learned number per group and unit, which reads no state; network: one of what is
    observed beside them."""
    dual: DualRule = "pid"
    """Update of the multipliers; nothing with constraint projection."""
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
    start: MethodName | None = None
    """Method that searches first, with a part of the agent's evaluations; the agent starts from the
    best that it finds."""
    start_evaluations: int | None = None
    """Evaluations of that method, out of the agent's; a quarter of them unless told, and no more
    than the method needs."""
    score: UnitScore = "taylor"
    """What ranks the units of a group. taylor: squared mean derivative of the loss by a unit's
    gate; fisher: squared derivative of each example's loss, averaged; magnitude, magnitude_l1: norm
    of the weights; lamp: squared norm over those no smaller; geometric_median: distance from the
    other units; norm_scale: scale of batch norm; activation, activation_variance: of what the next
    layer reads; random."""
    score_reduction: ScoreReduction = "usual"
    """How scores of coupled layers (a residual stream) become one, of scores of weights and
    activations; first is that of the first layer. Usual are sum, and mean of activations."""
    score_normaliser: ScoreNormaliser = "usual"
    """What scores are divided by before groups are compared: mean, max, sum, deviation (standard)
    or those no smaller (lamp) of the group, or by what a unit costs in the budgets (cost). Usual
    are mean of scores of weights and activations, none of the others."""
    score_scope: ScoreScope = "network"
    """isomorphic: only groups of one kind are compared with one another, and each kind keeps the
    same fraction under one threshold."""
    sparsity_informed: bool = False
    """Show the agent, whose policy is then a network, each group's PQ Index and the fraction of
    units that it says are enough, and start from these fractions."""
    reward: RewardName = "metric"
    """What candidates are rewarded with on held-out data after batch-norm recalibration: the task's
    metric (accuracy, of a classification), or its loss with the sign turned."""
    reward_retention: float | None = None
    """How much retention counts beside that: of each group's activations in the dense network, the
    fraction of the variance that the kept units span, averaged near the narrowest group. What
    training makes of a mask goes with it far more than with what the mask gives before. The reward
    is the mean of both with weights 1 and this. By default 3 where the reward is an accuracy and
    what is found is finetuned, else 0."""
    reward_images: int = 512
    """Held-out examples a candidate is rewarded on."""
    calibration_images: int | None = None
    """Training examples for its batch-norm statistics; as many as reward_images unless told."""
    reward_finetune: tuple[int, ...] = (0,)
    """Finetuning steps before each reward, by the rule and rate of the last finetune: a staircase,
    one entry per equal part of the search.
    Where it rises, the best that was found is evaluated anew, beside the evaluations asked for:
    rewards after different numbers of steps are never compared."""
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
class RepairConfig:
    """How what remains is refitted to the dense network's activations."""

    repair_reward: RewardRepair = "none"
    """Before each reward. merge: kept channels stand for those that are gone, by least squares;
    ridge: all weights are refitted, which costs more; both in place of recalibration. fold: biases
    alone, of use without batch norm. Weights that are tied, computed or read in a loop stay as they
    are."""
    repair: bool | None = None
    """Refit the weights of what is delivered by least squares, before it is finetuned. By default
    where nothing is finetuned."""
    repair_images: int = 256
    """Training examples, without labels, that it is refitted on."""


@dataclasses.dataclass(frozen=True)
class DeliveryConfig:
    """How what was found is finetuned."""

    rerank: int = 3
    """Candidates of each method that get the short finetune."""
    rerank_steps: int | None = None
    """Steps of the short finetune; 100 unless told, 0 where the last finetune has none."""
    finetune_steps: int | None = None
    """Steps of the last finetune; 1000 unless told. With 0 nothing is trained: the network is
    delivered as it is repaired, or without repair with recalibrated batch-norm statistics."""
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
    cost_answers: int = 5
    """Answers that are taken of a function for one candidate where two of them differ; their upper
    quartile has to be within the limit. A function whose answers agree is asked once a candidate,
    twice what is delivered."""
    cost_asks: int = 128
    """Networks that a function may be asked for to bring one candidate within the budgets."""
    latency_asks: int = 12
    """Networks that may be compiled and timed to bring one candidate within the budgets."""


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """Where randomness and checkpoints come from."""

    seed: int = 0
    """Of data split, initialisation, training and search."""
    precision: Precision = "float32"
    """Of convolutions and matrix products in training, finetuning and the evaluation of candidates;
    bfloat16 halves what accelerators read and write. Weights, statistics, loss and optimizer are
    float32 in any case, and so are the final metrics and the check that slim equals masked."""
    save_seconds: float = 20.0
    """A kill loses at most so many seconds, and the step under way."""


@dataclasses.dataclass(frozen=True)
class PruneConfig(SearchConfig, UnitConfig, RepairConfig, DeliveryConfig, MeasureConfig, RunConfig):
    """Hold the settings of a pruning run.

    Network, task and budgets come beside them.

    Example:
        >>> resolve(PruneConfig(evaluations=64)).finetune_steps
        1000
    """


def resolve(config: PruneConfig) -> PruneConfig:
    """Fill in defaults that depend on others.

    What cannot be run is refused.

    Args:
        config: as given.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(config)
    filled: dict[str, object] = {}
    for name, value in (
        ("rerank_steps", 0 if config.finetune_steps == 0 else 100),
        ("finetune_steps", 1000),
        ("calibration_images", config.reward_images),
        ("repair", config.finetune_steps == 0),
    ):
        if getattr(config, name) is None:
            filled[name] = value
    if config.finetune_rate is None and config.finetune_rule is not None:
        filled["finetune_rate"] = FINETUNE_RATES[config.finetune_rule]
    config = dataclasses.replace(config, **filled)  # type: ignore[arg-type]
    require(
        config.dual == "pid" or config.constraint != "projection",
        "dual",
        config.dual,
        "left out with constraint='projection', which learns no multiplier; choose "
        "constraint='multiplier' or 'both'",
    )
    check_numbers(config)
    check_start(config)
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
    *("min_keep", "round_to", "repair_images", "rerank", "batch_size"),
    *("latency_batch", "latency_steps", "latency_programs", "latency_asks"),
    *("cost_answers", "cost_asks"),
)
"""Settings that are numbers of something, at least one."""

STEPS = ("rerank_steps", "finetune_steps")
"""Settings that are numbers of steps, which may be none."""

TUPLES = ("baselines", "reward_finetune", "min_keep_of", "round_to_of", "tile")
"""Settings that hold several values."""


def check_numbers(config: PruneConfig) -> None:
    """Refuse numbers that are out of their range.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    for name in COUNTS:
        least = 2 if name in ("candidates", "cost_answers") else 1
        require_count(name, getattr(config, name), least)
    for name in STEPS:
        require_count(name, getattr(config, name), 0)
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
    if config.reward_retention is not None:
        require_range("reward_retention", config.reward_retention, 0.0)
    require_seed("seed", config.seed)
    for method in config.baselines:
        given: object = method
        require(isinstance(given, str), "baselines", given, "the name of a method")
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


def extendable_searches(config: SearchConfig) -> list[str]:
    """Return methods whose search goes on with more evaluations.

    The others begin anew: those that plan ahead, and an agent that another method starts.

    Example:
        >>> extendable_searches(SearchConfig(baselines=("spdy", "fastnas")))
        ['agent', 'spdy']
    """
    methods = [AGENT, *config.baselines] if config.start is None else config.baselines
    return [method for method in methods if method not in PLANNED]


def check_start(config: PruneConfig) -> None:
    """Refuse a start of the agent that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    if config.start is None:
        require(
            config.start_evaluations is None,
            "start_evaluations",
            config.start_evaluations,
            "left out where start names no method",
        )
        return
    check_libraries((config.start,))
    least, most = config.candidates, config.evaluations - config.candidates
    require(
        most >= least,
        "start",
        config.start,
        f"left out with evaluations={config.evaluations}; it and the agent need "
        f"candidates={config.candidates} each",
    )
    if config.start_evaluations is not None:
        number = require_count("start_evaluations", config.start_evaluations)
        require(
            least <= number <= most,
            "start_evaluations",
            number,
            f"from {least} to {most}; it and the agent need candidates={config.candidates} each",
        )
    require(
        len(set(config.reward_finetune)) == 1,
        "start",
        config.start,
        f"left out with reward_finetune={config.reward_finetune}; rewards after different numbers "
        "of steps do not compare",
    )


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
        if field.type is bool or (field.type == bool | None and value is not None):
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
    check_libraries(baselines)
    repeated = [name for name in (AGENT, *baselines) if (AGENT, *baselines).count(name) > 1]
    require(
        not repeated, "baselines", tuple(baselines), "each method once; the agent runs in any case"
    )


def check_libraries(methods: Sequence[str]) -> None:
    """Refuse methods whose library is not installed.

    Raises:
        ValueError: naming the method, the library and the extra that brings it.
    """
    for name in methods:
        if name in LIBRARIES:
            require_extra(LIBRARIES[name], "rivals", f"method {name!r}")


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

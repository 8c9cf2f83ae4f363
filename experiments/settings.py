"""Settings of a pruning run: the options, their defaults by data set, and what is refused."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro

from rlprune_jax.costs import parse_budgets
from rlprune_jax.graph.groups import Graph
from rlprune_jax.per_group import per_group, read_overrides
from rlprune_jax.search import Config as AgentConfig
from rlprune_jax.search import Environment, Searcher, baselines, ppo_lagrangian
from rlprune_jax.search.environment import project_ratios
from rlprune_jax.types import Variables
from rlprune_jax.units.scores import UNIT_SCORES
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores

AGENT = "agent"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; all but the directories decide the run's name."""

    budget: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Limit as NAME=LIMIT, any number of times. Fractions of the dense network or counts:
    params=0.1, params=50k, macs=1.5M, tiled_macs (see --tile), weight_bytes=100kB,
    activation_memory=2MiB (peak, one image). In ms: latency_table=2.5 (predicted from a network's
    pieces, each timed once on this device) and latency=2.5 (the slim network itself, timed again
    and again). Of every cost a fraction of dense: latency=0.5x, latency=50%."""
    budget_fn: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Limit on any Python function of a candidate, as module:function=LIMIT in the function's own
    unit (or 0.5x of dense): function(widths, gates) -> number of at least 0, with widths the units
    kept per group by name and gates their f32[units] of 0 and 1; it may jump, but the smallest
    network must be within the limit. Modules of the working directory count. With the module's
    code the run changes its name; with what it imports it does not."""
    tile: tuple[int, int] = (8, 8)
    """Multiples that tiled_macs rounds a layer's input and output channels up to."""
    latency_batch: int = 128
    """Images a call, in budgets on latency."""
    latency_steps: int = 4
    """Steps of a group's width in timing candidates, rounded up: with 2 none is timed narrower than
    half of dense, so a low limit needs more. What is delivered is timed as it is."""
    latency_programs: int = 64
    """Networks that timing candidates may compile; then the nearest one timed answers."""
    cost_seconds: float = 60.0
    """Time limit of one candidate's latency or function."""
    dataset: str = "digits"
    """digits (embedded), mnist, fashion_mnist, cifar10, cifar100."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits needs none."""
    model: str = "cnn"
    """Any of the zoo: mlp, cnn, vgg16, resnet20, mobilenet ...; an unknown name lists them all."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn; for digits 32 64 128 256 unless told."""
    width: float = 1.0
    """Multiplier of a VGG's widths."""
    pools: int = 5
    """Poolings of a VGG; 4 for 28x28 images, 3 for 8x8."""
    seed: int = 0
    """Of data split, initialisation, training and search."""
    runs_dir: Path = Path("runs")
    """Where run directories go."""
    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set."""
    dense_rate: float = 0.1
    """Peak learning rate of that (SGD with momentum, cosine)."""
    batch_size: int = 128
    """Images a step, in training and finetuning."""
    granularity: str = "fine"
    """coarse: a keep ratio per group of channels; fine: every channel by itself."""
    constraint: str | None = None
    """multiplier: Lagrangian; projection: every candidate is put on the budgets; both. By default
    projection; with latency or a function among the budgets, whose place in the projection is
    taken by an estimate, both."""
    dual: str = "pid"
    """Update of the multipliers: pid, projected_gradient, adam_clip, softplus_adam."""
    evaluations: int = 768
    """Candidates that the agent, and each baseline, may evaluate."""
    candidates: int = 16
    """Candidates an iteration."""
    baselines: tuple[str, ...] = ("uniform", "global_threshold", "random_search", "cross_entropy")
    """What to run beside the agent; also: structured_sap, random_search_coarse,
    cross_entropy_coarse, and agent_sparsity_informed, the agent with that option."""
    score: str = "taylor"
    """What ranks the units of a group: taylor, magnitude, random."""
    sparsity_informed: bool = False
    """Show the agent each group's PQ Index and the share of units that it says are enough, and
    start from these shares."""
    reward: str = "accuracy"
    """accuracy or loss (negative), on held-out images after batch-norm recalibration."""
    reward_images: int = 512
    """Held-out images a candidate is rewarded on."""
    calibration_images: int | None = None
    """Training images for its batch-norm statistics; as many unless told, for digits 256."""
    reward_finetune: tuple[int, ...] = (0,)
    """Finetuning steps before each reward: a staircase, one entry per equal part of the search."""
    min_keep: int = 2
    """Channels that every group keeps."""
    round_to: int = 1
    """Keep a multiple of so many channels of every group, or all of it: 8 suits vector units. Holds
    for every candidate of the search and for what is delivered."""
    min_keep_of: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """REGEX=N, any number of times: another min_keep for groups whose names it is found in."""
    round_to_of: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """REGEX=N, any number of times: another round_to for groups whose names it is found in."""
    rerank: int = 3
    """Candidates of each method that get the short finetune."""
    rerank_steps: int | None = None
    """Steps of the short finetune."""
    finetune_steps: int | None = None
    """Steps of the last finetune."""
    finetune_rate: float = 1e-3
    """Its peak learning rate (Adam, cosine)."""
    chunk: int | None = None
    """Candidates evaluated at once; by default as memory allows."""
    save_seconds: float = 20.0
    """A kill loses at most so many seconds, and the step under way."""


DETERMINISTIC = ("uniform", "global_threshold", "structured_sap")
"""Baselines that propose the same candidates every iteration: one iteration tells all."""

DEFAULT_STEPS = {"digits": (300, 60, 300), "mnist": (1000, 100, 1000)}
"""Steps of the dense training, the short and the last finetune, where the data set is known."""


def resolve(config: Config) -> Config:
    """Fill in the defaults that depend on the data set, and refuse what cannot be run.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    budgets = parse_budgets(config.budget, config.budget_fn)
    counts = ("evaluations", "candidates", "rerank", "reward_images", "batch_size", "round_to")
    for option in (*counts, "latency_batch", "latency_steps", "latency_programs"):
        if getattr(config, option) < 1:
            raise ValueError(f"{option}={getattr(config, option)} must be at least 1")
    for option in ("min_keep_of", "round_to_of"):
        read_overrides(option, getattr(config, option))
    if min(config.tile) < 1:
        raise ValueError(f"tile={config.tile} must be two integers of at least 1")
    if not config.cost_seconds > 0:
        raise ValueError(f"cost_seconds={config.cost_seconds} must be above 0")
    if config.candidates > config.evaluations:
        raise ValueError(
            f"candidates={config.candidates} an iteration exceed evaluations={config.evaluations}"
        )
    for option, known in (
        ("score", UNIT_SCORES),
        ("reward", ("accuracy", "loss")),
        ("baselines", tuple(BASELINES)),
    ):
        given = getattr(config, option)
        for value in given if isinstance(given, tuple) else (given,):
            if value not in known:
                raise ValueError(f"{option}={value!r} is unknown; choose from {', '.join(known)}")
    if not config.reward_finetune or min(config.reward_finetune) < 0:
        raise ValueError(f"reward_finetune={config.reward_finetune} must be steps of at least 0")
    steps = DEFAULT_STEPS.get(config.dataset, (2000, 100, 1500))
    names = ("dense_steps", "rerank_steps", "finetune_steps")
    filled: dict[str, Any] = {
        name: default if getattr(config, name) is None else getattr(config, name)
        for name, default in zip(names, steps, strict=True)
    }
    few = 256 if config.dataset == "digits" else config.reward_images
    given = config.calibration_images
    filled["calibration_images"] = few if given is None else given
    for name, value in filled.items():
        if value < 1:
            raise ValueError(f"{name}={value} must be at least 1")
    widths = config.widths
    if not widths and config.dataset == "digits" and config.model == "cnn":
        widths = (32, 64, 128, 256)
    filled["widths"] = widths
    if config.constraint is None:
        asked = any(each.is_function or each.name == "latency" for each in budgets)
        filled["constraint"] = "both" if asked else "projection"
    config = dataclasses.replace(config, **filled)
    agent_config(config)
    return config


def numbers_of(config: Config, option: str, names: Sequence[str]) -> dict[str, int]:
    """Return ``min_keep`` or ``round_to`` of each group, the last override counting.

    Raises:
        ValueError: an override that is not of the form REGEX=N or names no group.
    """
    overrides = read_overrides(f"{option}_of", getattr(config, f"{option}_of"))
    return per_group(names, f"{option}_of", overrides, default=getattr(config, option))


def agent_config(config: Config) -> AgentConfig:
    """The static structure of the agent."""
    assert config.constraint is not None
    return AgentConfig(
        granularity=config.granularity,
        constraint=config.constraint,
        dual=config.dual,
        candidates=config.candidates,
        iterations=config.evaluations // config.candidates,
    )


Method = Callable[[Environment, Config, Graph, Variables], Searcher]
"""``(env, config, graph, dense variables) -> searcher``."""


def structured_sap(
    env: Environment, config: Config, graph: Graph, variables: Variables
) -> Searcher:
    """Structured SAP down to the budgets, with (p, q) from the paper's (0.5, 1) to its (1, 2)."""
    p = jnp.linspace(0.5, 1.0, config.candidates)
    scores = jax.vmap(lambda p: structured_sap_scores(graph, variables, p=p, q=2 * p))(p)
    return baselines.ranked(env, scores)


def informed(env: Environment, graph: Graph, variables: Variables) -> Environment:
    """The environment with the PQ Index of each group in its descriptors and its start.

    An agent sees the index and the share of units that it says are enough, and starts from these
    shares, shifted onto the budgets.
    """
    sparsity = group_sparsity(graph, variables)
    start = jnp.clip(sparsity.keep_ratio, 0.02, 1.0)
    return dataclasses.replace(
        env,
        descriptors=jnp.column_stack([env.descriptors, sparsity.pq_index, sparsity.keep_ratio]),
        initial_keep=jax.jit(project_ratios)(env, start),
    )


BASELINES: dict[str, Method] = {
    "uniform": lambda env, *_: baselines.uniform(env, 1),
    "global_threshold": lambda env, config, *_: baselines.global_threshold(env, config.candidates),
    "structured_sap": structured_sap,
    "random_search": lambda env, config, *_: baselines.random_search(
        env, config.candidates, config.granularity
    ),
    "cross_entropy": lambda env, config, *_: baselines.cross_entropy(
        env, config.candidates, granularity=config.granularity
    ),
    "random_search_coarse": lambda env, config, *_: baselines.random_search(env, config.candidates),
    "cross_entropy_coarse": lambda env, config, *_: baselines.cross_entropy(env, config.candidates),
    "agent_sparsity_informed": lambda env, config, graph, variables: ppo_lagrangian(
        informed(env, graph, variables), agent_config(config)
    ),
}


def stage_key(config: Config, stage: str) -> jax.Array:
    """The random key of a stage: a function of the seed and the stage's name alone."""
    number = int.from_bytes(stage.encode()[-4:], "big") % 2**31
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), number), len(stage))

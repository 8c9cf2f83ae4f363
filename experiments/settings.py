"""Settings of a pruning run: the options, their defaults by data set, and what is refused."""

import dataclasses
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from rlprune_jax.costs.budget import parse_budgets

from rlprune_jax.graph.groups import Graph
from rlprune_jax.search import (
    AgentConfig,
    ConstraintHandling,
    DualRule,
    Environment,
    Granularity,
    Searcher,
    SearchMethod,
    baselines,
    ppo_lagrangian,
    search_method,
)
from rlprune_jax.search.environment import project_ratios
from rlprune_jax.types import Variables
from rlprune_jax.units.scores import UNIT_SCORES
from rlprune_jax.units.structured_sap import group_sparsity, structured_sap_scores

AGENT = "agent"


@dataclasses.dataclass(frozen=True)
class Config:
    """Settings of a run; all but the directories decide the run's name."""

    budget: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Limit as NAME=LIMIT, any number of times. As fractions of the dense network: params=0.1,
    macs=0.3, weight_bytes, activation_memory (peak, one image), tiled_macs (see --tile). In ms:
    latency_table=2.5 (foretold from a network's pieces, each timed once on this device) and
    latency=2.5 (the slim network itself, timed again and again); or as fractions of dense:
    latency=0.5x."""
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
    granularity: Granularity = "fine"
    """coarse: a keep ratio per group of channels; fine: every channel by itself."""
    constraint: ConstraintHandling | None = None
    """multiplier: Lagrangian; projection: every candidate is put on the budgets; both. By default
    projection; with latency or a function among the budgets, whose place in the projection is
    taken by an estimate, both."""
    dual: DualRule = "pid"
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
        for text in getattr(config, option):
            _parse_override(option, text)
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
        asked = any(budget.is_measured for budget in budgets)
        filled["constraint"] = "both" if asked else "projection"
    config = dataclasses.replace(config, **filled)
    agent_config(config)
    return config


def _parse_override(option: str, text: str) -> tuple[re.Pattern[str], int]:
    pattern, found, number = text.rpartition("=")
    try:
        if not found or int(number) < 1:
            raise ValueError("N is an integer of at least 1")
        return re.compile(pattern), int(number)
    except (ValueError, re.error) as error:
        raise ValueError(f"{option}={text!r} is not of the form REGEX=N: {error}") from None


def per_group(config: Config, option: str, names: Sequence[str]) -> dict[str, int]:
    """``min_keep`` or ``round_to`` of each group, the last override that names it counting.

    Raises:
        ValueError: an override that names no group.
    """
    found = dict.fromkeys(names, getattr(config, option))
    for text in getattr(config, f"{option}_of"):
        pattern, number = _parse_override(f"{option}_of", text)
        named = [name for name in names if pattern.search(name)]
        if not named:
            raise ValueError(
                f"{option}_of={text!r} names no group; the groups are {', '.join(names)}"
            )
        found |= dict.fromkeys(named, number)
    return found


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


Method = Callable[[Config, Graph, Variables], SearchMethod]
"""``(config, graph, dense variables) -> method``."""


def structured_sap(config: Config, graph: Graph, variables: Variables) -> SearchMethod:
    """Structured SAP down to the budgets, with (p, q) from the paper's (0.5, 1) to its (1, 2)."""
    p = jnp.linspace(0.5, 1.0, config.candidates)
    scores = jax.vmap(lambda p: structured_sap_scores(graph, variables, p=p, q=2 * p))(p)
    return search_method(baselines.ranked, scores=scores)


def informed(env: Environment, pq_index: jax.Array, keep_ratio: jax.Array) -> Environment:
    """The environment with the PQ Index of each group in its descriptors and its start.

    An agent sees the index and the fraction of units that it says are enough, and starts from
    these fractions, shifted onto the budgets.
    """
    start = jnp.clip(keep_ratio, 0.02, 1.0)
    return dataclasses.replace(
        env,
        descriptors=jnp.column_stack([env.descriptors, pq_index, keep_ratio]),
        initial_keep=jax.jit(project_ratios)(env, start),
    )


def informed_agent(
    env: Environment, *, config: AgentConfig, pq_index: jax.Array, keep_ratio: jax.Array
) -> Searcher:
    """The agent in the informed environment."""
    return ppo_lagrangian(informed(env, pq_index, keep_ratio), config)


def sparsity_informed(config: Config, graph: Graph, variables: Variables) -> SearchMethod:
    """The informed agent as a method."""
    sparsity = group_sparsity(graph, variables)
    return search_method(
        informed_agent,
        config=agent_config(config),
        pq_index=sparsity.pq_index,
        keep_ratio=sparsity.keep_ratio,
    )


def sampling(make: Callable[..., Searcher], granularity: Granularity | None = None) -> Method:
    """A baseline that draws candidates, of the run's granularity unless told."""
    return lambda config, *_: search_method(
        make, num_candidates=config.candidates, granularity=granularity or config.granularity
    )


BASELINES: dict[str, Method] = {
    "uniform": lambda *_: search_method(baselines.uniform, num_candidates=1),
    "global_threshold": lambda config, *_: search_method(
        baselines.global_threshold, num_candidates=config.candidates
    ),
    "structured_sap": structured_sap,
    "random_search": sampling(baselines.random_search),
    "cross_entropy": sampling(baselines.cross_entropy),
    "random_search_coarse": sampling(baselines.random_search, "coarse"),
    "cross_entropy_coarse": sampling(baselines.cross_entropy, "coarse"),
    "agent_sparsity_informed": sparsity_informed,
}


def stage_key(config: Config, stage: str) -> jax.Array:
    """The random key of a stage: a function of the seed and the stage's name alone."""
    number = int.from_bytes(stage.encode()[-4:], "big") % 2**31
    return jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), number), len(stage))

"""Run iterative pruners on a network and a task, and keep their curves."""

import dataclasses
import re
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from rlprune_jax.checks import (
    require,
    require_choice,
    require_count,
    require_seed,
    require_type,
    shown,
)
from rlprune_jax.devices import describe_device, versions
from rlprune_jax.files import to_json
from rlprune_jax.models import ModelFunctions
from rlprune_jax.runs import CompileClock, MemoryRun, Run, StageOptions, run_stage
from rlprune_jax.runs.run import Json, Values
from rlprune_jax.sparsity.masks import Prunable
from rlprune_jax.sparsity.pruners import Pruner
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.training.task import Task, count_examples
from rlprune_jax.types import Mask, PyTree, Variables
from rlprune_jax.workflow.config import PruneConfig
from rlprune_jax.workflow.iterative import (
    GRID_P,
    GRID_Q,
    IterativeData,
    IterativePruning,
    IterativeState,
    Schedule,
    iterative_pruning,
    over_seeds,
)
from rlprune_jax.workflow.network import Network
from rlprune_jax.workflow.pruning import check_arrays, check_fit
from rlprune_jax.workflow.sap_config import check_batch
from rlprune_jax.workflow.tuning import training_data

Initialise = Callable[..., Variables]
"""``(key, *inputs) -> variables``, with which a seed starts."""

SCALARS = ("density", "live", "pq_index", "pq_index_pruned", "gini", "train_loss", "pq_grid")
"""What a row of a curve holds besides the metric and the layers."""


@dataclasses.dataclass(frozen=True)
class IterativeOptions:
    """Hold the settings of ``prune_iteratively``.

    Attributes:
        iterations: prunings T; there are T + 1 trainings.
        seeds: each a start and an order of the examples of its own.
        optimizer: for the parameters, fresh at every iteration; ``paper_optimizer`` where None.
        examples: train on so many, chosen by the first seed for all; None for all there are.
        init: ``(key, *inputs) -> variables``; None starts every seed from the network's own.
        prunable: which parameters may be pruned, as in ``make_mask``.
        batching: ``"vmap"`` trains all seeds at once, ``"map"`` one after the other in one program;
            None takes ``"vmap"`` unless a parameter has more than two axes, as of convolutions,
            which are slow with weights that differ.

    Raises:
        ValueError: a number below 1, no seed or one twice, or an unknown ``batching``.
    """

    iterations: int = 10
    seeds: tuple[int, ...] = (0,)
    optimizer: optax.GradientTransformation | None = None
    examples: int | None = None
    init: Initialise | None = None
    prunable: Prunable | None = None
    batching: Literal["vmap", "map"] | None = None

    def __post_init__(self) -> None:
        require_count("iterations", self.iterations)
        if self.examples is not None:
            require_count("examples", self.examples)
        seeds: object = self.seeds
        require(isinstance(seeds, tuple), "seeds", seeds, "a sequence of integers, each once")
        once = bool(self.seeds) and len(set(self.seeds)) == len(self.seeds)
        require(once, "seeds", self.seeds, "one or more, each once")
        for seed in self.seeds:
            require_seed("seeds", seed)
        if self.batching is not None:
            require_choice("batching", self.batching, ("vmap", "map"))


@dataclasses.dataclass(frozen=True)
class Curve:
    """Hold what one pruner did, iteration by iteration.

    Attributes:
        rows: one per iteration, plain JSON with lists over seeds: the fields of ``Iteration``.
        seconds: that it took.
        state: after the last iteration, seeds in front.
    """

    rows: list[Json]
    seconds: float
    state: IterativeState

    def array(self, name: str) -> np.ndarray:
        """Return what was measured as f64[seeds, iterations]."""
        return np.array([row[name] for row in self.rows], float).T


@dataclasses.dataclass(frozen=True)
class IterativeResult:
    """Hold the curves of a comparison of pruners.

    Attributes:
        metric_name: of the task's metric, such as ``"accuracy"``.
        curves: by the pruner's name.
        seeds: that were run.
        compile_seconds: of which the compiler took so many.
        start: the network that was given.
    """

    metric_name: str
    curves: dict[str, Curve]
    seeds: tuple[int, ...]
    compile_seconds: float
    start: Network

    def network(self, name: str | None = None, seed: int | None = None) -> Network:
        """Return a pruned network as it was trained last.

        Args:
            name: of the pruner; the first where None.
            seed: one of ``seeds``; the first where None.

        Raises:
            ValueError: there is no such pruner or seed.
        """
        state, place = self._state(name, seed)
        return self.start.replace(jax.tree.map(lambda leaf: leaf[place], state.trained))

    def mask(self, name: str | None = None, seed: int | None = None) -> Mask:
        """Return the weight mask of ``network``, congruent to its parameters."""
        state, place = self._state(name, seed)
        return jax.tree.map(lambda leaf: leaf[place], state.trained_mask)

    def _state(self, name: str | None, seed: int | None) -> tuple[IterativeState, int]:
        name = next(iter(self.curves)) if name is None else name
        seed = self.seeds[0] if seed is None else seed
        require_choice("name", name, list(self.curves))
        require(seed in self.seeds, "seed", seed, f"one of {self.seeds}")
        return self.curves[name].state, self.seeds.index(seed)

    def to_json(self) -> Json:
        """Return plain JSON, the metric under its own name."""
        return to_json(
            {
                "metric_name": self.metric_name,
                "curves": {
                    name: {
                        "iterations": [_iteration(row, self.metric_name) for row in curve.rows],
                        "seconds": curve.seconds,
                    }
                    for name, curve in self.curves.items()
                },
                "matched": matched_rows(self.curves, "lottery ticket"),
                "grid": {"p": GRID_P, "q": GRID_Q},
                "seeds": list(self.seeds),
                "compile_seconds": self.compile_seconds,
                "versions": versions(),
                "device": describe_device(),
            }
        )

    def __str__(self) -> str:
        lines = [f"{'':<20} weights left  {self.metric_name}, of dense {'':<5} of the last"]
        for name, curve in self.curves.items():
            left, metric = (curve.array(key).mean(0) for key in ("density", "metric"))
            lines.append(
                f"{name:<20} {100 * left[-1]:>9.3g} %  {metric[0]:>20.4f} {metric[-1]:>16.4f}"
            )
        return "\n".join(lines)


def prune_iteratively(
    network: Network,
    task: Task,
    pruners: Pruner | Mapping[str, Pruner],
    schedule: Schedule,
    run: Run | None = None,
    **settings: PyTree,
) -> IterativeResult:
    """Train, prune and rewind a network again and again.

    Use it to see how sparse a network can be: each iteration trains, measures, prunes single
    weights of the parameters and goes back to the first ones, for each pruner and seed. Held-out
    data are trained on too, since nothing is chosen by them; the metric is that of the test data.

    Args:
        network: of any framework; its variables are where every seed starts, unless ``init`` is
            given.
        task: with its data in arrays.
        pruners: by name, or one of them.
        schedule: of one iteration.
        run: where checkpoints and metrics go, such as ``open_run_at(path, settings)``: a run that
            was interrupted goes on after its last whole iteration. None keeps them in memory.
        **settings: fields of ``IterativeOptions`` by name.

    Returns:
        The curves; ``result.network(name)`` is a pruned network.

    Raises:
        TaskError: data that come batch by batch, or outputs that do not fit the task.
        ValueError: a setting that cannot be, a batch above the examples, or nothing to prune.
        TypeError: there is no such setting, or what is no ``Network``, ``Task``, ``Pruner`` or
            ``Schedule``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from rlprune_jax import Network, regression, sap
        >>> x = jax.random.normal(jax.random.key(0), (32, 3))
        >>> data = (x, x[:, :1])
        >>> network = Network(lambda v, x: x @ v["w"], {"w": jnp.ones((3, 1))}, x[:2])
        >>> task = regression(data, data, data)
        >>> result = prune_iteratively(network, task, sap(), Schedule(16, 20), iterations=1)
        >>> [len(curve.rows) for curve in result.curves.values()]
        [2]
    """
    options = _options(settings)
    require_type("network", network, Network, "make it by Network.from_linen or its like")
    require_type("task", task, Task, "make it by classification, regression or their like")
    require_type("schedule", schedule, Schedule, "make it by Schedule(batch_size, num_steps)")
    if not isinstance(pruners, Pruner | Mapping):
        raise TypeError(
            f"pruners={shown(pruners)} must be a Pruner, as sap() gives, or some by name"
        )
    named = {"pruner": pruners} if isinstance(pruners, Pruner) else dict(pruners)
    require(bool(named), "pruners", pruners, "one or more")
    for name, pruner in named.items():
        require_type(f"pruners[{name!r}]", pruner, Pruner, "make it by sap or its like")
    stages = {name: stage_name(name) for name in named}
    distinct = len(set(stages.values())) == len(stages)
    require(distinct, "pruners", list(named), "distinct in letters and digits; rename one")
    data = prepare_data(network, task, schedule, options)
    run = MemoryRun() if run is None else run
    curves = {}
    with CompileClock() as clock:
        for name, pruner in named.items():
            loop = make_loop(network, task, pruner, schedule, options)
            curves[name] = run_curve(loop, data, options, run, stages[name])
    return IterativeResult(
        metric_name=task.objective.metric_name,
        curves=curves,
        seeds=options.seeds,
        compile_seconds=clock.seconds,
        start=network,
    )


def _options(settings: Mapping[str, PyTree]) -> IterativeOptions:
    known = [field.name for field in dataclasses.fields(IterativeOptions)]
    unknown = [name for name in settings if name not in known]
    if unknown:
        raise TypeError(
            f"{unknown[0]}= is no setting of prune_iteratively; settings are {', '.join(known)}"
        )
    if "seeds" in settings:
        seeds = settings["seeds"]
        several = isinstance(seeds, Sequence | range) and not isinstance(seeds, str)
        settings = {**settings, "seeds": tuple(seeds) if several else seeds}
    return IterativeOptions(**settings)


def prepare_data(
    network: Network, task: Task, schedule: Schedule, options: IterativeOptions
) -> IterativeData:
    """Return a task's data for the loop.

    Raises:
        TaskError: they come batch by batch, or do not fit the network.
        ValueError: more examples wanted than there are, or ``schedule.batch_size`` above them.
    """
    check_fit(network, task, PruneConfig())
    check_batch(schedule.batch_size, count_training(task, options.examples))
    train = training_data(task, held_out=True)
    if options.examples is not None:
        order = np.random.default_rng(options.seeds[0]).permutation(count_examples(train))
        train = jax.tree.map(lambda leaf: leaf[order[: options.examples]], train)
    return IterativeData(train=train, test=jax.tree.map(jnp.asarray, task.test))


def count_training(task: Task, wanted: int | None = None) -> int:
    """Count the examples that are trained on.

    Held-out ones are among them.

    Raises:
        TaskError: they come batch by batch.
        ValueError: more are wanted than there are.
    """
    check_arrays(task, "iterative pruning does")
    there = count_examples(task.train) + count_examples(task.held_out)
    if wanted is None:
        return there
    if wanted > there:
        raise ValueError(f"train_images={wanted} is above the {there} there are; lower it")
    return wanted


def make_loop(
    network: Network, task: Task, pruner: Pruner, schedule: Schedule, options: IterativeOptions
) -> IterativePruning:
    """Make the loop over all seeds of one pruner."""
    functions = functions_of(network, options.init)
    optimizer = options.optimizer or paper_optimizer(schedule.num_steps)
    loop = iterative_pruning(
        functions, task.objective, optimizer, pruner, schedule, options.prunable
    )
    dense = all(np.ndim(leaf) <= 2 for leaf in jax.tree.leaves(network.variables))
    return over_seeds(loop, options.batching or ("vmap" if dense else "map"))


def functions_of(network: Network, init: Initialise | None) -> ModelFunctions:
    """Return the functions of a network that seeds start anew.

    Args:
        network: whose variables all seeds start from where there is no ``init``.
        init: ``(key, *inputs) -> variables``, or None.
    """
    variables = network.variables
    return ModelFunctions(
        init=(lambda key, *inputs: variables) if init is None else init,
        apply=network.definition.apply,
        apply_train=network.definition.training_mode,
    )


def paper_optimizer(
    num_steps: int, learning_rate: float = 0.1, decayed: Literal["kernels", "all"] = "all"
) -> optax.GradientTransformation:
    """Make the optimizer of the PQ Index paper.

    SGD with Nesterov momentum 0.9, weight decay 5e-4, global norm clipped to 1, cosine to 0.

    Args:
        num_steps: of a training from step 0.
        learning_rate: at the start of the cosine.
        decayed: what weight decay touches.
    """
    return make_optimizer(
        "sgd",
        learning_rate=learning_rate,
        num_steps=num_steps,
        schedule="cosine",
        weight_decay=5e-4,
        decayed=decayed,
        clip_norm=1.0,
    )


def run_curve(
    loop: IterativePruning, data: IterativeData, options: IterativeOptions, run: Run, stage: str
) -> Curve:
    """Run one pruner for all seeds.

    It goes on from its last checkpoint.
    """
    step = jax.jit(loop.step)
    keys = jax.vmap(jax.random.key)(jnp.asarray(options.seeds, jnp.uint32))

    def advance(
        state: IterativeState, start: int, count: int
    ) -> tuple[IterativeState, list[tuple[int, Values]]]:
        rows: list[tuple[int, Values]] = []
        for number in range(start, start + count):
            began = time.perf_counter()
            state, measured = jax.block_until_ready(step(state, data))
            values = jax.tree.map(np.asarray, measured._asdict())
            rows.append((number + 1, {**values, "seconds": time.perf_counter() - began}))
        return state, rows

    state = run_stage(
        run,
        stage,
        jax.jit(loop.init)(data, keys),
        options.iterations + 1,
        advance,
        # A seed that fails shows in its curve; the others go on.
        StageOptions(save_seconds=0, note=_note, check=None),
    )
    rows = run.metrics(stage)
    return Curve(rows=rows, seconds=sum(row["seconds"] for row in rows), state=state)


def stage_name(name: str) -> str:
    """Return a pruner's name as the name of a folder.

    Example:
        >>> stage_name("SAP (0.5, 1)")
        'sap-0.5-1'
    """
    return re.sub(r"[^a-z0-9._]+", "-", name.lower()).strip("-.") or "pruner"


def matched_rows(curves: Mapping[str, Curve], against: str) -> list[Json]:
    """Compare every pruner with another at matched density.

    Seed by seed. The other's metric is interpolated linearly in the logarithm of the density
    between its two nearest iterations; points beyond its range, and those with no seed's, are left
    out.

    Returns:
        Rows ``{"method", "iteration", "density", "difference", "std", "seeds"}``: means over the
        seeds, the standard deviation of their differences, and how many they are.
    """
    if against not in curves:
        return []
    other = partial(_metric_at, curves[against].array("density"), curves[against].array("metric"))
    rows = []
    for name in [name for name in curves if name != against]:
        density, metric = (curves[name].array(key) for key in ("density", "metric"))
        for iteration in range(density.shape[1]):
            found = [
                metric[seed, iteration] - other(seed, density[seed, iteration])
                for seed in range(len(density))
            ]
            differences = [each for each in found if not np.isnan(each)]
            if differences:
                rows.append(
                    {
                        "method": name,
                        "iteration": iteration,
                        "density": float(density[:, iteration].mean()),
                        "difference": float(np.mean(differences)),
                        "std": float(np.std(differences)),
                        "seeds": len(differences),
                    }
                )
    return rows


def _metric_at(densities: np.ndarray, metrics: np.ndarray, seed: int, density: float) -> float:
    """Return a seed's metric at a density, NaN beyond the range."""
    known = densities[seed]
    if not known.min() <= density <= known.max() or density <= 0:
        return float("nan")
    # np.interp wants rising places; densities only ever fall.
    places = np.log(np.maximum(known[::-1], 1e-30))
    return float(np.interp(np.log(density), places, metrics[seed][::-1]))


def _iteration(row: Json, metric: str) -> Json:
    """Return one iteration of ``result.json``, lists over seeds."""
    names: Sequence[str] = ("live", "pq_index", "gini")
    return {
        "iteration": row["step"] - 1,
        metric: row["metric"],
        f"{metric}_pruned": row["metric_pruned"],
        **{key: row[key] for key in SCALARS},
        "layers": {
            path: {name: row[f"layer_{name}"][path] for name in names} for path in row["layer_live"]
        },
    }


def _note(row: Values) -> str:
    return f"left {100 * np.mean(row['density']):.3g} % metric {np.mean(row['metric']):.4f}"

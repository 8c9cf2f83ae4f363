"""Options of pruning, in groups, and what is refused of them; nothing here imports JAX."""

import dataclasses
import math
from typing import Annotated, Literal, get_args

import tyro

from rlprune_jax.checks import refuse_unless, require_count
from rlprune_jax.costs import Budget, parse_budgets
from rlprune_jax.workflow.config import (
    DeliveryConfig,
    Lines,
    MeasureConfig,
    MethodName,
    PruneConfig,
    RepairConfig,
    RunConfig,
    SearchConfig,
    UnitConfig,
    check_choices,
    check_methods,
    resolve,
)
from rlprune_jax.workflow.sources import (
    ADAM_MODELS,
    TEXTS,
    DataOptions,
    NetworkOptions,
    check_data_options,
    check_network,
    check_pair,
    is_own,
    usual_steps,
    with_usual_widths,
)

DENSE_RATES = {"sgd": 0.1, "adam": 2e-3}
"""Peak learning rate of the dense training unless told, by its rule."""


FAST_RATES = {"sgd": 0.4, "adam": 2e-3}
"""The same of the fast recipe, for batches of 512."""

FAST_BATCH = 512
"""Examples a step of the fast recipe unless told."""

FAST_STEPS = {"cifar10": 8_800, "cifar100": 8_800, "fashion_mnist": 4_200, "mnist": 2_000}
"""Steps of the fast recipe unless told: 100 epochs of 45,000 images of CIFAR, 40 of Fashion-MNIST,
20 of MNIST. On other data as many as of the plain one."""


@dataclasses.dataclass(frozen=True)
class DenseOptions:
    """Say how the dense network is trained."""

    recipe: Literal["plain", "fast"] = "plain"
    """How the dense network is trained. plain: warm-up and cosine, as light as a CPU needs. fast:
    for accelerators, with the augmentation, label smoothing, large batches and averaged weights of
    the speed records, and for longer."""
    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set, and of the fast
    recipe 100 epochs of CIFAR."""
    dense_batch: int | None = None
    """Examples a step of it; batch_size unless told, and 512 of the fast recipe."""
    dense_rule: Literal["sgd", "adam"] | None = None
    """Its rule: sgd with momentum, or adam. By default adam for vit_tiny, convnext_tiny and text,
    sgd for all else."""
    dense_rate: float | None = None
    """Its peak learning rate; 0.1 of sgd (0.4 of the fast recipe) and 0.002 of adam unless told."""


@dataclasses.dataclass(frozen=True)
class BudgetOptions:
    """Say how much the pruned network may cost."""

    budget: Lines = ()
    """Limit as NAME=LIMIT, any number of times. As a fraction of the dense network (params=0.1,
    macs=30%), or absolute (params=5000, macs=1.5M, weight_bytes=100kB). Known are params, macs,
    weight_bytes, activation_memory (peak, one example), tiled_macs (see --tile), kv_cache_bytes (of
    a decoder, for each token of context; see --kv-layers), and in ms
    latency_table=2.5 (predicted from a network's pieces, each timed once on this device) and
    latency=2.5 (the slim network itself, timed again and again); of these latency=0.5x is a
    fraction of dense."""
    budget_fn: Lines = ()
    """Limit on any Python function of a candidate, as module:function=LIMIT in the function's own
    unit (or 0.5x of dense): function(widths, gates) -> number of at least 0, with widths the units
    kept per group by name and gates their f32[units] of 0 and 1; it may jump, but the smallest
    network must be within the limit. Modules of the working directory count, after installed ones;
    or give folder/file.py:function=LIMIT. It runs with your rights. With the module's code the run
    changes its name; with what it imports it does not."""


@dataclasses.dataclass(frozen=True)
class PlaceOptions:
    """Say where the run goes."""

    runs_dir: str = "runs"
    """Where run directories go."""
    stale: Literal["refuse", "redo", "keep"] = "refuse"
    """What to do with a run that is there and that other code, versions or data made: refuse it,
    redo it (the old one is kept beside it), or keep it and go on."""


Flat = tyro.conf.OmitArgPrefixes


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Say how a network is pruned.

    All options but the directories decide the run's name.
    """

    network: Annotated[NetworkOptions, Flat] = dataclasses.field(default_factory=NetworkOptions)
    data: Annotated[DataOptions, Flat] = dataclasses.field(default_factory=DataOptions)
    budgets: Annotated[BudgetOptions, Flat] = BudgetOptions()
    dense: Annotated[DenseOptions, Flat] = DenseOptions()
    search: Annotated[SearchConfig, Flat] = dataclasses.field(default_factory=SearchConfig)
    units: Annotated[UnitConfig, Flat] = dataclasses.field(default_factory=UnitConfig)
    repairing: Annotated[RepairConfig, Flat] = dataclasses.field(default_factory=RepairConfig)
    delivery: Annotated[DeliveryConfig, Flat] = dataclasses.field(default_factory=DeliveryConfig)
    measuring: Annotated[MeasureConfig, Flat] = dataclasses.field(default_factory=MeasureConfig)
    run: Annotated[RunConfig, Flat] = dataclasses.field(default_factory=RunConfig)
    place: Annotated[PlaceOptions, Flat] = PlaceOptions()

    @property
    def settings(self) -> dict[str, object]:
        """All options by name, without their groups."""
        groups = (getattr(self, field.name) for field in dataclasses.fields(self))
        return {name: value for group in groups for name, value in vars(group).items()}

    @property
    def config(self) -> PruneConfig:
        """The settings of the search and what follows."""
        names = {field.name for field in dataclasses.fields(PruneConfig)}
        return PruneConfig(**{k: v for k, v in self.settings.items() if k in names})  # type: ignore[arg-type]

    @property
    def usual_dense_steps(self) -> int:
        """Steps of the dense training unless told."""
        steps = usual_steps(self.data.dataset)[0]
        return FAST_STEPS.get(self.data.dataset, steps) if self.is_fast else steps

    @property
    def is_fast(self) -> bool:
        """Tell whether the recipe is the fast one."""
        return self.dense.recipe == "fast"

    @property
    def usual_dense_batch(self) -> int:
        """Examples a step of the dense training unless told."""
        return FAST_BATCH if self.is_fast else self.delivery.batch_size

    @property
    def usual_dense_rule(self) -> Literal["sgd", "adam"]:
        """Rule of the dense training unless told."""
        by_adam = self.network.model in ADAM_MODELS or self.data.dataset in TEXTS
        return "adam" if by_adam else "sgd"

    @property
    def usual_dense_rate(self) -> float:
        """Rate of the dense training unless told."""
        rates = FAST_RATES if self.is_fast else DENSE_RATES
        return rates[self.dense.dense_rule or self.usual_dense_rule]

    def replace(self, **changed: object) -> "PruneOptions":
        """Return the options with some changed by their names.

        Example:
            >>> PruneOptions().replace(seed=3, budget=("params=0.1",)).run.seed
            3
        """
        groups = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        unknown = set(changed) - set(self.settings)
        if unknown:
            raise TypeError(f"{min(unknown)}= is no option; options are {', '.join(self.settings)}")
        for title, group in groups.items():
            own = {name: changed[name] for name in vars(group) if name in changed}
            groups[title] = dataclasses.replace(group, **own)
        return PruneOptions(**groups)


def resolved(options: PruneOptions) -> PruneOptions:
    """Fill in defaults and refuse what cannot be run.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_network(options.network)
    check_data_options(options.data)
    check_pair(options.network.model, options.data.dataset)
    budgets = parse_budgets(options.budgets.budget, options.budgets.budget_fn)
    check_dense(options.dense)
    check_methods(options.search.baselines, get_args(MethodName))
    check_measuring(options.measuring, budgets)
    check_place(options.place)
    _, rerank, finetune = usual_steps(options.data.dataset)
    trained = options.delivery.finetune_steps != 0
    usual: dict[str, object] = {
        "rerank_steps": rerank if trained else 0,
        "finetune_steps": finetune,
    }
    # What of the user's own is trained already is known when it is there.
    if not is_own(options.network.model) and options.network.pretrained is None:
        usual |= {
            "dense_steps": options.usual_dense_steps,
            "dense_batch": options.usual_dense_batch,
            "dense_rule": options.usual_dense_rule,
            "dense_rate": options.usual_dense_rate,
        }
    if not is_own(options.network.model) or options.dense.dense_rule is not None:
        usual["finetune_rule"] = options.dense.dense_rule or options.usual_dense_rule
    filled = {name: value for name, value in usual.items() if options.settings[name] is None}
    if options.search.calibration_images is None and options.data.dataset == "digits":
        filled["calibration_images"] = 256
    filled["widths"] = with_usual_widths(options.network, options.data.dataset).widths
    options = options.replace(**filled)
    return options.replace(**vars(resolve(options.config)))


def check_dense(options: DenseOptions) -> None:
    """Refuse a dense training that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    steps, rate = options.dense_steps, options.dense_rate
    check_choices(options)
    if steps is not None:
        require_count("dense_steps", steps)
    if options.dense_batch is not None:
        require_count("dense_batch", options.dense_batch)
    good = rate is None or (math.isfinite(rate) and rate > 0)
    refuse_unless("dense_rate", rate, good, "must be finite and above 0")


USED_BY = {
    "tile": ("tiled_macs",),
    "kv_layers": ("kv_cache_bytes",),
    "latency_steps": ("latency",),
    "latency_programs": ("latency",),
    "latency_asks": ("latency",),
}
"""Options of measuring that only some budgets read."""


def check_measuring(options: MeasureConfig, budgets: tuple[Budget, ...]) -> None:
    """Refuse options of measuring that no budget reads.

    Raises:
        ValueError: naming the option and the budgets that read it.
    """
    names = {budget.name for budget in budgets}
    usual = MeasureConfig()
    for option, readers in USED_BY.items():
        given = getattr(options, option)
        if given != getattr(usual, option) and not names & set(readers):
            raise ValueError(
                f"{option}={given} would do nothing: it is read by budgets on "
                f"{', '.join(readers)} alone; leave it out"
            )


def check_place(options: PlaceOptions) -> None:
    """Refuse a place without a name, or an unknown choice.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(options)
    if not options.runs_dir:
        raise ValueError("runs_dir='' is empty; name a directory, such as 'runs'")


def check_unit_options(options: UnitConfig) -> None:
    """Refuse numbers of units that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(options)
    resolve(PruneConfig(**vars(options)))

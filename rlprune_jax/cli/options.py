"""Options of pruning, in groups, and what is refused of them; nothing here imports JAX."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import Annotated, Literal, get_args

import tyro

from rlprune_jax.checks import refuse_unless
from rlprune_jax.costs import Budget, parse_budgets
from rlprune_jax.workflow.config import (
    DeliveryConfig,
    Lines,
    MeasureConfig,
    MethodName,
    PruneConfig,
    RunConfig,
    SearchConfig,
    UnitConfig,
    check_choices,
    check_methods,
    resolve,
)

_VGG = ("widths", "width", "pools")
MODEL_OPTIONS: dict[str, tuple[str, ...]] = {
    "mlp": ("widths",),
    "cnn": ("widths",),
    **{f"vgg{depth}": _VGG for depth in (11, 13, 16, 19)},
    **{f"resnet{depth}": ("width",) for depth in (20, 32, 44, 56, 110, 18, 34, 50)},
    "preact_resnet18": ("width",),
    "wide_resnet28x8": ("width",),
    "mobilenet": ("width",),
    "densenet": ("width",),
    "vit_tiny": ("width",),
    "convnext_tiny": ("widths", "width"),
    "gpt": ("width",),
    "llama": ("width",),
    "linear": (),
}
"""Networks of the zoo, and which of the options ``widths``, ``width`` and ``pools`` each has."""

LANGUAGE_MODELS = ("gpt", "llama")
"""Networks of the zoo that read tokens; all others read images."""

ADAM_MODELS = ("vit_tiny", "convnext_tiny", *LANGUAGE_MODELS)
"""Networks of the zoo whose dense training is by Adam unless told."""

DENSE_RATES = {"sgd": 0.1, "adam": 2e-3}
"""Peak learning rate of the dense training unless told, by its rule."""

DATASETS = ("digits", "mnist", "fashion_mnist", "cifar10", "cifar100")
"""The built-in data sets of images."""

TEXTS = ("text",)
"""The built-in texts."""

BUNDLED = ("digits", *TEXTS)
"""Data sets that need no folder."""

METRIC_NAMES = ("accuracy", "top5_accuracy", "token_accuracy", "negative_loss")
"""Metrics by name."""

DEFAULT_STEPS = {
    "digits": (300, 60, 300),
    "mnist": (1000, 100, 1000),
    "text": (1500, 60, 600),
}
"""Steps of the dense training, the short and the last finetune, where the data set is known."""

OTHER_STEPS = (2000, 100, 1500)
"""The same for all other data sets."""


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Say which network is pruned."""

    model: str = "cnn"
    """Any of the zoo: mlp, cnn, vgg16, resnet20, vit_tiny, ... for images, gpt and llama for text;
    an unknown name lists them all. Or
    a network of yours as package.module:function, which is called with those of task, example (a
    batch of inputs), num_classes and seed that it names, and returns a rlprune_jax.Network; a Linen
    module with its variables, (module, variables); a Linen module alone, which is initialised and
    trained; an NNX module; an Equinox module, or (module, state). Modules of the working directory
    count. Apart from a Linen module alone, what it returns is taken for trained: give --dense-steps
    to train it. The run is named by the code of the module, not by what it reads."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn, channels of each convolution of a VGG and of each stage of a
    ConvNeXt; for a cnn on digits 32 64 128 256 unless told."""
    width: float | None = None
    """Multiplier of all widths, for VGG, ResNet and the other networks that have one."""
    pools: int | None = None
    """Poolings of a VGG; 5 unless told. Images of 28x28 take 4, those of 8x8 take 3."""
    pretrained: str | None = None
    """Weights of the dense network, which is then not trained: a safetensors file, or the folder of
    an Orbax checkpoint. Paths and shapes must be those of the network."""
    ignore: Lines = ()
    """REGEX, any number of times: variables whose paths it is found in keep their shapes."""


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Say what the network does, and on which data."""

    dataset: str = "digits"
    """digits (comes with scikit-learn), mnist, fashion_mnist, cifar10, cifar100; text (comes with
    Python), for gpt and llama, which are to predict its next character. Or data of yours
    as package.module:function, which is called with those of seed and data_dir that it names, and
    returns a rlprune_jax.Task or (train, held_out, test), each (inputs, labels)."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits and text need none."""
    metric: str | None = None
    """What is to be kept, higher is better: accuracy, top5_accuracy, token_accuracy, negative_loss,
    or module:function of (outputs, batch). By default the task's own: accuracy of images, the
    negative loss per token of text."""


@dataclasses.dataclass(frozen=True)
class DenseOptions:
    """Say how the dense network is trained."""

    dense_steps: int | None = None
    """Steps of training the dense network; by default a few epochs, by data set."""
    dense_rule: Literal["sgd", "adam"] | None = None
    """How it is trained, after a warm-up and along a cosine: sgd with momentum, or adam. By default
    adam for vit_tiny, convnext_tiny and text, sgd for all else."""
    dense_rate: float | None = None
    """Peak learning rate of that; 0.1 of sgd and 0.002 of adam unless told."""


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
    network must be within the limit. Modules of the working directory count. With the module's
    code the run changes its name; with what it imports it does not."""


@dataclasses.dataclass(frozen=True)
class PlaceOptions:
    """Say where the run goes."""

    runs_dir: str = "runs"
    """Where run directories go."""


Flat = tyro.conf.OmitArgPrefixes


@dataclasses.dataclass(frozen=True)
class PruneOptions:
    """Say how a network is pruned.

    All options but the directories decide the run's name.
    """

    network: Annotated[NetworkOptions, Flat] = NetworkOptions()
    data: Annotated[DataOptions, Flat] = DataOptions()
    budgets: Annotated[BudgetOptions, Flat] = BudgetOptions()
    dense: Annotated[DenseOptions, Flat] = DenseOptions()
    search: Annotated[SearchConfig, Flat] = dataclasses.field(default_factory=SearchConfig)
    units: Annotated[UnitConfig, Flat] = dataclasses.field(default_factory=UnitConfig)
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
        return DEFAULT_STEPS.get(self.data.dataset, OTHER_STEPS)[0]

    @property
    def usual_dense_rule(self) -> Literal["sgd", "adam"]:
        """Rule of the dense training unless told."""
        by_adam = self.network.model in ADAM_MODELS or self.data.dataset in TEXTS
        return "adam" if by_adam else "sgd"

    @property
    def usual_dense_rate(self) -> float:
        """Rate of the dense training unless told."""
        return DENSE_RATES[self.dense.dense_rule or self.usual_dense_rule]

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


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's function."""
    return ":" in name


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
    check_methods(options.search.baselines, get_args(MethodName))
    _, rerank, finetune = DEFAULT_STEPS.get(options.data.dataset, OTHER_STEPS)
    usual: dict[str, object] = {"rerank_steps": rerank, "finetune_steps": finetune}
    # What of the user's own is trained already is known when it is there.
    if not is_own(options.network.model) and options.network.pretrained is None:
        usual |= {
            "dense_steps": options.usual_dense_steps,
            "dense_rule": options.usual_dense_rule,
            "dense_rate": options.usual_dense_rate,
        }
    filled = {name: value for name, value in usual.items() if options.settings[name] is None}
    if options.search.calibration_images is None and options.data.dataset == "digits":
        filled["calibration_images"] = 256
    if options.network.model == "cnn" and options.data.dataset == "digits":
        filled["widths"] = options.network.widths or (32, 64, 128, 256)
    options = options.replace(**filled)
    measured = any(is_measured(budget) for budget in budgets)
    return options.replace(**vars(resolve(options.config, measured)))


def is_measured(budget: Budget) -> bool:
    """Return whether only the host knows a cost."""
    return budget.is_function or budget.name == "latency"


def check_network(options: NetworkOptions) -> None:
    """Refuse a network that cannot be.

    Options that would do nothing are refused too.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    model = options.model
    if is_own(model):
        check_path("model", model)
    elif model not in MODEL_OPTIONS:
        raise ValueError(
            f"model={model!r} is unknown; choose from {', '.join(MODEL_OPTIONS)}, or give a "
            "network of your own as package.module:function"
        )
    has = MODEL_OPTIONS.get(model, ())
    for name in ("widths", "width", "pools"):
        value = getattr(options, name)
        if value in (None, ()) or name in has:
            continue
        instead = f"; it has {', '.join(has)}" if has else "; leave it out"
        raise ValueError(f"{name}={value}: {model} has no such option{instead}")
    refuse_unless(
        "widths", options.widths, all(each >= 1 for each in options.widths), "must be above 0"
    )
    if options.width is not None:
        good = math.isfinite(options.width) and options.width > 0
        refuse_unless("width", options.width, good, "must be finite and above 0")
        if options.widths:
            raise ValueError(f"give either width={options.width} or widths={options.widths}")
    if options.pools is not None:
        refuse_unless("pools", options.pools, options.pools in range(6), "must be from 0 to 5")
    if options.pretrained is not None and not os.path.exists(options.pretrained):
        raise ValueError(
            f"pretrained={options.pretrained!r} does not exist; name a safetensors file or the "
            "folder of an Orbax checkpoint"
        )
    for expression in options.ignore:
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"ignore={expression!r} is no regular expression: {error}") from None


def check_data_options(options: DataOptions) -> None:
    """Refuse data and metrics that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    if is_own(options.dataset):
        check_path("dataset", options.dataset)
    elif options.dataset not in (*DATASETS, *TEXTS):
        known = ", ".join((*DATASETS, *TEXTS))
        raise ValueError(
            f"dataset={options.dataset!r} is unknown; choose from {known}, or give data of your "
            "own as package.module:function"
        )
    folder = options.data_dir
    if folder is not None and not os.path.isdir(os.path.expanduser(folder)):
        needless = f"; none is needed for {options.dataset}" if options.dataset in BUNDLED else ""
        raise ValueError(f"data_dir={folder!r} is no folder{needless}")
    if options.metric is not None and is_own(options.metric):
        check_path("metric", options.metric)
    elif options.metric is not None and options.metric not in METRIC_NAMES:
        raise ValueError(
            f"metric={options.metric!r} is unknown; choose from {', '.join(METRIC_NAMES)}, or give "
            "a function of (outputs, batch) as module:function"
        )


def check_pair(model: str, dataset: str) -> None:
    """Refuse a network that does not read the data.

    Both are ours; what the user brings is tried.

    Raises:
        ValueError: it reads tokens and the data are images, or the other way round.
    """
    if is_own(model) or is_own(dataset):
        return
    if model in LANGUAGE_MODELS and dataset not in TEXTS:
        raise ValueError(
            f"model={model!r} reads text and dataset={dataset!r} holds images; choose "
            f"dataset={' or '.join(TEXTS)}"
        )
    if model not in LANGUAGE_MODELS and dataset in TEXTS:
        raise ValueError(
            f"model={model!r} reads images and dataset={dataset!r} is text; choose "
            f"model={' or '.join(LANGUAGE_MODELS)}"
        )


def check_path(option: str, path: str) -> None:
    """Refuse what does not name a function of a module.

    The package has to be there; nothing is imported.

    Raises:
        ValueError: naming the option and its value.
    """
    module, _, function = path.partition(":")
    parts = [*module.split("."), *function.split(".")]
    if not all(part.isidentifier() for part in parts):
        raise ValueError(f"{option}={path!r} is not of the form package.module:function")
    package = parts[0]
    here = os.path.exists(package) or os.path.exists(f"{package}.py")
    try:
        found = here or importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a specification, such as __main__
        found = True
    if not found:
        raise ValueError(
            f"{option}={path!r} cannot be imported: there is no module {package!r}, neither "
            "installed nor in the working directory"
        )


def check_dense(options: DenseOptions) -> None:
    """Refuse a dense training that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    steps, rate = options.dense_steps, options.dense_rate
    refuse_unless("dense_steps", steps, steps is None or steps >= 1, "must be at least 1")
    good = rate is None or (math.isfinite(rate) and rate > 0)
    refuse_unless("dense_rate", rate, good, "must be finite and above 0")


USED_BY = {
    "tile": ("tiled_macs",),
    "kv_layers": ("kv_cache_bytes",),
    "latency_steps": ("latency",),
    "latency_programs": ("latency",),
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
    """Refuse a place that has no name.

    Raises:
        ValueError: it is empty.
    """
    if not options.runs_dir:
        raise ValueError("runs_dir='' is empty; name a directory, such as 'runs'")


def check_unit_options(options: UnitConfig) -> None:
    """Refuse numbers of units that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(options)
    resolve(PruneConfig(**vars(options)))

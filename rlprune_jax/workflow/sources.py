"""Options that name a network and a data set, ours or the user's; nothing here imports JAX."""

import dataclasses
import importlib.util
import math
import os
import re
from typing import TypeVar

from rlprune_jax.checks import MOST_COUNTED, names_file, refuse_unless
from rlprune_jax.workflow.config import Lines

NamedNetwork = TypeVar("NamedNetwork", bound="NetworkOptions")
"""Options of a network, those of some command."""

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

DIGITS_WIDTHS = (32, 64, 128, 256)
"""Of a cnn on digits."""


@dataclasses.dataclass(frozen=True)
class NetworkOptions:
    """Say which network is pruned."""

    model: str = "cnn"
    """Any of the zoo: mlp, cnn, vgg16, resnet20, vit_tiny, ... for images, gpt and llama for text;
    an unknown name lists them all. Or a network of yours as package.module:function, which is
    called with those of task, example (a batch of inputs), num_classes and seed that it names, and
    returns a rlprune_jax.Network; a Linen module with its variables, (module, variables); a Linen
    module alone, which is initialised and trained; an NNX module; an Equinox module, or (module,
    state). Modules of the working directory count. Apart from a Linen module alone, what it returns
    is taken for trained: give --dense-steps to train it. The run is named by the code of the
    module, not by what it reads."""
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
    depth_groups: bool = False
    """Residual branches are units too, beside the widths: one that is pruned is neither stored nor
    computed."""


@dataclasses.dataclass(frozen=True)
class DatasetOptions:
    """Say which data there are."""

    dataset: str = "digits"
    """digits (comes with scikit-learn), mnist, fashion_mnist, cifar10, cifar100; text (comes with
    Python), for gpt and llama, which are to predict its next character. Or data of yours as
    package.module:function, which is called with those of seed and data_dir that it names, and
    returns a rlprune_jax.Task or (train, held_out, test), each (inputs, labels)."""
    data_dir: str | None = None
    """Folder of prepared TFDS data sets; else $TFDS_DATA_DIR. digits and text need none."""


@dataclasses.dataclass(frozen=True)
class DataOptions(DatasetOptions):
    """Say what the network does, and on which data."""

    metric: str | None = None
    """What is to be kept, higher is better: accuracy, top5_accuracy, token_accuracy, negative_loss,
    or module:function of (outputs, batch). By default the task's own: accuracy of images, the
    negative loss per token of text."""


def is_own(name: str) -> bool:
    """Return whether a name is that of a user's function."""
    return ":" in name


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
    good = all(isinstance(each, int) and 1 <= each <= MOST_COUNTED for each in options.widths)
    refuse_unless(
        "widths", options.widths, good, f"must be above 0 and at most {MOST_COUNTED} each"
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
        if not expression:
            raise ValueError(
                "ignore='' matches every path, so nothing could be pruned; leave it out"
            )
        try:
            re.compile(expression)
        except re.error as error:
            raise ValueError(f"ignore={expression!r} is no regular expression: {error}") from None


def usual_steps(dataset: str) -> tuple[int, int, int]:
    """Return steps of dense training, short and last finetune."""
    return DEFAULT_STEPS.get(dataset, OTHER_STEPS)


def with_usual_widths(network: NamedNetwork, dataset: str) -> NamedNetwork:
    """Fill in the widths of a cnn on digits."""
    if (network.model, dataset) == ("cnn", "digits") and not network.widths:
        return dataclasses.replace(network, widths=DIGITS_WIDTHS)
    return network


def check_data_options(options: DataOptions) -> None:
    """Refuse data and metrics that cannot be.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_dataset(options)
    if options.metric is not None and is_own(options.metric):
        check_path("metric", options.metric)
    elif options.metric is not None and options.metric not in METRIC_NAMES:
        raise ValueError(
            f"metric={options.metric!r} is unknown; choose from {', '.join(METRIC_NAMES)}, or give "
            "a function of (outputs, batch) as module:function"
        )


def check_dataset(options: DatasetOptions) -> None:
    """Refuse data that cannot be.

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

    The package or file has to be there; nothing is imported.

    Raises:
        ValueError: naming the option and its value.
    """
    module, _, function = path.rpartition(":")
    by_file = names_file(module)
    parts = [*([] if by_file else module.split(".")), *function.split(".")]
    if not module or not all(part.isidentifier() for part in parts):
        raise ValueError(
            f"{option}={path!r} is not of the form package.module:function or file.py:function"
        )
    if by_file:
        if not os.path.isfile(os.path.expanduser(module)):
            raise ValueError(f"{option}={path!r} cannot be imported: there is no file {module!r}")
        return
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

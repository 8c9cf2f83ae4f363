"""Settings of a comparison of iterative pruners; nothing here imports JAX."""

import dataclasses
import math
from typing import Literal, get_args

from rlprune_jax.checks import refuse_unless, require_choice, require_count
from rlprune_jax.workflow.config import Lines, check_choices
from rlprune_jax.workflow.sources import NetworkOptions

PrunerName = Literal["sap", "lottery_ticket", "one_shot", "random"]
ScopeName = Literal["global", "layer", "neuron"]
Decayed = Literal["all", "kernels"]
BatchStatistics = Literal["keep", "rewind"]


@dataclasses.dataclass(frozen=True)
class SapNetworkOptions(NetworkOptions):
    """Say which network is pruned."""

    model: str = "mlp"
    """linear, mlp, cnn and every other network of the zoo; an unknown name lists them all. Or a
    network of yours as package.module:function, which is called with those of task, example (a
    batch of inputs), num_classes and seed that it names, and returns a rlprune_jax.Network; a Linen
    module with its variables, (module, variables); a Linen module alone; an NNX module; an Equinox
    module, or (module, state). Modules of the working directory count. Seeds of the zoo's networks
    and of a Linen module alone are initialised each for itself; those of all others start from the
    weights that the function returns."""
    widths: tuple[int, ...] = ()
    """Units per layer of mlp and cnn, channels of each convolution of a VGG, where not the
    paper's."""
    pretrained: str | None = None
    """Weights that every seed starts from and goes back to: a safetensors file, or the folder of an
    Orbax checkpoint. Paths and shapes must be those of the network."""
    ignore: Lines = ()
    """REGEX, any number of times: parameters whose paths it is found in are never pruned."""


@dataclasses.dataclass(frozen=True)
class PrunersConfig:
    """Which pruners are compared, and their numbers."""

    method: tuple[PrunerName, ...] = ("sap", "lottery_ticket", "one_shot")
    """What to run and compare."""
    scope: ScopeName = "global"
    """What weights are compared with each other."""
    iterations: int = 30
    """Prunings T; the paper has 30 for linear, mlp and cnn, 15 for larger networks."""
    p: tuple[float, ...] = (0.5, 1.0)
    """Norm above, of sap; several together with as many q give a curve each."""
    q: tuple[float, ...] = (1.0, 2.0)
    """Norm below, of sap."""
    eta_r: float = 0.0
    """Of sap: the larger, the more goes."""
    gamma: float = 1.0
    """Of sap: scaling of the fraction that goes."""
    beta: float = 0.9
    """Of sap: greatest fraction that one iteration prunes."""
    rate: float = 0.2
    """Of the others: fraction of the live weights that each iteration prunes."""


@dataclasses.dataclass(frozen=True)
class RetrainingConfig:
    """How an iteration trains."""

    epochs: int | None = None
    """Epochs a training; few unless told. The paper: 200."""
    train_images: int | None = None
    """Train on so many examples, the same for all seeds; all unless told."""
    batch_size: int = 250
    """Examples a step."""
    learning_rate: float = 0.1
    """At the start of the cosine."""
    decayed: Decayed = "all"
    """What weight decay touches: all parameters, as in the paper, or kernels."""
    rewind_epoch: int = 0
    """Weights go back to those after so many epochs; 0, as in the paper, to the initial ones."""
    batch_statistics: BatchStatistics = "keep"
    """Running statistics of batch norm: keep them as trained, as the released code, or rewind."""


@dataclasses.dataclass(frozen=True)
class SeedsConfig:
    """Which seeds are run."""

    seed: int = 0
    """The first seed, of initialisation, order of examples and random pruning."""
    seeds: int = 4
    """How many seeds, from that on."""


@dataclasses.dataclass(frozen=True)
class SapConfig(PrunersConfig, RetrainingConfig, SeedsConfig):
    """Hold the settings of a comparison of iterative pruners.

    Example:
        >>> resolve_sap(SapConfig(rate=0.5)).epochs
        2
    """


def resolve_sap(config: SapConfig, usual_epochs: int = 2) -> SapConfig:
    """Fill in the epochs, and refuse what cannot be run.

    Args:
        config: as given.
        usual_epochs: of a training, where none are told.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    check_choices(config)
    check_pruners(config)
    for name in ("seeds", "batch_size", "iterations"):
        require_count(name, getattr(config, name))
    refuse_unless("seed", config.seed, config.seed >= 0, "must be at least 0")
    last = config.seed + config.seeds - 1
    refuse_unless(
        "seed", config.seed, last < 2**32, f"gives seeds up to {last}; 4294967295 is the last"
    )
    rate = config.learning_rate
    refuse_unless(
        "learning_rate", rate, math.isfinite(rate) and rate > 0, "must be finite and above 0"
    )
    images, batch = config.train_images, config.batch_size
    refuse_unless("train_images", images, images is None or images >= 1, "must be at least 1")
    if images is not None:
        check_batch(batch, images)
    refuse_unless(
        "rewind_epoch", config.rewind_epoch, config.rewind_epoch >= 0, "must be at least 0"
    )
    epochs = usual_epochs if config.epochs is None else config.epochs
    above = f"must be above rewind_epoch={config.rewind_epoch}"
    refuse_unless("epochs", epochs, epochs > config.rewind_epoch, above)
    require_count("epochs", epochs)
    return dataclasses.replace(config, epochs=epochs)


def check_batch(batch_size: int, examples: int) -> None:
    """Refuse a batch of more examples than there are.

    Raises:
        ValueError: naming both numbers.
    """
    above = f"is above the {examples} training images; lower it"
    refuse_unless("batch_size", batch_size, batch_size <= examples, above)


def check_pruners(config: PrunersConfig) -> None:
    """Refuse unknown pruners and numbers out of their range.

    Raises:
        ValueError: naming the option, its value and what it may be.
    """
    methods = config.method
    once = bool(methods) and len(set(methods)) == len(methods)
    refuse_unless("method", methods, once, "must be one or more, each once")
    for method in methods:
        require_choice("method", method, get_args(PrunerName))
    p, q = config.p, config.q
    if len(p) != len(q) or not p:
        raise ValueError(f"p={p} and q={q} must be as many; they go in pairs")
    pairs = list(zip(p, q, strict=True))
    for low, high in pairs:
        for name, value in (("p", low), ("q", high)):
            good = math.isfinite(value) and value > 0
            refuse_unless(name, value, good, "must be finite and above 0")
        refuse_unless("p", low, low < high, f"must be below q={high}")
    twice = [pair for pair in pairs if pairs.count(pair) > 1]
    if twice:
        raise ValueError(f"p={p}, q={q} hold the pair {twice[0]} twice; give each pair once")
    eta_r, gamma, beta, rate = config.eta_r, config.gamma, config.beta, config.rate
    finite = math.isfinite
    refuse_unless("eta_r", eta_r, finite(eta_r) and eta_r >= 0, "must be at least 0 and finite")
    refuse_unless("gamma", gamma, finite(gamma) and gamma > 0, "must be above 0 and finite")
    refuse_unless("beta", beta, 0 < beta <= 1, "must be above 0 and at most 1")
    reason = "must be above 0 and below 1: of what is left 0 prunes nothing and 1 everything"
    refuse_unless("rate", rate, 0 < rate < 1, reason)

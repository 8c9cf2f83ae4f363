"""How networks are trained: dense ones, plainly or fast, and masked ones that are finetuned."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rlprune_jax.checks import require, require_above, require_choice, require_count, require_range
from rlprune_jax.training.augmentation import AlternatingFlip, CropAndFlip
from rlprune_jax.training.loops import Arrange
from rlprune_jax.training.metrics import SoftmaxCrossEntropy
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.training.task import Objective
from rlprune_jax.workflow.config import PRECISIONS, Precision, PruneConfig, Rule


@dataclasses.dataclass(frozen=True)
class DenseRecipe:
    """Hold how a dense network is trained.

    With warm-up and cosine.

    Attributes:
        steps: of training.
        rate: peak learning rate.
        batch_size: examples a step.
        weight_decay: of kernels.
        rule: ``"sgd"``, with momentum, as convolutional networks are trained; or ``"adam"``, with
            the gradient's norm clipped at 1, as transformers are.
        precision: of contractions.
    """

    steps: int
    rate: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    rule: Rule = "sgd"
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        _check_common(self)

    def optimizer(self, total: jax.Array | int) -> optax.GradientTransformation:
        """Return the optimizer.

        Its length is the recipe's own.
        """
        return make_optimizer(
            self.rule,
            learning_rate=self.rate,
            num_steps=self.steps,
            schedule="cosine",
            warmup=self.steps // 10,
            momentum=0.9,
            weight_decay=self.weight_decay,
            clip_norm=1.0 if self.rule == "adam" else None,
        )


@dataclasses.dataclass(frozen=True)
class FinetuneRecipe:
    """Hold how a masked network is finetuned.

    As the dense one is trained, with warm-up, cosine and weight decay. The clipping lets SGD train
    networks without any norm too.

    Attributes:
        rate: peak learning rate.
        batch_size: examples a step.
        rule: ``"sgd"``, with momentum; or ``"adam"``.
        weight_decay: of kernels.
        clip_norm: greatest norm of the whole gradient; None for no clipping.
        warmup: fraction of the steps over which the rate rises.
        precision: of contractions.
    """

    rate: float = 1e-3
    batch_size: int = 128
    rule: Rule = "adam"
    weight_decay: float = 5e-4
    clip_norm: float | None = 1.0
    warmup: float = 0.1
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        _check_common(self)
        require_range("warmup", self.warmup, 0.0, 1.0)
        if self.clip_norm is not None:
            require_above("clip_norm", self.clip_norm)

    def optimizer(self, total: jax.Array | int) -> optax.GradientTransformation:
        """Return the optimizer.

        Its rate falls to 0 over a total that may be traced. Short and long finetunes are therefore
        one program.
        """
        rise = jnp.floor(self.warmup * jnp.asarray(total, jnp.float32))

        def factor(count: jax.Array) -> jax.Array:
            done = jnp.clip((count - rise) / jnp.maximum(total - rise, 1.0), 0.0, 1.0)
            falling = 0.5 * (1 + jnp.cos(jnp.pi * done))
            return jnp.where(count < rise, (count + 1) / (rise + 1), falling)

        rule = make_optimizer(
            self.rule,
            learning_rate=self.rate,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
        )
        return optax.chain(rule, optax.scale_by_schedule(factor))


def finetune_recipe(config: PruneConfig) -> FinetuneRecipe:
    """Return the recipe that a problem's settings ask for.

    Args:
        config: of a ``Pruning``, all defaults filled in.
    """
    rule, rate = config.finetune_rule, config.finetune_rate
    assert rule is not None and rate is not None
    return FinetuneRecipe(
        rate=rate, batch_size=config.batch_size, rule=rule, precision=config.precision
    )


@dataclasses.dataclass(frozen=True)
class FastRecipe:
    """Hold how a dense network is trained on an accelerator.

    What carries over from the speed records on CIFAR-10 to an unchanged network: images are shifted
    with their mirror image behind the border, mirrored in every other epoch and covered by a
    square, labels are smoothed, the rate rises to its peak and falls to zero along lines, weight
    decay is decoupled, batches are large, and what is delivered is an average over the last steps.
    Data and losses that are not of images keep what they have.

    Attributes:
        steps: of training.
        rate: peak learning rate.
        batch_size: examples a step.
        weight_decay: of kernels, after the momentum.
        rule: ``"sgd"``, with momentum; or ``"adam"``.
        label_smoothing: fraction of each target spread evenly over the classes.
        cutout: side of the square that is covered, as a fraction of the image's.
        rise: fraction of the steps over which the rate rises.
        average: what is kept of the average of the weights at each step, less in a short training,
            whose average reaches back over a tenth of it.
        precision: of contractions.

    Reference: Jordan, 94% on CIFAR-10 in 3.29 seconds on a single GPU, arXiv:2404.00498
    (alternating flip, reflected shifts by 4, cutout of 12 of 32, label smoothing 0.2); Page, How to
    train your ResNet (peak rate 0.4 of batches of 512 at a fifth of the steps, weight decay 5e-4
    before a momentum of 0.9, which is 5e-3 after it).
    """

    steps: int
    rate: float = 0.4
    batch_size: int = 512
    weight_decay: float = 5e-3
    rule: Rule = "sgd"
    label_smoothing: float = 0.2
    cutout: float = 12 / 32
    rise: float = 0.2
    average: float = 0.99
    precision: Precision = "float32"

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        _check_common(self)
        for name in ("label_smoothing", "cutout", "rise", "average"):
            require_range(name, getattr(self, name), 0.0, 1.0)
        require(self.average < 1, "average", self.average, "below 1")
        require(self.label_smoothing < 1, "label_smoothing", self.label_smoothing, "below 1")

    @property
    def decay(self) -> float:
        """Return what is kept of the average at each step."""
        return min(self.average, max(0.0, 1 - 10 / self.steps))

    def optimizer(self, total: jax.Array | int) -> optax.GradientTransformation:
        """Return the optimizer.

        Its length is the recipe's own.
        """
        return make_optimizer(
            self.rule,
            learning_rate=self.rate,
            num_steps=self.steps,
            schedule="linear",
            warmup=min(int(self.rise * self.steps), self.steps - 1),
            momentum=0.9,
            weight_decay=self.weight_decay,
            decoupled=True,
            clip_norm=1.0 if self.rule == "adam" else None,
        )


Recipe = DenseRecipe | FastRecipe | FinetuneRecipe
"""How a network is trained."""


def _check_common(recipe: Recipe) -> None:
    """Refuse what no recipe can have."""
    require_count("batch_size", recipe.batch_size)
    require_above("rate", recipe.rate)
    require_range("weight_decay", recipe.weight_decay, 0.0)
    require_choice("rule", recipe.rule, ("sgd", "adam"))
    require_choice("precision", recipe.precision, PRECISIONS)


def trained_on(recipe: Recipe, objective: Objective, is_placed: bool) -> Objective:
    """Return the objective that a recipe trains on.

    It is the task's own, unless the recipe is a fast one: cross-entropy is then smoothed, and where
    the task crops and mirrors images they are reflected and covered.

    Args:
        recipe: of the training.
        objective: of the task.
        is_placed: whether mirroring is left to ``arrangement``, since examples have places.
    """
    if not isinstance(recipe, FastRecipe):
        return objective
    if isinstance(objective.loss, SoftmaxCrossEntropy):
        smoothed = SoftmaxCrossEntropy(recipe.label_smoothing)
        objective = dataclasses.replace(objective, loss=smoothed)
    if isinstance(objective.augment, CropAndFlip):
        own = objective.augment
        augment = dataclasses.replace(
            own, padding_mode="reflect", cutout=recipe.cutout, flip=own.flip and not is_placed
        )
        objective = dataclasses.replace(objective, augment=augment)
    return objective


def arrangement(recipe: Recipe, objective: Objective) -> Arrange | None:
    """Return how batches change by the places of examples.

    A fast recipe mirrors images in every other epoch where the task mirrors them.

    Args:
        recipe: of the training.
        objective: of the task, its own.
    """
    own = objective.augment
    is_mirrored = isinstance(own, CropAndFlip) and own.flip
    return AlternatingFlip() if isinstance(recipe, FastRecipe) and is_mirrored else None

"""How networks are trained: dense ones, and masked ones that are finetuned, short or long."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from rlprune_jax.checks import require_above, require_choice, require_count, require_range
from rlprune_jax.training.optimizers import make_optimizer
from rlprune_jax.workflow.config import PruneConfig, Rule


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
    """

    steps: int
    rate: float = 0.1
    batch_size: int = 128
    weight_decay: float = 5e-4
    rule: Rule = "sgd"

    def __post_init__(self) -> None:
        require_count("steps", self.steps)
        require_count("batch_size", self.batch_size)
        require_above("rate", self.rate)
        require_range("weight_decay", self.weight_decay, 0.0)
        require_choice("rule", self.rule, ("sgd", "adam"))

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
    """

    rate: float = 1e-3
    batch_size: int = 128
    rule: Rule = "adam"
    weight_decay: float = 5e-4
    clip_norm: float | None = 1.0
    warmup: float = 0.1

    def __post_init__(self) -> None:
        require_above("rate", self.rate)
        require_choice("rule", self.rule, ("sgd", "adam"))
        require_range("weight_decay", self.weight_decay, 0.0)
        require_range("warmup", self.warmup, 0.0, 1.0)
        require_count("batch_size", self.batch_size)
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
    return FinetuneRecipe(rate=rate, batch_size=config.batch_size, rule=rule)


Recipe = DenseRecipe | FinetuneRecipe
"""How a network is trained."""

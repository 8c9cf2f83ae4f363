"""A zoo of networks for images and text, and any Linen network as plain functions.

Use `create_model` for a network by its name, and `model_functions` for the functions that the rest
of the package takes. A network of your own needs neither.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from rlprune_jax.models.checks import check_options
from rlprune_jax.models.cnn import CNN
from rlprune_jax.models.convnext import ConvNeXt
from rlprune_jax.models.convolution import conv_general_dilated, rebind_convolutions
from rlprune_jax.models.densenet import DenseNet
from rlprune_jax.models.gpt import GPT
from rlprune_jax.models.llama import Llama
from rlprune_jax.models.mlp import MLP
from rlprune_jax.models.mobilenet import MobileNet
from rlprune_jax.models.resnet import THIN_DEPTHS, ResNet, ThinResNet
from rlprune_jax.models.vgg import STAGE_DEPTHS, VGG
from rlprune_jax.models.vit import VisionTransformer
from rlprune_jax.models.wide_resnet import PreActResNet18, WideResNet
from rlprune_jax.types import Apply, ApplyTrain, PyTree, Variables

__all__ = [
    "CNN",
    "GPT",
    "MLP",
    "VGG",
    "ConvNeXt",
    "DenseNet",
    "Llama",
    "MobileNet",
    "ModelFunctions",
    "PreActResNet18",
    "ResNet",
    "ThinResNet",
    "VisionTransformer",
    "WideResNet",
    "conv_general_dilated",
    "create_model",
    "model_functions",
    "model_names",
    "rebind_convolutions",
]

_MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "cnn": CNN,
    **{f"vgg{depth}": partial(VGG, depth=depth) for depth in STAGE_DEPTHS},
    **{f"resnet{depth}": partial(ThinResNet, depth=depth) for depth in THIN_DEPTHS},
    **{f"resnet{depth}": partial(ResNet, depth=depth) for depth in (18, 34, 50)},
    "preact_resnet18": PreActResNet18,
    "wide_resnet28x8": WideResNet,
    "mobilenet": MobileNet,
    "densenet": DenseNet,
    "vit_tiny": VisionTransformer,
    "convnext_tiny": ConvNeXt,
    "gpt": GPT,
    "llama": Llama,
    "linear": partial(MLP, widths=()),
}


class ModelFunctions(NamedTuple):
    """Hold a network as plain functions.

    Attributes:
        init: ``(key, x) -> variables``, ``{"params": ...}`` and ``"batch_stats"`` where there are.
        apply: ``(variables, x) -> logits``, with the running statistics.
        apply_train: ``(variables, x, key=None) -> (logits, updates)``, with the batch's statistics;
            ``updates`` is ``{"batch_stats": ...}``, or ``{}`` for a network without them. The zoo
            draws nothing from the key.
    """

    init: Callable[[jax.Array, jax.Array], Variables]
    apply: Apply
    apply_train: ApplyTrain


def model_names() -> tuple[str, ...]:
    """List the names that ``create_model`` knows."""
    return tuple(_MODELS)


def create_model(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Build a network of the zoo.

    Its variables come from ``model_functions(network).init``.

    Args:
        name: one of ``model_names()``.
        num_classes: outputs of the network; of a language model, tokens of its vocabulary.
        **options: the fields of the network's class: ``width``, a multiplier of all widths (but
            ``widths``, a list of them, for ``mlp``, which is linear without any, for ``cnn`` and,
            as a choice, VGG); ``pools`` for VGG; ``stem`` (``"cifar"`` or ``"imagenet"``) for
            ``resnet18`` to ``resnet50`` and ``mobilenet``; ``shortcut`` for ``resnet20`` to
            ``resnet110``; ``depth`` for the last networks of the list; ``scan`` for ``llama``;
            ``conv_general_dilated`` for those that have convolutions.

    Returns:
        A Linen module, called ``module.apply(variables, x, train=False)`` with f32[B, H, W, C], or
        with tokens i32[B, T] (``gpt`` and ``llama``).

    Raises:
        ValueError: an unknown ``name``, a ``num_classes`` below 1, or an option's value that no
            network of that name can have.
        TypeError: an option that the network does not have, or of another type.

    Example:
        >>> create_model("vgg16", 10, width=0.25).depth
        16
    """
    if not isinstance(name, str) or name not in _MODELS:
        raise ValueError(f"model {name!r} is unknown; choose from {', '.join(_MODELS)}")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes={num_classes!r} must be an integer of at least 1")
    constructor = _MODELS[name]
    known = _option_names(constructor)
    for option in options:
        if option not in known:
            raise TypeError(f"model {name!r} has no option {option!r}; it has {', '.join(known)}")
    check_options(name, options)
    for option in ("widths", "depths"):
        if options.get(option) is not None:
            # A list would make the module unhashable, and jit keys its cache by what it closes
            # over.
            options[option] = tuple(options[option])
    return constructor(num_classes=num_classes, **options)


def model_functions(module: nn.Module) -> ModelFunctions:
    """Turn a Linen network called ``module(x, train=...)`` into plain functions.

    The functions are new ones at each call, and jitted code that takes them as static arguments
    compiles anew for each: make them once and hand them on.

    Args:
        module: a network of the zoo, or any Linen module with the same call.

    Raises:
        TypeError: ``module`` is not a Linen module.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> init, apply, apply_train = model_functions(create_model("mlp", 10))
        >>> variables = init(jax.random.key(0), jnp.ones((1, 8, 8, 1)))
        >>> apply(variables, jnp.ones((2, 8, 8, 1))).shape
        (2, 10)
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module={module!r} is a {type(module).__name__}, not a Linen module")

    # Under jit the forward pass of an initialisation is dead code and never runs.
    @jax.jit
    def init(key: jax.Array, x: jax.Array) -> Variables:
        return module.init(key, x, train=False)

    def apply(variables: Variables, /, *inputs: PyTree, **options: PyTree) -> PyTree:
        return module.apply(variables, *inputs, **{"train": False, **options})

    def apply_train(
        variables: Variables, /, *inputs: PyTree, key: jax.Array | None = None
    ) -> tuple[PyTree, dict[str, PyTree]]:
        logits, updates = module.apply(variables, *inputs, train=True, mutable=["batch_stats"])
        return logits, dict(updates)

    return ModelFunctions(init, apply, apply_train)


def _option_names(constructor: Callable[..., nn.Module]) -> list[str]:
    """Fields a caller may set: all but those fixed by the name or added by Linen."""
    fixed = {"num_classes", "parent", "name"}
    network: Any = constructor
    if isinstance(constructor, partial):
        network, fixed = constructor.func, fixed | set(constructor.keywords)
    return [field.name for field in dataclasses.fields(network) if field.name not in fixed]

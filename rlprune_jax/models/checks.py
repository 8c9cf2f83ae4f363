"""Checks of what a network is built from and called with."""

from collections.abc import Mapping, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from rlprune_jax.checks import (
    refuse_unless,
    require,
    require_above,
    require_choice,
    require_count,
    require_flag,
    require_function,
    require_range,
)


def check_widths(name: str, widths: Sequence[int], count: int | None = None) -> None:
    """Refuse widths that are not so many positive integers.

    Args:
        name: the argument as the caller wrote it, for the message.
        widths: units per layer.
        count: how many there must be; ``None`` for any number.

    Raises:
        ValueError: naming ``name``, its value and what would do.
    """
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"{name}={tuple(widths)} must hold positive integers, one per layer")
    if count is not None and len(widths) != count:
        raise ValueError(f"{name}={tuple(widths)} has {len(widths)} entries; give {count}")


def check_options(name: str, options: Mapping[str, object]) -> None:
    """Refuse options of a network that none can have.

    Use it before a network is built. What depends on several options, or on the images, is refused
    when the network is first called.

    Args:
        name: of the network.
        options: by name, as ``create_model`` takes them.

    Raises:
        TypeError: a convolution that is no function, or a flag that is neither True nor False.
        ValueError: naming the option, its value and what would do.
    """
    for option, value in options.items():
        if option in ("widths", "depths"):
            if value is not None or option == "depths":
                listed = isinstance(value, Sequence) and not isinstance(value, str)
                require(listed, option, value, "a tuple of positive integers, one per layer")
                assert isinstance(value, Sequence)
                check_widths(option, value)
                some = bool(value) or name == "mlp"
                refuse_unless(option, value, some, f"leaves nothing of {name}; give at least one")
        elif option == "pools":
            require(value in range(6) and not isinstance(value, bool), option, value, "from 0 to 5")
        elif option == "conv_general_dilated":
            require_function(option, value, "a convolution, with the signature of jax.lax's")
        elif option == "scan":
            require_flag(option, value)
        elif option in ("width", "base") or (option, name) == ("mlp_ratio", "llama"):
            require_above(option, value)
        elif option == "layer_scale":
            require_range(option, value, 0.0)
        elif option in ("stem", "shortcut"):
            choices = ("cifar", "imagenet") if option == "stem" else ("pad", "projection")
            require_choice(option, value, choices)
        elif not (value is None and option in ("patch", "blocks") and name != "vit_tiny"):
            require_count(option, value)


def check_images(x: jax.Array, rank: int | None, least: int = 1, remedy: str = "") -> None:
    """Refuse input that a network cannot take.

    Args:
        x: the input, images ``[B, H, W, C]`` where ``rank`` is 4.
        rank: the rank ``x`` must have; ``None`` for any with a batch axis and one more.
        least: least height and width (with ``rank`` 4).
        remedy: what to do about images that are too small, ending the message.

    Raises:
        TypeError: ``x`` is not of a floating type (raw uint8 images, usually).
        ValueError: wrong rank, an empty image, or an image smaller than ``least``.
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(
            f"images are {x.dtype}; networks take floats: normalise them first "
            "(rlprune_jax.training.augmentation.normalise)"
        )
    if x.ndim < 2 if rank is None else x.ndim != rank:
        wanted = "[B, ...]" if rank is None else "[B, H, W, C]"
        raise ValueError(f"images have shape {x.shape}; the network takes {wanted}")
    if any(size == 0 for size in x.shape[1:]):
        raise ValueError(f"images have shape {x.shape}: an empty axis")
    if rank == 4 and min(x.shape[1], x.shape[2]) < least:
        raise ValueError(
            f"images of {x.shape[1]}x{x.shape[2]} are too small: the poolings shrink the map to "
            f"nothing; the least size is {least}x{least}{remedy}"
        )


def check_tokens(tokens: jax.Array, context: int | None = None) -> None:
    """Refuse tokens that a language model cannot take.

    Args:
        tokens: the input, ``[B, T]``.
        context: most tokens of a sequence; None for any number.

    Raises:
        TypeError: they are no integers (images, usually).
        ValueError: wrong rank, no token, or more than ``context``.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(
            f"tokens are {tokens.dtype}; a language model takes integers [B, T], each below the "
            "size of its vocabulary"
        )
    if tokens.ndim != 2:
        raise ValueError(f"tokens have shape {tokens.shape}; the network takes [B, T]")
    if tokens.shape[1] == 0:
        raise ValueError(f"tokens have shape {tokens.shape}: an empty sequence")
    if context is not None and tokens.shape[1] > context:
        raise ValueError(
            f"sequences of {tokens.shape[1]} tokens are longer than context={context}; cut them or "
            "raise context"
        )


def check_at_least_one(module: nn.Module, *names: str) -> None:
    """Refuse options of a network that are below 1.

    Args:
        module: the network.
        *names: of its options.

    Raises:
        ValueError: naming the option and its value.
    """
    for name in names:
        value = getattr(module, name)
        if value < 1:
            raise ValueError(f"{name}={value} must be an integer of at least 1")

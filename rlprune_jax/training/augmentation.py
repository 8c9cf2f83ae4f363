"""From raw images to what a network reads, on the device: normalisation, random crop and flip."""

from functools import partial
from typing import Literal, Protocol

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike


class Prepare(Protocol):
    """From raw images [B, H, W, C] to network input f32[B, H, W, C]; random only with a key."""

    def __call__(self, images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        """Prepare a batch, augmented where ``key`` is given."""


def normalise(images: ArrayLike, mean: ArrayLike, std: ArrayLike) -> jax.Array:
    """Scale bytes to [0, 1], then to zero mean and unit variance per channel.

    Args:
        images: uint8[..., C].
        mean: f32[C] (or a scalar), of the images in [0, 1].
        std: f32[C] (or a scalar), of the images in [0, 1]; above 0.

    Returns:
        f32[..., C], ``(images / 255 - mean) / std``.

    Raises:
        TypeError: ``images`` are not uint8 (already normalised ones, usually).
        ValueError: ``mean`` or ``std`` do not have one number per channel.

    Example:
        >>> import numpy as np
        >>> image = normalise(np.full((1, 1, 1), 255, np.uint8), mean=0.5, std=0.25)
        >>> round(float(image[0, 0, 0]), 4)
        2.0
    """
    images, mean, std = jnp.asarray(images), jnp.asarray(mean), jnp.asarray(std)
    if images.dtype != jnp.uint8:
        raise TypeError(f"images are {images.dtype}, not uint8; normalise raw images, and once")
    for name, value in (("mean", mean), ("std", std)):
        if value.ndim and (value.ndim > 1 or value.shape != images.shape[-1:]):
            raise ValueError(
                f"{name} has shape {value.shape}; images of shape {images.shape} take one number "
                "per channel"
            )
    return _normalise(images, mean, std)


def augment(
    images: ArrayLike,
    key: jax.Array,
    *,
    pad: int = 4,
    flip: bool = True,
    padding_mode: Literal["constant", "reflect"] = "constant",
) -> jax.Array:
    """Crop each image at a random place of its padded self, and mirror it with probability 1/2.

    Args:
        images: [B, H, W, C] of any dtype; raw ones, since zeros are padded before normalisation.
        key: typed key; each image draws its own offset and flip.
        pad: pixels added on each side; 0 for no crop.
        flip: mirror left and right; wrong for digits and letters.
        padding_mode: ``"constant"`` (zeros) or ``"reflect"``.

    Returns:
        Images of the same shape and dtype.

    Raises:
        ValueError: not rank 4, ``pad`` negative or, reflecting, not below the image's size, or an
            unknown ``padding_mode``.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> augment(jnp.ones((2, 32, 32, 3), jnp.uint8), jax.random.key(0)).shape
        (2, 32, 32, 3)
    """
    images = jnp.asarray(images)
    if images.ndim != 4:
        raise ValueError(f"images have shape {images.shape}; augment takes [B, H, W, C]")
    if isinstance(pad, bool) or not isinstance(pad, int) or pad < 0:
        raise ValueError(f"pad={pad!r} must be an integer of at least 0")
    if padding_mode not in ("constant", "reflect"):
        raise ValueError(f"padding_mode={padding_mode!r} must be 'constant' or 'reflect'")
    if padding_mode == "reflect" and pad >= min(images.shape[1:3]):
        raise ValueError(
            f"pad={pad} cannot be reflected from images of {images.shape[1]}x{images.shape[2]}; "
            "lower pad or use padding_mode='constant'"
        )
    return _augment(images, key, pad=pad, flip=flip, padding_mode=padding_mode)


def make_prepare(
    mean: ArrayLike,
    std: ArrayLike,
    *,
    pad: int = 0,
    flip: bool = False,
    padding_mode: Literal["constant", "reflect"] = "constant",
) -> Prepare:
    """Make the one function that training and evaluation turn raw images into input with.

    Args:
        mean: as in ``normalise``.
        std: as in ``normalise``.
        pad: as in ``augment``; 0 for no crop.
        flip: as in ``augment``.
        padding_mode: as in ``augment``.

    Returns:
        ``prepare(images, key=None)``: augments when given a key, and normalises. It is a new
        function at each call, and jitted code that takes it as a static argument compiles anew
        for each: make it once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> prepare = make_prepare(0.5, 0.5, pad=1)
        >>> images = jnp.zeros((2, 8, 8, 1), jnp.uint8)
        >>> prepare(images, jax.random.key(0)).shape, prepare(images).dtype
        ((2, 8, 8, 1), dtype('float32'))
    """

    def prepare(images: jax.Array, key: jax.Array | None = None) -> jax.Array:
        if key is not None and (pad or flip):
            images = augment(images, key, pad=pad, flip=flip, padding_mode=padding_mode)
        return normalise(images, mean, std)

    return prepare


@jax.jit
def _normalise(images: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    return (images.astype(jnp.float32) / 255.0 - mean) / std


@partial(jax.jit, static_argnames=("pad", "flip", "padding_mode"))
def _augment(
    images: jax.Array, key: jax.Array, *, pad: int, flip: bool, padding_mode: str
) -> jax.Array:
    batch, height, width, _ = images.shape
    offset_key, flip_key = jax.random.split(key)
    # Vectors, reshaped: XLA is slow to compile a generator of random numbers over several axes.
    offsets = jax.random.randint(offset_key, (2 * batch,), 0, 2 * pad + 1).reshape((2, batch, 1))
    flipped = jax.random.bernoulli(flip_key, 0.5 if flip else 0.0, (batch,))[:, None]
    columns = jnp.arange(width)
    columns = jnp.where(flipped, width - 1 - columns, columns)
    rows = offsets[0] + jnp.arange(height)
    columns = offsets[1] + columns
    border = (pad, pad)
    padded = jnp.pad(images, ((0, 0), border, border, (0, 0)), mode=padding_mode)
    # Two gathers along one axis each: in a scan on CPU a third of the time of one gather over both
    # axes and a fifth of a vmapped dynamic_slice.
    cropped = jnp.take_along_axis(padded, rows[:, :, None, None], axis=1, mode="clip")
    return jnp.take_along_axis(cropped, columns[:, None, :, None], axis=2, mode="clip")

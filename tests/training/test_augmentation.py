import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.training.augmentation import (
    AlternatingFlip,
    CropAndFlip,
    Standardise,
    augment,
    normalise,
)

MEAN, STD = (0.5, 0.25, 0.1), (0.2, 0.3, 0.4)


def random_images(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def every_view(image, pad, mode):
    """All crops of the padded image and their mirror images, (flipped, down, right) -> bytes."""
    height, width, _ = image.shape
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)), mode=mode)
    views = {}
    for down in range(2 * pad + 1):
        for right in range(2 * pad + 1):
            crop = padded[down : down + height, right : right + width]
            views[False, down, right] = crop.tobytes()
            views[True, down, right] = crop[:, ::-1].tobytes()
    return views


def test_normalise_equals_numpy():
    images = random_images((5, 4, 3, 3))
    expected = (images / 255 - np.array(MEAN)) / np.array(STD)
    normalised = normalise(images, MEAN, STD)
    assert normalised.dtype == jnp.float32
    np.testing.assert_allclose(normalised, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "pad", "flip", "mode"),
    [
        (6, 6, 4, True, "constant"),
        (3, 7, 2, False, "reflect"),
        (7, 3, 1, True, "reflect"),
        (4, 5, 5, False, "constant"),
        (4, 5, 0, True, "constant"),
    ],
)
def test_every_augmented_image_is_a_crop_of_its_own_image(height, width, pad, flip, mode):
    images = random_images((64, height, width, 2))
    result = augment(images, jax.random.key(0), pad=pad, flip=flip, padding_mode=mode)
    assert result.dtype == np.uint8
    for before, after in zip(images, np.asarray(result), strict=True):
        views = every_view(before, pad, mode)
        allowed = {view for (flipped, *_), view in views.items() if flip or not flipped}
        assert after.tobytes() in allowed


def test_every_offset_and_both_flips_come_equally_often():
    image = random_images((6, 6, 1))
    copies = np.broadcast_to(image, (3600, 6, 6, 1))
    found = np.asarray(augment(copies, jax.random.key(0), pad=1))
    views = every_view(image, 1, "constant")
    assert len(set(views.values())) == 18
    counts = {place: 0 for place in views}
    place_of = {view: place for place, view in views.items()}
    for crop in found:
        counts[place_of[crop.tobytes()]] += 1
    # 200 expected each, deviation 13.7; five deviations.
    assert all(130 < count < 270 for count in counts.values())


def test_without_padding_and_flip_nothing_changes():
    images = random_images((3, 5, 5, 3))
    np.testing.assert_array_equal(augment(images, jax.random.key(1), pad=0, flip=False), images)


def test_the_key_decides_and_floats_are_taken_too():
    images = random_images((16, 8, 8, 1)).astype(np.float32)
    first, again, other = (augment(images, jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_standardise_normalises_and_describes_itself():
    images = random_images((8, 8, 8, 3))
    prepare = Standardise(mean=MEAN, std=STD)
    np.testing.assert_array_equal(prepare(images), normalise(images, MEAN, STD))
    told = prepare.describe()
    assert told == json.loads(json.dumps(told))
    assert (told["mean"], told["std"], told["scale"]) == (list(MEAN), list(STD), 255.0)


def test_crop_and_flip_augments_the_images_of_a_batch_and_no_labels():
    images, labels = random_images((8, 8, 8, 3)), np.arange(8)
    key = jax.random.key(0)
    found, kept = jax.jit(CropAndFlip(pad=2, padding_mode="reflect"))((images, labels), key)
    expected = augment(images, key, pad=2, padding_mode="reflect")
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(kept, labels)


@pytest.mark.parametrize(
    ("make", "other"),
    [
        (lambda: Standardise((0.5,), (0.25,)), Standardise((0.4,), (0.25,))),
        (lambda: CropAndFlip(pad=1), CropAndFlip(pad=2)),
    ],
)
def test_equal_numbers_share_a_program(make, other):
    assert make() == make() and hash(make()) == hash(make())
    assert make() != other


def test_both_trace_and_map():
    images = random_images((2, 4, 6, 6, 3))
    keys = jax.random.split(jax.random.key(0), 2)
    mapped = jax.jit(jax.vmap(augment))(images, keys)
    for image, key, result in zip(images, keys, mapped, strict=True):
        np.testing.assert_array_equal(result, augment(image, key))


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.int8])
def test_normalise_refuses_all_but_bytes(dtype):
    with pytest.raises(TypeError, match="not uint8"):
        normalise(np.zeros((2, 4, 4, 1), dtype), 0.5, 0.5)


def test_normalise_refuses_another_number_of_channels():
    images = random_images((2, 4, 4, 3))
    with pytest.raises(ValueError, match="mean has shape"):
        normalise(images, (0.5, 0.5), STD)
    with pytest.raises(ValueError, match="std has shape"):
        normalise(images, MEAN, np.ones((4, 3)))


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((8, 8, 3), {}, "takes .B, H, W, C."),
        ((2, 8, 8, 3), {"pad": -1}, "pad=-1"),
        ((2, 8, 8, 3), {"pad": 1.5}, "pad=1.5"),
        ((2, 8, 8, 3), {"padding_mode": "wrap"}, "padding_mode='wrap'"),
        ((2, 8, 4, 3), {"padding_mode": "reflect"}, "pad=4 cannot be reflected"),
    ],
)
def test_augment_refuses(shape, options, message):
    with pytest.raises(ValueError, match=message):
        augment(np.zeros(shape, np.uint8), jax.random.key(0), **options)


def test_a_square_is_covered_by_the_mean_colour():
    images = random_images((200, 8, 6, 2)) // 2  # no byte is above 127
    images[:, :, :, 1] = 200
    plain = augment(images, jax.random.key(0), pad=0, flip=False)
    covered = np.asarray(augment(images, jax.random.key(0), pad=0, flip=False, cutout=0.5))
    np.testing.assert_array_equal(plain, images)
    colour = int(images[..., 0].mean(dtype=np.float64))
    for image, before in zip(covered, images, strict=True):
        changed = (image[..., 0] != before[..., 0]).nonzero()
        assert (image[..., 1] == 200).all()
        down, right = (each.max() - each.min() + 1 for each in changed)
        assert down <= 3 and right <= 3  # half of the smaller side
        assert set(image[changed][:, 0].tolist()) <= {colour, colour + 1}
    first = {
        tuple(each.min() for each in (a[..., 0] != b[..., 0]).nonzero())
        for a, b in zip(covered, images, strict=True)
    }
    assert {(0, 0), (5, 3)} <= first
    with pytest.raises(ValueError, match="cutout=2 must be from 0 to 1"):
        augment(images, jax.random.key(0), cutout=2)


def test_two_epochs_show_every_image_both_ways():
    images = random_images((64, 2, 3, 1))
    places = jnp.arange(100, 164)
    views = [
        np.asarray(AlternatingFlip()((images, places), places, jnp.int32(epoch))[0])
        for epoch in range(3)
    ]
    mirrored = [(view != images).any((1, 2, 3)) for view in views]
    np.testing.assert_array_equal(mirrored[0], ~mirrored[1])
    np.testing.assert_array_equal(mirrored[0], mirrored[2])
    assert 16 < mirrored[0].sum() < 48
    np.testing.assert_array_equal(views[0][mirrored[0]], images[mirrored[0]][:, :, ::-1])

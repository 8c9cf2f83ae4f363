"""The built-in data sets as tasks."""

import dataclasses

import jax
import numpy as np
import pytest

from rlprune_jax.training import data
from rlprune_jax.training.augmentation import CropAndFlip, normalise
from rlprune_jax.training.image_task import AUGMENTATION, image_task

DIGITS = data.load("digits")


def test_images_stay_bytes_and_are_standardised_for_the_network():
    task = image_task(DIGITS)
    raw = task.sample("test", 3)
    assert raw[0].dtype == np.uint8
    (seen,) = task.objective.network_inputs(raw)
    np.testing.assert_array_equal(seen, normalise(raw[0], DIGITS.mean, DIGITS.std))
    assert task.objective.metric_name == "accuracy"
    assert [task.size(split) for split in ("train", "held_out", "test")] == [1150, 287, 360]


def test_augmentation_is_that_of_the_data_set_unless_told():
    assert image_task(DIGITS).augment == AUGMENTATION["digits"]
    assert not AUGMENTATION["digits"].flip and not AUGMENTATION["mnist"].flip
    own = CropAndFlip(pad=0, flip=True)
    assert image_task(DIGITS, own).augment == own
    assert image_task(dataclasses.replace(DIGITS, name="own")).augment is None
    assert set(AUGMENTATION) == set(data.dataset_names())


def test_an_augmented_batch_keeps_its_kind():
    task = image_task(DIGITS)
    batch = task.sample("train", 4)
    images, labels = task.augment(batch, jax.random.key(0))
    assert (images.shape, images.dtype) == ((4, 8, 8, 1), np.uint8)
    np.testing.assert_array_equal(labels, batch[1])


def test_two_tasks_of_one_data_set_share_programs():
    assert image_task(DIGITS).objective == image_task(DIGITS).objective


def test_what_plan_json_is_told():
    told = image_task(DIGITS).description
    assert told["dataset"] == "digits"
    assert (told["mean"], told["std"]) == (DIGITS.mean, DIGITS.std)


def test_another_metric():
    assert image_task(DIGITS, metric="top5_accuracy").objective.metric_name == "top5_accuracy"
    with pytest.raises(ValueError, match="metric='top6'"):
        image_task(DIGITS, metric="top6")

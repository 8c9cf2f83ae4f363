"""The built-in data sets of images as tasks of classification."""

from rlprune_jax.training.augmentation import CropAndFlip, Standardise
from rlprune_jax.training.data import Dataset
from rlprune_jax.training.task import Metric, Task, classification

AUGMENTATION: dict[str, CropAndFlip] = {
    "digits": CropAndFlip(pad=1, flip=False),
    "mnist": CropAndFlip(pad=2, flip=False),
    "fashion_mnist": CropAndFlip(pad=2, flip=True),
    "cifar10": CropAndFlip(pad=4, flip=True),
    "cifar100": CropAndFlip(pad=4, flip=True),
}
"""Random crops and flips in training, by data set."""


def image_task(
    dataset: Dataset,
    augmentation: CropAndFlip | None = None,
    metric: Metric | str = "accuracy",
) -> Task:
    """Return the task of classifying a data set's images.

    Images stay bytes; they are standardised on the device, before the network.

    Args:
        dataset: as ``data.load`` returns.
        augmentation: in training; that of ``AUGMENTATION`` unless told.
        metric: as in ``classification``.

    Example:
        >>> from rlprune_jax.training import data
        >>> task = image_task(data.load("digits"))
        >>> task.size("train"), task.objective.network_inputs(task.sample("test", 2))[0].shape
        (1150, (2, 8, 8, 1))
    """
    chosen = AUGMENTATION.get(dataset.name) if augmentation is None else augmentation
    return classification(
        tuple(dataset.train),
        tuple(dataset.held_out),
        tuple(dataset.test),
        metric=metric,
        prepare=Standardise(mean=dataset.mean, std=dataset.std),
        augment=chosen,
        description={"dataset": dataset.name, "mean": dataset.mean, "std": dataset.std},
    )

"""Data sets of images as arrays, read without TensorFlow."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from rlprune_jax.checks import require_path, require_seed
from rlprune_jax.places import default_cache_dir
from rlprune_jax.training.array_cache import read_arrays, write_arrays


class Progress(Protocol):
    """Show how far a long reading has come."""

    def __call__(self, done: int, total: int, /) -> None:
        """Take the images decoded and the images in all."""


_DECODED_AT_ONCE = 1000


class Split(NamedTuple):
    """Hold images with their labels.

    Attributes:
        images: uint8[n, H, W, C].
        labels: int32[n], from 0 to ``num_classes - 1``.
    """

    images: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Dataset:
    """Hold a data set in host memory.

    Attributes:
        name: as given to ``load``.
        num_classes: how many classes the labels name.
        mean: per channel, of the training images in [0, 1].
        std: per channel, of the training images in [0, 1].
        train: what to train on.
        held_out: taken from the training images: what to choose by.
        test: what to report on, once.
    """

    name: str
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train: Split
    held_out: Split
    test: Split


class Source(NamedTuple):
    """Hold what is known of a data set.

    Attributes:
        num_classes: how many classes the labels name.
        image_shape: height, width and channels.
        mean: per channel, of the training images in [0, 1].
        std: per channel, of the training images in [0, 1].
        held_out: how many of the training images are held out.
    """

    num_classes: int
    image_shape: tuple[int, int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    held_out: int


# Means and deviations over all pixels of the training images (a test recomputes those of digits;
# the others are the usual published ones, deviations over pixels and not within images).
_SOURCES = {
    "digits": Source(10, (8, 8, 1), (0.3051,), (0.3756,), 287),
    "mnist": Source(10, (28, 28, 1), (0.1307,), (0.3081,), 5000),
    "fashion_mnist": Source(10, (28, 28, 1), (0.2860,), (0.3530,), 5000),
    "cifar10": Source(10, (32, 32, 3), (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), 5000),
    "cifar100": Source(100, (32, 32, 3), (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), 5000),
}


def dataset_names() -> tuple[str, ...]:
    """List the names that ``load`` knows."""
    return tuple(_SOURCES)


def describe(name: str) -> Source:
    """Describe a data set without reading it.

    Raises:
        ValueError: an unknown name.

    Example:
        >>> describe("cifar10").image_shape
        (32, 32, 3)
    """
    if not isinstance(name, str) or name not in _SOURCES:
        raise ValueError(f"data set {name!r} is unknown; choose from {', '.join(_SOURCES)}")
    return _SOURCES[name]


def load(
    name: str,
    data_dir: str | os.PathLike[str] | None = None,
    *,
    held_out: int | None = None,
    seed: int = 0,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Dataset:
    """Read a data set, split into train, held-out and test.

    ``digits`` comes with scikit-learn; its 1,797 images are split once and for all into 1,437 for
    training and 360 for testing, class by class. The others are read from a folder prepared by
    TFDS in ArrayRecord format, decoded once and kept in ``cache_dir``; ``data_dir`` is never
    written to.

    Args:
        name: one of ``dataset_names()``.
        data_dir: folder of prepared data sets, not read for digits; else ``$TFDS_DATA_DIR``, else
            ``~/tensorflow_datasets``. Unused for ``digits``.
        held_out: how many training images are held out; 5,000 unless told, of ``digits`` 287.
        seed: of the permutation that chooses them.
        cache_dir: where decoded arrays are kept; else ``$RLPRUNE_CACHE_DIR``, else
            ``~/.cache/rlprune_jax``.
        progress: told ``(images decoded, images in all)`` while decoding.

    Returns:
        The data set, images uint8[n, H, W, C] and labels int32[n] in NumPy arrays.

    Raises:
        ValueError: an unknown ``name``; a ``seed`` that is no integer from 0 to 4294967295;
            ``held_out`` not below the number of training images; a ``cache_dir`` inside
            ``data_dir``; a damaged, truncated or foreign data set.
        FileNotFoundError: no such folder, or the data set is not in it.

    Example:
        >>> load("digits").train.images.shape
        (1150, 8, 8, 1)
    """
    source = describe(name)
    require_seed("seed", seed)
    if data_dir is not None:
        require_path("data_dir", data_dir)
    if held_out is None:
        held_out = source.held_out
    if isinstance(held_out, bool) or not isinstance(held_out, int) or held_out < 0:
        raise ValueError(f"held_out={held_out!r} must be an integer of at least 0")
    if name == "digits":
        train, test = _digits()
    else:
        train, test = _prepared(name, source, data_dir, cache_dir, progress)
    if held_out >= len(train.labels):
        raise ValueError(
            f"held_out={held_out} leaves nothing of the {len(train.labels)} training images of "
            f"{name!r}; lower it"
        )
    order = np.random.default_rng(seed).permutation(len(train.labels))
    held, kept = order[:held_out], np.sort(order[held_out:])
    return Dataset(
        name=name,
        num_classes=source.num_classes,
        mean=source.mean,
        std=source.std,
        train=Split(images=train.images[kept], labels=train.labels[kept]),
        held_out=Split(images=train.images[held], labels=train.labels[held]),
        test=test,
    )


def _digits() -> tuple[Split, Split]:
    """Scikit-learn's digits, every fifth image of each class for testing."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    labels = bunch.target.astype(np.int32)
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    # By class, at random within each: every fifth then takes a fifth of each class.
    order = np.lexsort((np.random.default_rng(0).random(len(labels)), labels))
    test = np.zeros(len(labels), bool)
    test[order[::5]] = True
    train = Split(images=images[~test], labels=labels[~test])
    return train, Split(images=images[test], labels=labels[test])


def _prepared(
    name: str,
    source: Source,
    data_dir: str | os.PathLike[str] | None,
    cache_dir: str | os.PathLike[str] | None,
    progress: Progress | None,
) -> tuple[Split, Split]:
    """Train and test of a prepared TFDS data set, from the cache where it is there and whole."""
    root = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
    root = root.expanduser().resolve()
    folder, sizes = _find_prepared(name, root)
    cache = Path(cache_dir).expanduser() if cache_dir is not None else default_cache_dir()
    if cache.resolve().is_relative_to(root):
        raise ValueError(
            f"cache_dir={str(cache)!r} lies inside data_dir={str(root)!r}, which is only read; "
            "name another folder"
        )
    cached = cache / f"{name}-{folder.name}-{_fingerprint(folder)}.arrays"
    splits = _splits(read_arrays(cached), sizes)
    if splits is None:
        splits = _decode(folder, source, sizes, progress)
        write_arrays(
            cached,
            {
                f"{split}_{kind}": array
                for split, arrays in splits.items()
                for kind, array in arrays._asdict().items()
            },
        )
    return splits["train"], splits["test"]


def _find_prepared(name: str, root: Path) -> tuple[Path, dict[str, int]]:
    """Folder of the newest prepared version, and how many images its splits hold."""
    how = (
        f"prepare it once, with TensorFlow: pip install 'rlprune_jax[data]' && tfds build {name} "
        f"--file_format=array_record --data_dir={root}; "
        "or name the folder that holds it by --data-dir or TFDS_DATA_DIR"
    )
    if not root.is_dir():
        raise FileNotFoundError(f"data_dir={str(root)!r} is no folder; to get {name!r}, {how}")
    versions = [path.parent for path in (root / name).glob("*.*.*/dataset_info.json")]
    if not versions:
        raise FileNotFoundError(f"data set {name!r} is not in data_dir={str(root)!r}; {how}")
    folder = max(versions, key=lambda path: [int(part) for part in path.name.split(".")])
    try:
        info = json.loads((folder / "dataset_info.json").read_text())
        file_format = info.get("fileFormat", "tfrecord")
        sizes = {
            split["name"]: sum(int(length) for length in split["shardLengths"])
            for split in info["splits"]
        }
        wanted = {"train": sizes["train"], "test": sizes["test"]}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{folder / 'dataset_info.json'} is damaged or foreign ({error!r}); {how}"
        ) from error
    if file_format != "array_record":
        raise ValueError(
            f"{folder} is prepared as {file_format!r}, which only TensorFlow reads; {how}"
        )
    return folder, wanted


def _fingerprint(folder: Path) -> str:
    """Hash of where a prepared data set lies and of its files' sizes and times."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    return hashlib.sha256(json.dumps([str(folder), stats]).encode()).hexdigest()[:16]


def _splits(arrays: dict[str, np.ndarray] | None, sizes: dict[str, int]) -> dict[str, Split] | None:
    """Cached arrays as splits; ``None`` where they are not what the data set holds."""
    if arrays is None:
        return None
    try:
        splits = {
            name: Split(images=arrays[f"{name}_images"], labels=arrays[f"{name}_labels"])
            for name in sizes
        }
    except KeyError:
        return None
    whole = all(
        split.images.dtype == np.uint8
        and split.images.ndim == 4
        and split.labels.dtype == np.int32
        and len(split.images) == len(split.labels) == sizes[name]
        for name, split in splits.items()
    )
    return splits if whole else None


def _decode(
    folder: Path, source: Source, sizes: dict[str, int], progress: Progress | None
) -> dict[str, Split]:
    """Read and decode every image of a prepared data set."""
    import tensorflow_datasets as tfds

    total, done = sum(sizes.values()), 0
    splits = {}
    for name, size in sizes.items():
        images = np.empty((size, *source.image_shape), np.uint8)
        labels = np.empty(size, np.int32)
        with _naming_the_damage(name, folder):
            records = tfds.builder_from_directory(folder).as_data_source(split=name)
        for start in range(0, size, _DECODED_AT_ONCE):
            indices = range(start, min(start + _DECODED_AT_ONCE, size))
            with _naming_the_damage(name, folder):
                for index, example in zip(
                    indices, records.__getitems__(list(indices)), strict=True
                ):
                    if example["image"].shape != source.image_shape:
                        raise ValueError(f"an image of shape {example['image'].shape}")
                    images[index], labels[index] = example["image"], example["label"]
            done += len(indices)
            if progress is not None:
                progress(done, total)
        if size == 0 or labels.min() < 0 or labels.max() >= source.num_classes:
            raise ValueError(
                f"split {name!r} in {folder} is empty or has labels outside 0 to "
                f"{source.num_classes - 1}; prepare the data set again"
            )
        splits[name] = Split(images=images, labels=labels)
    return splits


@contextmanager
def _naming_the_damage(split: str, folder: Path) -> Iterator[None]:
    """Turn whatever reading a bad file raises into one error that says which and what to do."""
    try:
        yield
    except ImportError:
        raise
    except Exception as error:
        # ArrayRecord, the protocol buffers and Pillow each fail in their own way, with types as
        # plain as RuntimeError.
        raise ValueError(
            f"split {split!r} in {folder} cannot be read ({type(error).__name__}: {error}); a "
            "data file is truncated, damaged or foreign: remove the folder and prepare the data "
            "set again, or copy it anew"
        ) from error

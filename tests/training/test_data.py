import json
import os
from pathlib import Path

import numpy as np
import pytest
from prepared_data import write_prepared
from sklearn.datasets import load_digits

from rlprune_jax.sealed import pack_arrays
from rlprune_jax.training import data


def random_split(count, shape=(28, 28, 1), seed=0):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, *shape), dtype=np.uint8)
    return images, rng.integers(0, 10, count).astype(np.int32)


@pytest.fixture
def splits():
    return {"train": random_split(24, seed=0), "test": random_split(7, seed=1)}


@pytest.fixture
def root(tmp_path, splits):
    write_prepared(tmp_path / "tfds", "fashion_mnist", splits)
    return tmp_path / "tfds"


@pytest.fixture
def load(root, tmp_path):
    def load(name="fashion_mnist", data_dir=root, **options):
        options = {"held_out": 4, "cache_dir": tmp_path / "cache"} | options
        return data.load(name, data_dir, **options)

    return load


def train_file(root):
    (file,) = root.glob("fashion_mnist/*/*train.array_record*")
    return file


def rows(images):
    return sorted(image.tobytes() for image in images)


def test_digits_are_scikit_learns_digits_split_without_overlap():
    dataset = data.load("digits")
    bunch = load_digits()
    parts = (dataset.train, dataset.held_out, dataset.test)
    assert [len(part.labels) for part in parts] == [1150, 287, 360]
    together = np.concatenate([part.images for part in parts])
    assert together.dtype == np.uint8
    assert (together.min(), together.max()) == (0, 255)
    original = np.round(bunch.images[..., None] * 255 / 16).astype(np.uint8)
    assert rows(together) == rows(original)
    labels = np.concatenate([part.labels for part in parts])
    assert labels.dtype == np.int32
    of_image = {image.tobytes(): label for image, label in zip(original, bunch.target, strict=True)}
    assert all(of_image[i.tobytes()] == n for i, n in zip(together, labels, strict=True))


def test_digits_test_split_holds_a_fifth_of_each_class():
    dataset = data.load("digits")
    share = np.bincount(dataset.test.labels) / np.bincount(load_digits().target)
    np.testing.assert_allclose(share, 0.2, atol=0.006)  # one image of 180


def test_digits_mean_and_deviation_are_those_of_the_training_images():
    dataset = data.load("digits", held_out=0)
    scaled = dataset.train.images / 255
    np.testing.assert_allclose(dataset.mean, scaled.mean((0, 1, 2)), atol=1e-4)
    np.testing.assert_allclose(dataset.std, scaled.std((0, 1, 2)), atol=1e-4)


def test_the_seed_moves_the_held_out_images_and_nothing_else():
    first, again, other = (data.load("digits", seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.held_out.images, again.held_out.images)
    np.testing.assert_array_equal(first.test.images, other.test.images)
    assert rows(first.held_out.images) != rows(other.held_out.images)
    for dataset in (first, other):
        assert len(dataset.train.labels) + len(dataset.held_out.labels) == 1437


@pytest.mark.parametrize("seed", [-1, "x", 1.5])
def test_a_seed_that_cannot_be_is_named(seed):
    with pytest.raises(ValueError, match=f"seed={seed!r} must be"):
        data.load("digits", seed=seed)


def test_every_data_set_has_one_number_per_channel():
    for name in data.dataset_names():
        source = data._SOURCES[name]
        assert len(source.mean) == len(source.std) == source.image_shape[-1]


def test_prepared_data_come_back_as_written(load, splits):
    dataset = load(held_out=0)
    for part, name in ((dataset.train, "train"), (dataset.test, "test")):
        np.testing.assert_array_equal(part.images, splits[name][0])
        np.testing.assert_array_equal(part.labels, splits[name][1])
    assert len(dataset.held_out.labels) == 0
    assert (dataset.name, dataset.num_classes) == ("fashion_mnist", 10)


def test_held_out_and_train_share_out_the_training_images(load, splits):
    dataset = load(held_out=5)
    assert dataset.held_out.images.shape == (5, 28, 28, 1)
    both = np.concatenate([dataset.train.images, dataset.held_out.images])
    assert rows(both) == rows(splits["train"][0])


def test_colour_images(tmp_path):
    images, labels = random_split(6, (32, 32, 3))
    splits = {"train": (images, labels), "test": (images, labels)}
    write_prepared(tmp_path / "tfds", "cifar10", splits, version="3.0.2")
    dataset = data.load("cifar10", tmp_path / "tfds", held_out=0, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(dataset.train.images, images)


def test_the_second_load_decodes_nothing(load, monkeypatch):
    first = load()
    monkeypatch.setattr(data, "_decode", lambda *_: pytest.fail("decoded again"))
    second = load()
    np.testing.assert_array_equal(first.train.images, second.train.images)
    np.testing.assert_array_equal(first.test.labels, second.test.labels)


def test_changed_files_are_decoded_again(load, root):
    load()
    file = train_file(root)
    status = file.stat()
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000))
    seen = []
    load(progress=lambda done, total: seen.append((done, total)))
    assert seen == [(24, 31), (31, 31)]


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 not a zip", None])
def test_a_corrupt_cache_is_rebuilt(load, tmp_path, content):
    first = load()
    (cached,) = (tmp_path / "cache").iterdir()
    whole = cached.read_bytes()
    cached.write_bytes(whole[: len(whole) // 2] if content is None else content)
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        second = load()
    np.testing.assert_array_equal(first.train.images, second.train.images)
    assert cached.stat().st_size == len(whole)


def test_a_cache_of_other_arrays_is_rebuilt(load, tmp_path):
    first = load()
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(b"".join(pack_arrays({"train_images": np.zeros(3)}, "cache", cached.name)))
    np.testing.assert_array_equal(first.train.images, load().train.images)


def test_the_data_folder_is_only_read(load, root):
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*")}
    load()
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*")} == before
    with pytest.raises(ValueError, match="lies inside data_dir"):
        load(cache_dir=root / "fashion_mnist")


def test_a_cache_that_cannot_be_written_only_warns(load, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.warns(RuntimeWarning, match="RLPRUNE_CACHE_DIR"):
        assert len(load(cache_dir=tmp_path / "file" / "below").test.labels) == 7


def test_folders_from_the_environment(root, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(root))
    monkeypatch.setenv("RLPRUNE_CACHE_DIR", str(tmp_path / "elsewhere"))
    assert len(data.load("fashion_mnist", held_out=0).train.labels) == 24
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1


def test_the_newest_version_is_read(load, root):
    newer = {"train": random_split(5), "test": random_split(3)}
    write_prepared(root, "fashion_mnist", newer, version="3.0.12")
    assert len(load(held_out=0).train.labels) == 5


def test_an_exception_of_the_progress_function_passes_through(load):
    def stop(done, total):
        raise StopAsyncIteration("enough")

    with pytest.raises(StopAsyncIteration):
        load(progress=stop)


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="'imagenet' is unknown; choose from digits, mnist"):
        data.load("imagenet")


@pytest.mark.parametrize("held_out", [-1, 24, 1000, 2.5, True])
def test_held_out_must_leave_training_images(load, held_out):
    with pytest.raises(ValueError, match="held_out="):
        load(held_out=held_out)


def test_missing_folder_and_missing_data_set_say_how_to_get_them(load, tmp_path):
    for name, data_dir in (("cifar10", tmp_path / "nowhere"), ("cifar100", tmp_path / "tfds")):
        with pytest.raises(FileNotFoundError) as caught:
            load(name, data_dir)
        message = str(caught.value)
        for part in (
            f"tfds build {name} --file_format=array_record --data_dir={data_dir}",
            "pip install 'rlprune_jax[data]'",
            "--data-dir",
            "TFDS_DATA_DIR",
        ):
            assert part in message


# Cut to 0, to below ArrayRecord's least size, at a block boundary, and close to the end.
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9])
def test_a_truncated_data_file_is_named(load, root, share):
    file = train_file(root)
    os.truncate(file, int(file.stat().st_size * share))
    with pytest.raises(ValueError, match=r"'train' in .*fashion_mnist.* truncated"):
        load()


def test_a_missing_data_file_is_named(load, root):
    train_file(root).unlink()
    with pytest.raises(ValueError, match=r"'train' in .*fashion_mnist"):
        load()


def test_flipped_bytes_in_a_data_file_are_noticed(load, root):
    file = train_file(root)
    content = bytearray(file.read_bytes())
    for position in range(1200, 1264):
        content[position] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match="damaged"):
        load()


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"splits": 3}', "{"])
def test_a_damaged_description_is_named(load, root, text):
    (file,) = root.glob("*/*/dataset_info.json")
    file.write_text(text)
    with pytest.raises(ValueError, match=r"dataset_info.json is damaged or foreign"):
        load()


def test_the_tensorflow_format_is_refused(load, root):
    (file,) = root.glob("*/*/dataset_info.json")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"fileFormat": "tfrecord"}))
    with pytest.raises(ValueError, match="'tfrecord', which only TensorFlow reads"):
        load()


def test_foreign_images_and_labels_are_refused(tmp_path):
    images, labels = random_split(6)
    small = (np.ascontiguousarray(images[:, :14, :14]), labels)
    beyond = (images, np.full(6, 10))
    for place, train, message in (("a", small, "14, 14, 1"), ("b", beyond, "outside 0 to 9")):
        root = tmp_path / place
        write_prepared(root, "mnist", {"train": train, "test": (images, labels)})
        with pytest.raises(ValueError, match=message):
            data.load("mnist", root, held_out=0, cache_dir=tmp_path / "cache")


def test_a_path_may_be_a_string(root, tmp_path):
    dataset = data.load("fashion_mnist", str(root), held_out=0, cache_dir=str(tmp_path / "cache"))
    assert Path(root).exists() and len(dataset.test.labels) == 7

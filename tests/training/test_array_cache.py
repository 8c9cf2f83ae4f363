import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.training import array_cache

ARRAYS = {"images": np.arange(600, dtype=np.uint8).reshape(6, 10, 10), "labels": np.arange(6)}


def test_arrays_come_back_as_written(tmp_path):
    path = tmp_path / "new" / "arrays.npz"
    assert array_cache.write_arrays(path, ARRAYS)
    read = array_cache.read_arrays(path)
    assert read.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(read[name], array)
        assert read[name].dtype == array.dtype
    assert [file.name for file in path.parent.iterdir()] == ["arrays.npz"]


def test_a_missing_file_is_none_without_a_warning(tmp_path, recwarn):
    assert array_cache.read_arrays(tmp_path / "none.npz") is None
    assert not recwarn


@given(share=st.floats(0, 0.999))
def test_every_truncation_is_noticed(tmp_path_factory, share):
    path = tmp_path_factory.mktemp("cache") / "arrays.npz"
    array_cache.write_arrays(path, ARRAYS)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.warns(RuntimeWarning, match="decoded again"):
        assert array_cache.read_arrays(path) is None


def test_a_flipped_byte_in_an_array_is_noticed(tmp_path):
    path = tmp_path / "arrays.npz"
    array_cache.write_arrays(path, ARRAYS)
    content = bytearray(path.read_bytes())
    content[400] ^= 1
    path.write_bytes(content)
    with pytest.warns(RuntimeWarning, match="decoded again"):
        assert array_cache.read_arrays(path) is None


def test_foreign_files_are_none(tmp_path):
    path = tmp_path / "arrays.npz"
    with open(path, "wb") as file:
        np.save(file, np.arange(3))
    with pytest.warns(RuntimeWarning, match="decoded again"):
        assert array_cache.read_arrays(path) is None
    np.savez(path, pickled=np.array([{}], dtype=object))
    with pytest.warns(RuntimeWarning, match="decoded again"):
        assert array_cache.read_arrays(path) is None


def test_a_failed_write_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch):
    path = tmp_path / "arrays.npz"
    array_cache.write_arrays(path, ARRAYS)

    def full(*_, **__):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(RuntimeWarning, match="no space left"):
        assert not array_cache.write_arrays(path, {"labels": np.zeros(3)})
    assert [file.name for file in tmp_path.iterdir()] == ["arrays.npz"]
    np.testing.assert_array_equal(array_cache.read_arrays(path)["labels"], ARRAYS["labels"])

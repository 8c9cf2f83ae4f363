"""Files written whole, locks, and JSON."""

import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.files import (
    UnwritableError,
    to_json,
    try_lock,
    write_atomically,
)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path):
    write_atomically(tmp_path / "a", "one")
    write_atomically(tmp_path / "a", b"two")
    assert (tmp_path / "a").read_text() == "two"
    with pytest.raises(UnwritableError, match="cannot write"):
        write_atomically(tmp_path / "missing" / "a", "one")
    (tmp_path / "folder").mkdir()
    with pytest.raises(UnwritableError):
        write_atomically(tmp_path / "folder", "one")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder"]


def test_atomic_write_where_directories_cannot_be_opened(tmp_path, monkeypatch):
    opened = os.open

    def refuse(path, *arguments, **options):
        if os.path.isdir(path):
            raise PermissionError(13, "Permission denied")  # as Windows does
        return opened(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UnwritableError):
        write_atomically(tmp_path / "a", "one")
    monkeypatch.delattr(os, "O_DIRECTORY")
    write_atomically(tmp_path / "a", "two")
    assert (tmp_path / "a").read_text() == "two"


def test_a_lock_is_held_once(tmp_path):
    lock = try_lock(tmp_path / "lock")
    assert try_lock(tmp_path / "lock") is None
    lock.release()
    again = try_lock(tmp_path / "lock")
    assert again is not None
    again.release()
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        try_lock(tmp_path / "file" / "lock")


def test_json_of_arrays_and_numbers():
    value = {1: (np.float32(0.5), jnp.arange(2)), "nan": [np.nan, -np.inf], "path": Path("a")}
    assert to_json(value) == {"1": [0.5, [0, 1]], "nan": [None, None], "path": "a"}
    assert to_json(np.True_) is True
    kept = to_json({"a": [jnp.float32(np.inf), np.nan]}, keep_nonfinite=True)
    assert kept["a"][0] == np.inf and np.isnan(kept["a"][1])

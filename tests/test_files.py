"""Files written whole, and JSON."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.files import UnwritableError, to_json, write_atomically


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


def test_json_of_arrays_and_numbers():
    value = {1: (np.float32(0.5), jnp.arange(2)), "nan": [np.nan, -np.inf], "path": Path("a")}
    assert to_json(value) == {"1": [0.5, [0, 1]], "nan": [None, None], "path": "a"}
    assert to_json(np.True_) is True

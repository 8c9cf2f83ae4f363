"""Named arrays kept whole in one file."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from rlprune_jax.files import write_atomically
from rlprune_jax.private import check_private, private_folder
from rlprune_jax.sealed import DamagedFileError, open_arrays, pack_arrays, read_regular

_KIND = "cache"


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write arrays to a sealed file at once.

    Use it for a cache. The file is whole or not there; one that cannot be written costs time, not
    results, so it warns instead of raising.

    Args:
        path: the file; its folder is made, for this user alone, and nothing is written to one
            that others can write to. Its name is what it belongs to.
        arrays: name -> array of any shape and a plain dtype.

    Returns:
        Whether the file was written.
    """
    try:
        private_folder(path.parent)
        write_atomically(path, pack_arrays(arrays, _KIND, path.name))
    except OSError as error:
        warnings.warn(
            f"cannot cache decoded arrays in {path.parent} ({error}); they will be decoded again "
            "next time; set RLPRUNE_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    return True


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read every array of a sealed file, checked.

    Args:
        path: the file.

    Returns:
        Name -> array, or ``None`` for a file that is missing, damaged or of another name; a file
        that is there and cannot be read also gives a warning.
    """
    try:
        content = read_regular(path)
        check_private(path.parent)
        return open_arrays(content, path, _KIND, path.name)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, DamagedFileError) as error:
        warnings.warn(
            f"cached arrays in {path} cannot be read ({error}); they are decoded again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None

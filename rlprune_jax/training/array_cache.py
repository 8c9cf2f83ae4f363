"""Named arrays kept whole in one file."""

import os
import tempfile
import warnings
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> bool:
    """Write arrays to an ``.npz`` file at once.

    Use it for a cache. The file is whole or not there; one that cannot be written costs time, not
    results, so it warns instead of raising.

    Args:
        path: the file; folders above it are made.
        arrays: name -> array of any shape and a plain dtype.

    Returns:
        Whether the file was written.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        with os.fdopen(handle, "wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except OSError as error:
        warnings.warn(
            f"cannot cache decoded arrays in {path.parent} ({error}); they will be decoded again "
            "next time; set RLPRUNE_CACHE_DIR to a writable folder",
            RuntimeWarning,
            stacklevel=2,
        )
        return False
    finally:
        if temporary is not None and os.path.exists(temporary):
            os.unlink(temporary)
    return True


def read_arrays(path: Path) -> dict[str, np.ndarray] | None:
    """Read every array of an ``.npz`` file, checksums included.

    Args:
        path: the file.

    Returns:
        Name -> array, or ``None`` for a file that is missing, damaged or no ``.npz`` of arrays;
        a file that is there and cannot be read also gives a warning.
    """
    if not path.exists():
        return None
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        # TypeError: an .npy file under this name loads as a bare array.
        warnings.warn(
            f"cached arrays in {path} cannot be read ({error}); they are decoded again",
            RuntimeWarning,
            stacklevel=2,
        )
        return None

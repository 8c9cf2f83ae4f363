"""What is wrong with a stored file, and how it is read."""

import os

from rlprune_jax.checks import require_path
from rlprune_jax.sealed import DamagedFileError, read_regular


class ExportError(ValueError):
    """Raised when a file or an export cannot be used."""


def read_stored(path: str | os.PathLike, writer: str) -> bytes:
    """Return the bytes of a stored file.

    Args:
        path: file to read.
        writer: name of the function that writes such files, for the message.

    Raises:
        ExportError: there is no such file, or it cannot be read.
    """
    require_path("path", path)
    try:
        return read_regular(path)
    except DamagedFileError as error:
        raise ExportError(f"{error}, and name a file that {writer} has written") from error
    except OSError as error:
        raise ExportError(
            f"{os.fspath(path)} cannot be read: {error.strerror or error}; "
            f"name a file that {writer} has written"
        ) from error

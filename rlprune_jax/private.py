"""Folders that nobody else can write to, for caches; nothing here imports JAX."""

import os
import stat
from pathlib import Path


class SharedFolderError(PermissionError):
    """Say why a folder is not one's own alone."""


def private_folder(path: str | os.PathLike) -> Path:
    """Make a folder that only this user can use.

    Use it for caches: whoever can write there decides what is read from it, and a compiled program
    in it is code. What is missing of the path is made with mode 0700.

    Args:
        path: of the folder.

    Raises:
        SharedFolderError: it belongs to another user, or others can write to it or replace it; the
            message says which and what to do.
        OSError: it cannot be made.
    """
    folder = make_folder(path)
    check_private(folder)
    return folder


def make_folder(path: str | os.PathLike) -> Path:
    """Make what is missing of a path, with mode 0700.

    Args:
        path: of the folder.

    Raises:
        OSError: it cannot be made.
    """
    folder = Path(path)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    for each in reversed(missing):  # one by one, since parents would have the usual mode
        each.mkdir(mode=0o700, exist_ok=True)
    return folder


def check_private(path: str | os.PathLike) -> None:
    """Refuse a folder that others can write to.

    Where the system knows no users, as on Windows, nothing is refused.

    Args:
        path: of a folder that is there.

    Raises:
        SharedFolderError: it belongs to another user, or others can write to it or replace it.
        OSError: it cannot be looked at.
    """
    if not hasattr(os, "geteuid"):
        return
    folder = Path(path).resolve()
    found = folder.stat()
    if found.st_uid != os.geteuid():
        raise SharedFolderError(
            f"{folder} belongs to user {found.st_uid} and this is user {os.geteuid()}; choose a "
            "folder of your own (RLPRUNE_CACHE_DIR)"
        )
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SharedFolderError(
            f"{folder} can be written by others (mode {stat.S_IMODE(found.st_mode):03o}); delete "
            "what is in it and forbid that (chmod 700), or choose another (RLPRUNE_CACHE_DIR)"
        )
    for above in folder.parents:
        mode = above.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise SharedFolderError(
                f"{folder} can be replaced by others, since everybody can write to {above}; choose "
                "another folder (RLPRUNE_CACHE_DIR)"
            )

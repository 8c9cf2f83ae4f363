"""Refuse a storage of Optuna's that cannot be opened, before anything is trained for it."""

import importlib.util
from pathlib import Path

from rlprune_jax.addresses import hide_password, secret_of, with_driver


def check_storage(storage: str) -> None:
    """Refuse a file or database that cannot be opened.

    A file is made where there is none. Nothing here imports JAX.

    Args:
        storage: path of a journal file, or address of a database.

    Raises:
        ValueError: Optuna is not installed, or the storage cannot be opened; the message names it
            without its password.
    """
    if importlib.util.find_spec("optuna") is None:
        raise ValueError(
            f"optuna={hide_password(storage)!r} needs Optuna, which is not installed; "
            "pip install 'rlprune_jax[optuna]'"
        )
    secret = secret_of(storage)
    problem = _database_problem(secret) if "://" in secret else _file_problem(secret)
    if problem:
        raise ValueError(
            f"optuna={hide_password(storage)!r} cannot be opened: {hide_password(problem)}; give a "
            "file in a folder that can be written, sqlite:///FILE, or the address of a database "
            "that is running and whose driver is installed"
        )


def _file_problem(storage: str) -> str:
    if not storage:
        return "it is empty"
    path = Path(storage).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("ab").close()
    except OSError as error:
        return str(error.strerror or error)
    return ""


def _database_problem(address: str) -> str:
    # Optuna's own way to databases.
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        engine = create_engine(with_driver(address))
        try:
            engine.connect().close()
        finally:
            engine.dispose()
    except (SQLAlchemyError, ImportError, OSError, ValueError) as error:
        return str(error).strip().splitlines()[0]
    return ""

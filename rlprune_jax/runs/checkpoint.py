"""Save pytrees safely against kill -9, and restore exactly those.

The only module that imports Orbax.
"""

import contextlib
import errno
import json
import logging
import os
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from rlprune_jax.checks import require_count, require_path
from rlprune_jax.files import Closing, unwritable
from rlprune_jax.pytree import flatten_with_paths, host_array, is_key
from rlprune_jax.runs.run import Json
from rlprune_jax.sealed import DamagedFileError, seal, seal_of, unseal
from rlprune_jax.types import PyTree

_FORMAT = "rlprune_jax.runs.checkpoint/2"


class CheckpointError(RuntimeError):
    """Say which checkpoint is missing or damaged."""


class Checkpointer(Closing):
    """Save pytrees under increasing steps and keep the newest.

    Use it for a state that takes long to compute; `run_stage` does so for the parts of a run. A
    save returns when the step is on disk. Until then it lies under a temporary name, so a
    process killed at any moment leaves every earlier step whole and no half-written one. What is
    restored equals what was saved, bit for bit.

    Leaves may be JAX and NumPy arrays of any dtype and size, typed random keys and Python numbers,
    in any container that JAX knows. Written with Orbax's ``CheckpointManager``; beside the arrays
    lie path, shape, dtype and checksum of every leaf, which `restore` compares first, and whom the
    step belongs to, all under a checksum of its own.

    Args:
        directory: where the steps go; made if missing.
        keep: number of newest steps to keep.
        owners: names of what the steps belong to, such as a run and its stage. Steps are saved
            under the first; those of others are not restored. Without any all are.

    Raises:
        ValueError: ``keep`` is below 1.
        UnwritableError: the directory cannot be made, or a file has its name.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> with Checkpointer(folder.name) as checkpointer:
        ...     checkpointer.save(3, {"w": jnp.ones(2)}, {"seed": 0})
        ...     state, metadata = checkpointer.restore({"w": jnp.zeros(2)})
        >>> state["w"], metadata
        (Array([1., 1.], dtype=float32), {'seed': 0})
        >>> folder.cleanup()
    """

    def __init__(self, directory: str | os.PathLike, keep: int = 2, owners: Sequence[str] = ()):
        require_count("keep", keep)
        require_path("directory", directory)
        self._owners = tuple(owners)
        self.directory = Path(directory).expanduser().absolute()
        if self.directory.exists() and not self.directory.is_dir():
            # Orbax would take the file for a directory without steps until the first save.
            reason = NotADirectoryError(errno.ENOTDIR, "it is a file, not a directory")
            raise unwritable(self.directory, reason)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            cleanup_tmp_directories=True,
            # States are small: writing in the foreground costs tens of milliseconds and leaves no
            # thread behind that could fail later or outlive an interrupted run.
            enable_async_checkpointing=False,
        )
        try:
            with _quiet():
                self._manager = ocp.CheckpointManager(
                    self.directory, options=options, item_names=("state", "metadata")
                )
        except OSError as error:
            raise unwritable(self.directory, error) from error

    def save(self, step: int, tree: PyTree, metadata: Mapping[str, object] | None = None) -> None:
        """Write a pytree and JSON metadata as one step.

        The oldest step beyond ``keep`` is deleted.

        Args:
            step: number above that of every saved step.
            tree: any pytree of arrays, typed random keys and Python numbers.
            metadata: anything that has a JSON form; NaN and infinity are kept.

        Raises:
            ValueError: ``step`` is negative or not above that of `latest_step`.
            TypeError: a leaf is no array or number, or the metadata has no JSON form.
            CheckpointError: the step could not be written.
        """
        latest = self.latest_step()
        if step < 0 or (latest is not None and step <= latest):
            raise ValueError(f"step={step} must be above the latest saved step {latest}")
        leaves, described = {}, []
        for path, leaf in flatten_with_paths(tree).items():
            entry = _describe(path, leaf)
            array = _to_save(leaf)
            if isinstance(array, np.ndarray):
                entry["crc32"] = _checksum(array)
            described.append(entry)
            leaves[path] = array
        try:
            text = json.dumps(metadata or {}, default=_plain)
        except (TypeError, ValueError) as error:
            raise TypeError(f"metadata has no JSON form: {error}") from error
        content = seal(
            {"leaves": described, "metadata": json.loads(text)},
            _FORMAT,
            self._owners[0] if self._owners else "",
            step=step,
        )
        try:
            with _quiet():
                self._manager.save(
                    step,
                    args=ocp.args.Composite(
                        state=ocp.args.StandardSave(_storable(leaves)),
                        metadata=ocp.args.JsonSave(content),
                    ),
                )
        except Exception as error:
            raise CheckpointError(
                f"cannot write step {step} below {self.directory}: {error}; "
                "make room or choose another directory (--runs-dir for experiments)"
            ) from error

    def latest_step(self) -> int | None:
        """Return the newest whole step, or None without any."""
        return self._manager.latest_step()

    def restore(self, like: PyTree, step: int | None = None) -> tuple[PyTree, Json]:
        """Read a step back, bit for bit.

        Args:
            like: pytree with the structure, shapes and dtypes to expect. Arrays or
                `jax.ShapeDtypeStruct` (as of `jax.eval_shape`); a leaf's sharding is that of the
                restored leaf, and NumPy leaves come back as NumPy.
            step: which step; the newest by default.

        Returns:
            The pytree, with the containers of ``like``, and the metadata.

        Raises:
            ValueError: the checkpoint holds other paths, shapes or dtypes; the message names the
                first that differs.
            CheckpointError: there is no such step, or it is damaged or was not written by `save`.
        """
        chosen = self.latest_step() if step is None else step
        if chosen is None or chosen not in self._manager.all_steps():
            wanted = "no checkpoint" if step is None else f"no step {step}"
            raise CheckpointError(f"{wanted} below {self.directory}; start without restoring")
        content = self._metadata(chosen)
        described = {entry["path"]: entry for entry in content["leaves"]}
        flat = flatten_with_paths(like)
        self._compare(chosen, flat, described)
        restored = []
        for path, value in self._leaves(chosen, flat).items():
            if isinstance(value, np.ndarray) and _checksum(value) != described[path].get("crc32"):
                raise self._damaged(chosen, f"the checksum of {path!r} differs")
            restored.append(_like(flat[path], value, described[path]))
        return jax.tree.unflatten(jax.tree.structure(like), restored), content["metadata"]

    def forget(self) -> None:
        """Delete every step, so that all begins anew."""
        with _quiet():
            for step in sorted(self._manager.all_steps()):
                self._manager.delete(step)

    def close(self) -> None:
        """Free what Orbax holds.

        Nothing is left to write, since `save` has waited for the disk.
        """
        with _quiet():
            self._manager.close()

    def _damaged(self, step: int, reason: str) -> CheckpointError:
        return CheckpointError(
            f"the checkpoint {self.directory / str(step)} is damaged or not one of ours: {reason}; "
            "delete it to go on from an earlier one, or choose another directory (--runs-dir for "
            "experiments)"
        )

    def _metadata(self, step: int) -> Json:
        try:
            with _quiet():
                content = self._manager.restore(
                    step, args=ocp.args.Composite(metadata=ocp.args.JsonRestore())
                ).metadata
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error
        said = seal_of(content) or {}
        try:
            found = unseal(content, "its metadata", _FORMAT)
        except DamagedFileError as error:
            raise self._damaged(step, str(error)) from error
        if said.get("step") != step:
            raise self._damaged(step, f"it was saved as step {said.get('step')}")
        if self._owners and said.get("of") not in self._owners:
            raise self._damaged(
                step, f"it belongs to {said.get('of')!r}, not to {self._owners[0]!r}"
            )
        if not {"leaves", "metadata"} <= set(found) or not _are_whole(found["leaves"]):
            raise self._damaged(step, "its metadata does not describe all leaves")
        return found

    def _compare(self, step: int, like: dict[str, PyTree], stored: dict[str, Json]) -> None:
        where = f"step {step} below {self.directory}"
        for path, leaf in like.items():
            if path not in stored:
                raise ValueError(f"{where} does not hold the expected leaf {path!r}")
            expected = _describe(path, leaf)
            for what in ("shape", "dtype"):
                if stored[path][what] != expected[what]:
                    raise ValueError(
                        f"{where} holds {path!r} with {what} {stored[path][what]}, "
                        f"not {expected[what]}"
                    )
        for path in stored:
            if path not in like:
                raise ValueError(f"{where} holds a leaf {path!r} that is not expected")

    def _leaves(self, step: int, like: dict[str, PyTree]) -> dict[str, PyTree]:
        targets = {path: _target(leaf) for path, leaf in like.items()}
        try:
            with _quiet():
                state = self._manager.restore(
                    step,
                    args=ocp.args.Composite(state=ocp.args.StandardRestore(_storable(targets))),
                ).state
            return {path: state[path] if each.size else each for path, each in targets.items()}
        except Exception as error:
            raise self._damaged(step, _first_line(error)) from error


def read_checkpoint(directory: str | os.PathLike) -> dict[str, PyTree]:
    """Return the leaves of any Orbax checkpoint by path.

    Use it for weights that were trained elsewhere. The folder is that of one checkpoint, as
    ``StandardCheckpointer`` writes it, or of a ``CheckpointManager``, whose newest step is read;
    also one of ours.

    Args:
        directory: to read.

    Returns:
        Path, keys joined by slashes, to array.

    Raises:
        CheckpointError: there is no such folder, or Orbax cannot read it.
    """
    require_path("directory", directory)
    folder = Path(directory).expanduser().absolute()
    if not folder.is_dir():
        raise CheckpointError(f"{directory} is no folder; name one that Orbax has written")
    try:
        with _quiet(), warnings.catch_warnings():
            # Orbax warns that it restores onto this process' devices, which is what is wanted.
            warnings.simplefilter("ignore")
            tree = ocp.PyTreeCheckpointer().restore(_item_of(folder))
    except Exception as error:
        raise CheckpointError(
            f"{directory} is no checkpoint that Orbax can read: {_first_line(error)}; name the "
            "folder that its StandardCheckpointer or CheckpointManager has written"
        ) from error
    leaves = flatten_with_paths(tree)
    return {path.strip("/"): leaf for path, leaf in leaves.items() if leaf is not None}


def _item_of(folder: Path) -> Path:
    """Return the folder of a checkpoint's arrays, of the newest step where there are several."""
    steps = [each for each in folder.iterdir() if each.is_dir() and each.name.isdigit()]
    if steps:
        folder = max(steps, key=lambda step: int(step.name))
    for item in ("state", "default"):
        if (folder / item).is_dir():
            return folder / item
    return folder


def _describe(path: str, leaf: PyTree) -> Json:
    """Return path, shape and dtype of a leaf as JSON."""
    if type(leaf) in (bool, int, float, complex):
        return {"path": path, "shape": [], "dtype": type(leaf).__name__}
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise TypeError(
            f"leaf {path!r} is a {type(leaf).__name__}; only arrays, keys and numbers can be saved"
        )
    entry: Json = {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}
    if isinstance(leaf, jax.Array) and is_key(leaf):
        entry["impl"] = str(jax.random.key_impl(leaf))
    return entry


def _are_whole(entries: object) -> bool:
    return isinstance(entries, list) and all(map(_is_whole, entries))


def _is_whole(entry: object) -> bool:
    """Return whether an entry says what `_describe` says."""
    if not isinstance(entry, dict):
        return False
    is_key_entry = str(entry.get("dtype")).startswith("key")
    return {"path", "shape", "dtype"} | ({"impl"} if is_key_entry else set()) <= set(entry)


def _to_save(leaf: PyTree) -> np.ndarray | jax.Array:
    """Return a host copy, or the array where other hosts hold parts."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        return jax.random.key_data(leaf) if is_key(leaf) else leaf
    return host_array(leaf)


def _target(leaf: PyTree) -> PyTree:
    """Return what Orbax fills, a host array or this host's shards."""
    if type(leaf) in (bool, int, float, complex):
        return np.asarray(leaf)
    abstract = jax.ShapeDtypeStruct(
        leaf.shape, leaf.dtype, sharding=getattr(leaf, "sharding", None)
    )
    if is_key(leaf):
        abstract = jax.eval_shape(jax.random.key_data, abstract)
    if abstract.sharding is not None and not abstract.sharding.is_fully_addressable:
        return abstract
    return np.zeros(abstract.shape, abstract.dtype)


def _storable(leaves: dict[str, PyTree]) -> dict[str, PyTree]:
    """Return the leaves without those of size zero, or a substitute.

    Orbax stores neither arrays of size zero nor an empty tree.
    """
    return {path: leaf for path, leaf in leaves.items() if leaf.size} or {"": np.zeros(1)}


def _like(leaf: PyTree, value: PyTree, entry: Json) -> PyTree:
    """Return a restored array as the kind of a given leaf."""
    if type(leaf) in (bool, int, float, complex):
        return type(leaf)(value[()])
    if isinstance(leaf, np.generic):
        return value[()]
    if isinstance(leaf, np.ndarray) or isinstance(value, jax.Array):
        return value
    array = jax.random.wrap_key_data(value, impl=entry["impl"]) if is_key(leaf) else value
    sharding = getattr(leaf, "sharding", None)
    # A committed array in place of an uncommitted one would make jitted functions compile again.
    if sharding is None or not getattr(leaf, "committed", True):
        return jnp.asarray(array)
    return jax.device_put(array, sharding)


def _checksum(array: np.ndarray) -> int:
    return zlib.crc32(np.ascontiguousarray(array).view(np.uint8).reshape(-1).data)


def _plain(value: PyTree) -> PyTree:
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"{type(value).__name__}: {value!r}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep Orbax's notes, written through absl, off the terminal."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)

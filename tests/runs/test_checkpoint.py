"""Checkpoints: round trips, strictness, damage, kill -9."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from flax import struct

import rlprune_jax
from rlprune_jax.files import UnwritableError
from rlprune_jax.pytree import flatten_with_paths, host_array, tree_hash
from rlprune_jax.runs.checkpoint import Checkpointer, CheckpointError


class Moments(NamedTuple):
    mean: jax.Array
    count: jax.Array


@struct.dataclass
class State:
    params: dict
    optimizer: tuple
    moments: Moments
    key: jax.Array
    mask: dict
    name: str = struct.field(pytree_node=False, default="agent")


def state(seed=0, width=4):
    key = jax.random.key(seed)
    params = {"Dense_0": {"kernel": jax.random.normal(key, (3, width)), "bias": jnp.ones(width)}}
    return State(
        params=params,
        optimizer=optax.adam(1e-3).init(params),
        moments=Moments(jnp.bfloat16(0.1), jnp.int32(seed)),
        key=jax.random.split(key, 3),
        mask={"Dense_0": {"kernel": params["Dense_0"]["kernel"] > 0, "bias": jnp.array(True)}},
    )


def assert_same(left, right):
    assert jax.tree.structure(left) == jax.tree.structure(right)
    assert tree_hash(left) == tree_hash(right)
    for path, leaf in flatten_with_paths(left).items():
        assert type(leaf) is type(flatten_with_paths(right)[path]), path


def test_round_trip_of_containers_dtypes_and_keys(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(1, state(), {"stage": "search", "best": -np.inf, "seen": np.arange(2)})
    with Checkpointer(tmp_path) as checkpointer:
        restored, metadata = checkpointer.restore(jax.tree.map(jnp.zeros_like, state(7)))
    assert_same(restored, state())
    assert metadata == {"stage": "search", "best": -np.inf, "seen": [0, 1]}
    # The key draws what it would have drawn.
    np.testing.assert_array_equal(
        jax.random.uniform(restored.key[1]), jax.random.uniform(state().key[1])
    )


def test_round_trip_of_odd_leaves(tmp_path):
    tree = {
        "empty": jnp.zeros((0, 3)),
        "numpy": np.arange(3, dtype=np.int64),
        "scalar": np.float32(0.25),
        "numbers": (3, 0.5, True),
        "none": None,
        "nothing": {},
        "half": jnp.arange(3, dtype=jnp.float16),
        "eighth": np.arange(3).astype(ml_dtypes.float8_e4m3fn),
        "complex": jnp.array([1 + 2j]),
        "special": jnp.array([jnp.nan, jnp.inf, -0.0]),
        "a key/with.odd 'characters' ü": jnp.uint8(255),
        "rbg": jax.random.key(0, impl="rbg"),
        "transposed": np.arange(6.0).reshape(2, 3).T,
    }
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, tree)
        restored, metadata = checkpointer.restore(tree)
    assert_same(restored, tree)
    assert metadata == {}


@pytest.mark.parametrize("tree", [{}, None, jnp.zeros(0), jnp.float32(3.0), ()])
def test_round_trip_of_trees_of_no_or_one_leaf(tmp_path, tree):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, tree)
        assert_same(checkpointer.restore(tree)[0], tree)


def test_abstract_target_and_sharding(tmp_path):
    mesh = jax.make_mesh((1,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("x"))
    abstract = jax.eval_shape(state)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state())
        restored, _ = checkpointer.restore(abstract)
        assert_same(restored, state())
        assert not restored.params["Dense_0"]["bias"].committed
        bias = jax.device_put(jnp.ones(4), sharding)
        checkpointer.save(1, {"bias": bias})
        again, _ = checkpointer.restore({"bias": bias})
    assert again["bias"].sharding == sharding


def test_a_restored_state_compiles_nothing_again(tmp_path):
    step = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf * 2, tree))
    first = step(state().params)
    second = step(first)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, first)
        restored, _ = checkpointer.restore(first)
    with jax.no_tracing():
        again = step(restored)
    assert_same(again, second)


def test_newest_steps_are_kept(tmp_path):
    with Checkpointer(tmp_path / "a" / "b", keep=2) as checkpointer:
        assert checkpointer.latest_step() is None
        for step in (1, 5, 7):
            checkpointer.save(step, {"step": jnp.int32(step)})
        assert checkpointer.latest_step() == 7
        assert int(checkpointer.restore({"step": jnp.int32(0)})[0]["step"]) == 7
        assert int(checkpointer.restore({"step": jnp.int32(0)}, step=5)[0]["step"]) == 5
        with pytest.raises(CheckpointError, match="no step 1"):
            checkpointer.restore({"step": jnp.int32(0)}, step=1)
    assert {path.name for path in (tmp_path / "a" / "b").iterdir()} == {"5", "7"}


def test_steps_must_increase(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(3, {"a": 1})
        for step in (3, 2, -1):
            with pytest.raises(ValueError, match=f"step={step} must be above .* 3"):
                checkpointer.save(step, {"a": 1})


def test_what_cannot_be_saved_is_refused(tmp_path):
    with Checkpointer(tmp_path) as checkpointer:
        with pytest.raises(TypeError, match="'a/b' is a str"):
            checkpointer.save(0, {"a": {"b": "text"}})
        with pytest.raises(TypeError, match="metadata"):
            checkpointer.save(0, {"a": 1}, {"what": object()})
        assert checkpointer.latest_step() is None
        with pytest.raises(CheckpointError, match="no checkpoint below"):
            checkpointer.restore({"a": 1})
    with pytest.raises(ValueError, match="keep=0"):
        Checkpointer(tmp_path, keep=0)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.replace(params={"Dense_1": s.params["Dense_0"]}), "params/Dense_1/bias"),
        (lambda s: state(width=5), r"params/Dense_0/bias' with shape \[4\], not \[5\]"),
        (
            lambda s: s.replace(moments=s.moments._replace(count=jnp.float32(0))),
            "moments/count' with dtype int32, not float32",
        ),
        (lambda s: s.replace(key=jax.random.key_data(s.key)), "'key' with shape"),
        (lambda s: s.replace(key=jax.random.split(jax.random.key(0, impl="rbg"), 3)), "dtype key"),
        (lambda s: s.replace(mask={}), "'mask/Dense_0/bias' that is not expected"),
        (lambda s: s.replace(optimizer=s.optimizer[0]), "optimizer/count"),
    ],
)
def test_another_structure_is_refused_with_the_path(tmp_path, change, message):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state())
        with pytest.raises(ValueError, match=message):
            checkpointer.restore(change(state()))


def files_of(step_path):
    return sorted(path for path in step_path.rglob("*") if path.is_file())


def damage(path, how):
    if how == "truncated":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif how == "flipped":
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0x10
        path.write_bytes(content)
    else:
        path.unlink()


# Orbax may leave a callback behind when reading fails.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("how", ["truncated", "flipped", "missing"])
def test_damage_anywhere_is_an_error_or_harmless(tmp_path, how):
    tree = {"w": jnp.arange(64.0), "m": jnp.ones(5, bool)}
    with Checkpointer(tmp_path / "good") as checkpointer:
        checkpointer.save(4, tree)
    refused = set()
    names = [path.relative_to(tmp_path / "good") for path in files_of(tmp_path / "good")]
    for name in names:
        shutil.rmtree(tmp_path / "bad", ignore_errors=True)
        shutil.copytree(tmp_path / "good", tmp_path / "bad")
        damage(tmp_path / "bad" / name, how)
        with Checkpointer(tmp_path / "bad") as checkpointer:
            try:
                restored, _ = checkpointer.restore(tree)
            except CheckpointError as error:
                refused.add(name)
                missing = "no checkpoint below" in str(error)
                assert missing or ("bad/4" in str(error) and "delete it" in str(error))
            else:
                # Some files repeat what others say: whatever comes back is all of it.
                assert_same(restored, tree)
    assert any("metadata" in name.parts for name in refused)
    assert any("state" in name.parts for name in refused)


@pytest.mark.parametrize("name", ["path", "shape", "dtype", "crc32", "impl", "leaves", "metadata"])
def test_a_damaged_name_in_the_metadata_is_damage(tmp_path, name):
    tree = {"w": jnp.arange(4.0), "key": jax.random.key(0)}
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(4, tree)
    (file,) = (file for file in files_of(tmp_path) if '"crc32"' in file.read_text("latin-1"))
    file.write_text(file.read_text().replace(f'"{name}"', f'"{name[:-1]}?"'))
    with (
        Checkpointer(tmp_path) as checkpointer,
        pytest.raises(CheckpointError, match="is damaged or not one of ours"),
    ):
        checkpointer.restore(tree)


def test_containers_may_change_while_paths_agree(tmp_path):
    class Swapped(NamedTuple):
        count: jax.Array
        mean: jax.Array

    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, Moments(jnp.float32(0.5), jnp.int32(2)))
        restored, _ = checkpointer.restore(Swapped(jnp.int32(0), jnp.float32(0)))
    assert_same(restored, Swapped(jnp.int32(2), jnp.float32(0.5)))


def test_a_foreign_checkpoint_is_refused(tmp_path):
    import orbax.checkpoint as ocp

    tree = {"w": jnp.ones(3)}
    with ocp.CheckpointManager(tmp_path / "plain") as manager:
        manager.save(2, args=ocp.args.StandardSave(tree))
    (tmp_path / "empty" / "2").mkdir(parents=True)
    (tmp_path / "file").mkdir()
    (tmp_path / "file" / "2").write_text("not a directory")
    for name in ("plain", "empty", "file"):
        with (
            Checkpointer(tmp_path / name) as checkpointer,
            pytest.raises(CheckpointError, match=f"{name}.*(choose another|start without)"),
        ):
            checkpointer.restore(tree)


def test_a_place_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match=r"file/checkpoints.*--runs-dir"):
        Checkpointer(tmp_path / "file" / "checkpoints")
    with pytest.raises(UnwritableError, match=r"file: it is a file, not a directory; choose"):
        Checkpointer(tmp_path / "file")


KILLED = """
import sys
import jax, jax.numpy as jnp
from rlprune_jax.runs.checkpoint import Checkpointer
checkpointer = Checkpointer(sys.argv[1])
for step in range(int(sys.argv[2]), 10**6):
    tree = {str(i): jnp.full((64, 256), step, jnp.float32) for i in range(8)}
    checkpointer.save(step, tree, {"step": step})
    print(step, flush=True)
"""


def test_kill_leaves_the_latest_whole_step(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(rlprune_jax.__file__).parents[1])}
    like = {str(i): jnp.zeros((64, 256)) for i in range(8)}
    done = -1
    for attempt in range(3):
        command = [sys.executable, "-c", KILLED, str(tmp_path), str(done + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
            for _ in range(2):
                done = int(writer.stdout.readline())
            time.sleep(0.013 * (1 + attempt))  # into the middle of a save
            writer.send_signal(signal.SIGKILL)
            done = int((b"%d\n" % done + writer.stdout.read()).split()[-1])
        with Checkpointer(tmp_path) as checkpointer:
            latest = checkpointer.latest_step()
            # At most the report of the last save was lost, never the save.
            assert latest in (done, done + 1)
            restored, metadata = checkpointer.restore(like)
            assert metadata == {"step": latest}
            for leaf in restored.values():
                np.testing.assert_array_equal(leaf, np.full((64, 256), latest, np.float32))
            done = latest


def test_saving_a_megabyte_is_fast(tmp_path):
    tree = {f"layer_{i}": jnp.ones((64, 256)) for i in range(16)}
    seconds = []
    with Checkpointer(tmp_path) as checkpointer:
        for step in range(5):
            # Of the processor: what else runs on the machine does not count.
            start = time.process_time()
            checkpointer.save(step, tree)
            seconds.append(time.process_time() - start)
    assert min(seconds) < 0.2  # 0.06 s on 2 idle cores, of the clock as well


def test_nothing_is_logged(tmp_path, capfd, caplog):
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, state())
        checkpointer.restore(state())
    assert not caplog.records
    assert capfd.readouterr() == ("", "")


def test_host_copies_do_not_alias(tmp_path):
    array = np.zeros(3)
    with Checkpointer(tmp_path) as checkpointer:
        checkpointer.save(0, {"a": array})
        array[:] = 1
        np.testing.assert_array_equal(host_array(checkpointer.restore({"a": array})[0]["a"]), 0)

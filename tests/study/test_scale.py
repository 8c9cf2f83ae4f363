"""Studies across devices and processes, and through kill -9; each in processes of its own."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from study_jobs import job, read_cells, settings

from rlprune_jax.study import initialize, run_study
from rlprune_jax.study.distributed import process_settings

HERE = Path(__file__).parent
SEEDS = (3, 1)
PRELUDE = f"""
import sys, time
sys.path.insert(0, {str(HERE)!r})
import jax, numpy as np
from study_jobs import job, read_cells, settings
from rlprune_jax.study import run_study, initialize
SEEDS = {SEEDS}
"""


def start(program, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + program],
        env=os.environ | {"PYTHONPATH": str(HERE.parents[1])} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return out


@pytest.fixture(scope="module")
def whole():
    return run_study(job, settings(), SEEDS, strategy="vmap")


def cells(directory):
    return sorted(np.concatenate([read_cells(f) for f in (directory / "chunks").iterdir()]))


@pytest.mark.slow
def test_initial_policies_on_two_devices_do_not_wait_for_each_other_forever():
    # Jaxlib's batched QR on two devices of one process hung here in one call of a few.
    program = """
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from rlprune_jax.search.policy import orthogonal
draw = lambda key: orthogonal(1.0)(key, (64, 64))
spec = PartitionSpec("devices")
keys = jax.random.split(jax.random.key(0), (16, 16))
one = jax.jit(draw)(keys[3, 5])
mesh = Mesh(jax.devices(), ("devices",))
both = jax.vmap(jax.vmap(draw))
many = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False))
for _ in range(40):
    found = jax.block_until_ready(many(keys))
assert jnp.abs(found[3, 5] - one).max() < 1e-6
print("done", len(jax.devices()))
"""
    process = start(program, JAX_NUM_CPU_DEVICES="2")
    try:
        assert "done 2" in process.communicate(timeout=120)[0]
    finally:
        process.kill()


@pytest.mark.slow
def test_eight_devices_equal_one_and_do_not_talk(whole, tmp_path):
    program = f"""
from rlprune_jax.study.program import compile_block, traced_columns
assert len(jax.devices()) == 8
found = run_study(job, settings(), SEEDS)
np.savez({str(tmp_path / "found.npz")!r}, **found.metrics)
for strategy in ("vmap", "map"):
    block = compile_block(job, traced_columns(settings(), ()), {{}}, None, settings=16, seeds=2,
                          strategy=strategy, devices=jax.devices())
    text = block.compiled.as_text()
    assert "num_partitions=8" in text, text[:500]
    print(text)
"""
    out = finish(start(program, JAX_NUM_CPU_DEVICES="8"))
    assert "HloModule" in out
    collective = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter|partition-id"
    assert re.findall(collective.removesuffix("|partition-id"), out) == []
    found = np.load(tmp_path / "found.npz")
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_two_processes_of_two_devices_finish_save_and_restore(whole, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = """
assert initialize("127.0.0.1:{port}", 2, {process})
assert len(jax.local_devices()) == 2 and len(jax.devices()) == 4
first = run_study(job, settings(), SEEDS, directory={directory!r}, chunk=4)
again = run_study(job, settings(), SEEDS, directory={directory!r})
assert np.isfinite(first.metrics["loss"]).all()
assert all(np.array_equal(first.metrics[name], again.metrics[name]) for name in first.metrics)
print(first.cells_run, again.cells_run)
"""
    processes = [
        start(
            program.format(port=port, process=process, directory=str(tmp_path)),
            JAX_NUM_CPU_DEVICES="2",
        )
        for process in range(2)
    ]
    assert [finish(process).split() for process in processes] == [["22", "0"], ["22", "0"]]
    assert cells(tmp_path) == list(range(44))
    assert (tmp_path / "table.parquet").exists()


@pytest.mark.slow
def test_kill_nine_in_the_middle_and_resume_runs_every_cell_once(whole, tmp_path):
    program = f"""
def tick(cells, note):
    print(cells, note, flush=True)
    time.sleep(0.3)  # so that the kill meets it at work
result = run_study(job, settings(), SEEDS, directory={str(tmp_path)!r}, chunk=2,
                   strategy="vmap", tick=tick)
print("end", result.cells_run)
"""
    process = start(program)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    process.send_signal(signal.SIGKILL)
    process.communicate()
    finished = len(cells(tmp_path))
    assert 0 < finished < 44
    again = run_study(job, settings(), SEEDS, directory=tmp_path, strategy="vmap")
    assert again.cells_run == 44 - finished
    assert cells(tmp_path) == list(range(44))
    for name, values in whole.metrics.items():
        np.testing.assert_allclose(again.metrics[name], values, rtol=1e-5, atol=1e-6)


def test_the_shares_of_all_processes_are_everything_once():
    assert sorted(i for process in range(3) for i in process_settings(10, process, 3)) == list(
        range(10)
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("host:1", None, 0), "give all three"),
        (("host:1", 2, 2), "process_id=2"),
        ((None, 2, 0), "without a coordinator"),
    ],
)
def test_half_a_cluster_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        initialize(*arguments)


def test_a_single_process_does_not_wait_for_others():
    began = time.monotonic()
    assert initialize() is False
    assert time.monotonic() - began < 1

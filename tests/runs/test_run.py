"""A run in memory behaves as one on disk."""

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlprune_jax.runs.run import MemoryRun, is_past, metrics_record
from rlprune_jax.runs.run_directory import open_run_at

stages = st.sampled_from(["dense", "search"])
numbers = st.integers(0, 4)
operations = st.one_of(
    st.tuples(st.just("append_metrics"), stages, numbers, st.floats()),
    st.tuples(st.just("rewind_metrics"), stages, numbers),
    st.tuples(st.just("write_result"), st.floats()),
)


def perform(run, operation):
    name, *arguments = operation
    if name == "append_metrics":
        *place, value = arguments
        run.append_metrics(*place, {"loss": np.float64(value), "parts": (value, jnp.arange(2))})
    elif name == "write_result":
        run.write_result({"accuracy": arguments[0], "kept": (1, 2)})
    else:
        run.rewind_metrics(*arguments)


@given(st.lists(operations, max_size=12))
def test_memory_and_disk_agree(tmp_path_factory, operations):
    memory = MemoryRun({"sizes": (1, 2)})
    with open_run_at(tmp_path_factory.mktemp("run") / "mine", {"sizes": (1, 2)}) as disk:
        for operation in operations:
            perform(memory, operation)
            perform(disk, operation)
            assert memory.metrics() == disk.metrics()
            assert memory.metrics("dense") == disk.metrics("dense")
            assert memory.result() == disk.result()
            assert memory.is_finished == disk.is_finished
        assert memory.config == disk.config


def test_a_run_in_memory_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with MemoryRun() as run:
        assert run.checkpoints is None and run.config == {}
        run.append_metrics("dense", 1, {"loss": 0.5})
        run.write_result({"accuracy": 1.0})
    assert not any(tmp_path.iterdir())


def test_what_is_returned_is_a_copy():
    run = MemoryRun()
    values = {"sizes": [1]}
    run.append_metrics("dense", 1, values)
    run.write_result(values)
    values["sizes"].append(2)
    run.metrics()[0]["sizes"].append(3)
    run.result()["sizes"].append(3)
    assert run.metrics()[0]["sizes"] == run.result()["sizes"] == [1]


def test_names_of_arguments_are_refused():
    with pytest.raises(ValueError, match=r"must not hold \['stage', 'step'\].*rename"):
        metrics_record("dense", 1, {"stage": 1, "step": 2})


def test_past_is_later_in_the_same_stage():
    record = {"stage": "dense", "step": 3}
    assert [is_past(record, "dense", step) for step in (2, 3, 4)] == [True, False, False]
    assert not is_past(record, "search", 0)

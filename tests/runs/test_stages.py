"""Stages: resuming, divergence, runs in memory, options."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from rlprune_jax.runs import stages
from rlprune_jax.runs.checkpoint import Checkpointer
from rlprune_jax.runs.run import MemoryRun
from rlprune_jax.runs.run_directory import open_run_at
from rlprune_jax.runs.stages import DivergenceError, StageOptions, find_divergence, run_stage


class Counting(NamedTuple):
    """A sum over the numbers of the steps, and the calls that made it."""

    total: np.ndarray
    count: int


def start():
    return Counting(np.zeros(2), 0)


def advance(state, begin, count):
    total = state.total + sum(range(begin, begin + count))
    state = Counting(total, state.count + count)
    return state, [(begin + count, {"loss": 1 / (1 + state.count)})]


def diverging(at, kind=np.nan):
    """Training whose loss and weights are lost from step ``at`` on."""

    def advance_until(state, begin, count):
        state, rows = advance(state, begin, count)
        if begin + count >= at:
            state = state._replace(total=state.total + kind)
            rows = [(step, {"loss": kind}) for step, _ in rows]
        return state, rows

    return advance_until


OFTEN = StageOptions(chunk=2, save_seconds=0)


def same(left, right):
    return left.count == right.count and np.array_equal(left.total, right.total)


def test_a_stage_takes_all_steps_in_memory_and_on_disk(tmp_path):
    memory = MemoryRun()
    found = run_stage(memory, "dense", start(), 7, advance, OFTEN)
    assert same(found, Counting(np.full(2, 21.0), 7))
    assert [record["step"] for record in memory.metrics("dense")] == [2, 4, 6, 7]
    with open_run_at(tmp_path / "mine", {}) as disk:
        assert same(run_stage(disk, "dense", start(), 7, advance, OFTEN), found)
        assert disk.metrics() == memory.metrics()


@pytest.mark.parametrize("broken_off", [1, 2, 3])
def test_an_interrupted_stage_ends_as_one_that_was_not(tmp_path, broken_off):
    calls = 0

    def interrupted(state, begin, count):
        nonlocal calls
        calls += 1
        if calls > broken_off:
            raise KeyboardInterrupt
        return advance(state, begin, count)

    with open_run_at(tmp_path / "mine", {}) as run:
        with pytest.raises(KeyboardInterrupt):
            run_stage(run, "dense", start(), 7, interrupted, OFTEN)
        begun = []

        def noticed(state, begin, count):
            begun.append(begin)
            return advance(state, begin, count)

        found = run_stage(run, "dense", start(), 7, noticed, OFTEN)
        assert begun[0] == 2 * broken_off
        assert same(found, Counting(np.full(2, 21.0), 7))
        assert [record["step"] for record in run.metrics("dense")] == [2, 4, 6, 7]


def test_a_finished_stage_takes_no_step_and_goes_on_to_more(tmp_path):
    def never(state, begin, count):
        raise AssertionError

    with open_run_at(tmp_path / "mine", {}) as run:
        first = run_stage(run, "dense", start(), 4, advance, OFTEN)
        assert same(run_stage(run, "dense", start(), 4, never, OFTEN), first)
        assert run_stage(run, "dense", start(), 7, advance, OFTEN).count == 7
        with pytest.raises(ValueError, match="'dense' has taken 7 steps, more than total=4; ask"):
            run_stage(run, "dense", start(), 4, never, OFTEN)


def test_checkpoints_keep_their_distance(tmp_path):
    saved = []
    with open_run_at(tmp_path / "mine", {}) as run:

        def looked(state, begin, count):
            # By name: a second manager of the folder would clean up what the first one is writing.
            saved.extend(each.name for each in (run.checkpoints / "dense").glob("[0-9]*"))
            return advance(state, begin, count)

        run_stage(run, "dense", start(), 6, looked, StageOptions(chunk=2, save_seconds=1e9))
        assert not saved
        with Checkpointer(run.checkpoints / "dense") as checkpointer:
            assert checkpointer.latest_step() == 6


def test_a_polite_signal_saves_the_steps_that_are_done(tmp_path, monkeypatch):
    class EndedError(BaseException):
        pass

    def end():
        if ending:
            raise EndedError

    def asked(state, begin, count):
        ending.extend([True] * (begin == 2))
        return advance(state, begin, count)

    ending: list[bool] = []
    monkeypatch.setattr(stages, "is_ending", lambda: bool(ending))
    monkeypatch.setattr(stages, "end_if_asked", end)
    rarely = StageOptions(chunk=2, save_seconds=1e9)
    with open_run_at(tmp_path / "mine", {}) as run:
        with pytest.raises(EndedError):
            run_stage(run, "dense", start(), 7, asked, rarely)
        with Checkpointer(run.checkpoints / "dense") as checkpointer:
            assert checkpointer.latest_step() == 4
        ending.clear()
        found = run_stage(run, "dense", start(), 7, advance, rarely)
    assert same(found, Counting(np.full(2, 21.0), 7))


@pytest.mark.parametrize("kind, shown", [(np.nan, "nan"), (np.inf, "inf")])
def test_divergence_stops_and_saves_nothing(tmp_path, kind, shown):
    message = f"'dense' diverged: the loss is {shown} at step 6; lower the learning rate"
    with open_run_at(tmp_path / "mine", {}) as run:
        for _ in range(2):  # the second start finds what is sound and ends the same way
            with pytest.raises(DivergenceError, match=message):
                run_stage(run, "dense", start(), 10, diverging(5, kind), OFTEN)
            assert [record["loss"] for record in run.metrics("dense")] == [1 / 3, 1 / 5, None]
            with Checkpointer(run.checkpoints / "dense") as checkpointer:
                state, _ = checkpointer.restore(start())
                assert same(state, Counting(np.full(2, 6.0), 4))
        # With a cure it goes on from there.
        found = run_stage(run, "dense", start(), 10, advance, OFTEN)
        assert same(found, Counting(np.full(2, 45.0), 10))
    with pytest.raises(DivergenceError, match=message):
        run_stage(MemoryRun(), "dense", start(), 10, diverging(5, kind), OFTEN)


def test_divergence_stops_between_two_checkpoints(tmp_path):
    options = StageOptions(chunk=2, save_seconds=1e9)
    with open_run_at(tmp_path / "mine", {}) as run:
        with pytest.raises(DivergenceError, match="at step 4"):
            run_stage(run, "dense", start(), 100, diverging(3), options)
        with Checkpointer(run.checkpoints / "dense") as checkpointer:
            assert checkpointer.latest_step() is None


def test_weights_are_checked_where_no_loss_is_recorded(tmp_path):
    def silent(state, begin, count):
        return diverging(3)(state, begin, count)[0], []

    with open_run_at(tmp_path / "mine", {}) as run:
        with pytest.raises(DivergenceError, match="'total' holds NaN"):
            run_stage(run, "dense", start(), 6, silent, OFTEN)
        with Checkpointer(run.checkpoints / "dense") as checkpointer:
            assert checkpointer.latest_step() == 2


def test_a_checkpoint_that_diverged_is_refused(tmp_path):
    with open_run_at(tmp_path / "mine", {}) as run:
        place, owners = run.checkpoints / "dense", run.owners("dense")
        with Checkpointer(place, owners=owners) as checkpointer:
            checkpointer.save(4, Counting(np.array([0.0, np.nan]), 4))
        with pytest.raises(
            DivergenceError,
            match=r"of stage 'dense' at step 4 .*'total' holds NaN; delete .*/dense and lower",
        ):
            run_stage(run, "dense", start(), 10, advance, OFTEN)


def test_a_search_may_hold_nan(tmp_path):
    options = StageOptions(chunk=2, save_seconds=0, check=None)
    with open_run_at(tmp_path / "mine", {}) as run:
        for total in (6, 8):
            state = run_stage(run, "search", start(), total, diverging(0), options)
            assert np.isnan(state.total).all() and state.count == total


def test_a_check_of_ones_own():
    def patient(state, rows):
        return "the loss is above 0.3" if any(row["loss"] > 0.3 for _, row in rows) else ""

    with pytest.raises(DivergenceError, match=r"the loss is above 0\.3; lower"):
        run_stage(MemoryRun(), "x", start(), 6, advance, StageOptions(chunk=2, check=patient))


@pytest.mark.parametrize(
    "leaf",
    [
        np.float32("nan"),
        float("nan"),
        complex(0, np.nan),
        jnp.array([0, jnp.nan], jnp.bfloat16),
        np.array([np.nan], ml_dtypes.float8_e4m3fn),
        np.array([np.nan * 1j]),
    ],
)
def test_nan_is_found_in_every_kind_of_leaf(leaf):
    assert find_divergence({"a": (1, {"b": leaf})}, ()) == "'a/1/b' holds NaN"


def test_sound_leaves_are_no_divergence():
    state = {
        "best": -jnp.inf,
        "key": jax.random.key(0),
        "mask": np.array([True]),
        "count": jnp.int32(3),
        "numbers": (1, 0.5, True, 2j),
        "none": None,
        "empty": jnp.zeros((0, 3)),
    }
    rows = [(1, {"loss": jnp.ones(3), "accuracy": np.nan}), (2, {})]
    assert find_divergence(state, rows) == ""
    assert find_divergence(None, rows) == ""


def test_one_of_several_losses_is_enough():
    rows = [(1, {"loss": np.ones(3)}), (2, {"loss": [1.0, -np.inf, 0.0]})]
    assert find_divergence(None, rows) == "the loss is -inf at step 2"


@pytest.mark.parametrize(
    "options, message",
    [
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"save_seconds": -1.0}, r"save_seconds=-1.0 must be a number of seconds, 0 or more"),
        ({"save_seconds": float("nan")}, "save_seconds=nan"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        StageOptions(**options)

"""Studies: equal to single runs, durable, and plain about what they cannot do."""

import errno
import json
import os
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
from study_jobs import job, read_cells, settings

from rlprune_jax import run_study
from rlprune_jax.files import UnwritableError
from rlprune_jax.origin import StaleWarning
from rlprune_jax.sealed import DamagedFileError, write_sealed
from rlprune_jax.study import (
    JobError,
    StudyError,
    StudySettings,
    blocks,
    grid,
    program,
    rank_correlation,
    summarise,
)
from rlprune_jax.study.blocks import Runner
from rlprune_jax.study.results import read_table
from rlprune_jax.study.store import Cells, CorruptChunkWarning

SEEDS = (3, 1, 7)


@pytest.fixture(scope="module")
def whole():
    return run_study(job, settings(), SEEDS)


def same(a, b):
    for name in a.metrics:
        np.testing.assert_allclose(a.metrics[name], b.metrics[name], rtol=1e-5, atol=1e-6)


def test_every_cell_equals_its_single_run(whole):
    single = jax.jit(job)
    assert whole.metrics["loss"].shape == (22, 3) and whole.cells_run == 66
    for index, setting in enumerate(settings()):
        hparams = {name: jnp.float32(value) for name, value in setting.items()}
        for place, seed in enumerate(SEEDS):
            alone = single(hparams, jax.random.key(seed))
            for name, value in alone.items():
                assert whole.metrics[name][index, place] == pytest.approx(float(value), abs=1e-4)


def test_permuted_settings_permute_the_results(whole):
    order = np.random.default_rng(0).permutation(22)
    found = run_study(job, settings().take(order), SEEDS)
    for name, values in found.metrics.items():
        np.testing.assert_allclose(values, whole.metrics[name][order], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options", [{"chunk": 5}, {"chunk": 22, "strategy": "vmap"}, {"strategy": "map", "chunk": 4}]
)
def test_blocks_padding_and_strategy_change_nothing(whole, options):
    same(run_study(job, settings(), SEEDS, **options), whole)


def test_static_settings_are_grouped_and_each_group_is_traced_once_a_program():
    traced = []

    def counted(hparams, key, *, kind):
        traced.append(kind)
        sign = {"plus": 1.0, "minus": -1.0}[kind]
        return {"value": sign * hparams["scale"] + 0 * jax.random.uniform(key)}

    axes = {"scale": [1.0, 2.0, 3.0], "kind": ["plus", "minus"]}
    found = run_study(counted, grid(axes), [0], static=["kind"], strategy="vmap")
    assert found.metrics["value"][:, 0].tolist() == [1, -1, 2, -2, 3, -3]
    assert traced.count("plus") == traced.count("minus") == 2  # the check, and the program


def test_shared_arrays_reach_the_job():
    found = run_study(
        lambda hparams, key, shared: {"value": hparams["a"] * shared["x"].sum()},
        grid({"a": [1, 2]}),
        [0],
        shared={"x": np.ones(3, np.float32)},
    )
    assert found.metrics["value"][:, 0].tolist() == [3, 6]


def test_a_brief_study_compiles_one_strategy_only(tmp_path):
    run_study(job, settings(), SEEDS, directory=tmp_path, chunk=3)
    kept = json.loads((tmp_path / "measured-0.json").read_text())
    assert set(kept["{}"]["seconds_per_cell"]) == {"map"}  # on a CPU


def test_the_strategy_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(Runner, "_pays", lambda *_: True)
    first = run_study(job, settings(), SEEDS, directory=tmp_path, chunk=3)
    kept = json.loads((tmp_path / "measured-0.json").read_text())
    assert set(kept["{}"]["seconds_per_cell"]) == {"vmap", "map"}
    assert first.strategies == {"{}": kept["{}"]["strategy"]}
    for file in list((tmp_path / "chunks").iterdir())[3:]:
        file.unlink()
    other = {"vmap": "map", "map": "vmap"}[kept["{}"]["strategy"]]
    kept["{}"]["strategy"] = other
    write_sealed(tmp_path / "measured-0.json", kept, "measured", kept["seal"]["of"])
    again = run_study(job, settings(), SEEDS, directory=tmp_path, chunk=3)
    assert again.strategies == {"{}": other} and again.cells_run > 0
    same(first, again)


def test_a_small_memory_makes_small_blocks(whole, monkeypatch):
    sizes = []
    compile_block = program.compile_block

    def noted(*args, settings, seeds, **options):
        sizes.append((settings, seeds))
        return compile_block(*args, settings=settings, seeds=seeds, **options)

    monkeypatch.setattr(blocks.programs, "compile_block", noted)
    same(run_study(job, settings(), SEEDS, strategy="vmap", chunk=16, memory=1), whole)
    assert sizes[0] == (11, 3) and sizes[-1] == (1, 1)


def test_out_of_memory_halves_the_block(whole, monkeypatch):
    compile_block = program.compile_block
    sizes = []

    def failing(*args, settings, seeds, **options):
        sizes.append(settings)
        made = compile_block(*args, settings=settings, seeds=seeds, **options)

        def call(*inputs):
            if settings > 3:
                raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
            return made.call(*inputs)

        return made._replace(call=call)

    monkeypatch.setattr(blocks.programs, "compile_block", failing)
    same(run_study(job, settings(), SEEDS, strategy="vmap", chunk=22), whole)
    assert sizes == [22, 11, 5, 2]


def test_another_error_of_the_program_is_not_taken_for_memory(monkeypatch):
    def broken(*args, **options):
        raise jax.errors.JaxRuntimeError("INTERNAL: no")

    monkeypatch.setattr(blocks.programs, "compile_block", broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        run_study(job, settings(), SEEDS)


def test_finished_cells_are_never_run_again(tmp_path, whole):
    run_study(job, settings(), SEEDS, directory=tmp_path, chunk=4, strategy="vmap")
    files = sorted((tmp_path / "chunks").iterdir())
    for file in files[1::2]:
        file.unlink()
    again = run_study(job, settings(), SEEDS, directory=tmp_path, chunk=7, strategy="vmap")
    assert again.cells_run == 3 * (4 + 4 + 2)
    same(again, whole)
    cells = np.concatenate([read_cells(file) for file in (tmp_path / "chunks").iterdir()])
    assert sorted(cells) == list(range(66))
    assert run_study(job, settings(), SEEDS, directory=tmp_path).cells_run == 0


@pytest.mark.parametrize("damage", ["flip", "cut"])
def test_a_corrupt_chunk_is_computed_again_and_said_so(tmp_path, whole, damage):
    run_study(job, settings(), SEEDS, directory=tmp_path, chunk=8, strategy="vmap")
    victim = sorted((tmp_path / "chunks").iterdir())[1]
    content = bytearray(victim.read_bytes())
    content[len(content) // 2] ^= 1
    victim.write_bytes(content if damage == "flip" else content[: len(content) // 2])
    with pytest.warns(CorruptChunkWarning, match="corrupt"):
        again = run_study(job, settings(), SEEDS, directory=tmp_path, strategy="vmap")
    assert again.corrupt == (victim.name,) and 0 < again.cells_run < 66
    same(again, whole)


def test_a_full_disk_is_said_and_what_was_done_stays(tmp_path, whole, monkeypatch):
    fsync, calls = os.fsync, []

    def full(handle):
        calls.append(handle)
        if len(calls) > 5:  # study.json and two chunks sync a file and a directory each
            raise OSError(errno.ENOSPC, "No space left on device")
        return fsync(handle)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UnwritableError, match="No space left on device; choose a place"):
        run_study(job, settings(), SEEDS, directory=tmp_path, chunk=4, strategy="vmap")
    monkeypatch.undo()
    again = run_study(job, settings(), SEEDS, directory=tmp_path, strategy="vmap")
    assert 0 < again.cells_run < 66
    same(again, whole)


def test_another_study_in_the_directory_is_refused(tmp_path):
    small = grid({"scale": [1.0], "rate": [0.1]})
    run_study(job, small, [0], directory=tmp_path, identity={"commit": "a"})
    with pytest.raises(StudyError, match=r"differ in seeds \(\[0\] there, \[1\] here\)"):
        run_study(job, small, [1], directory=tmp_path, identity={"commit": "a"})
    with pytest.raises(StudyError, match="differ in identity"):
        run_study(job, small, [0], directory=tmp_path, identity={"commit": "b"})
    with pytest.raises(UnwritableError, match="choose a place"):
        run_study(job, small, [0], directory=tmp_path / "study.json")


def test_more_settings_extend_a_study(tmp_path):
    few, more = grid({"scale": [1.0, 2.0], "rate": [0.1]}), grid({"scale": [1.0, 2.0, 3.0]})
    more = StudySettings(dict(more.columns) | {"rate": (0.1,) * 3})
    run_study(job, few, SEEDS, directory=tmp_path)
    found = run_study(job, more, SEEDS, directory=tmp_path)
    assert found.cells_run == 3
    same(found, run_study(job, more, SEEDS))
    assert run_study(job, more, SEEDS, directory=tmp_path).cells_run == 0
    for other in (few, more.take([1, 0, 2])):  # fewer, or others before the new ones
        with pytest.raises(StudyError, match="differ in settings"):
            run_study(job, other, SEEDS, directory=tmp_path)


def test_a_second_process_is_refused(tmp_path):
    from rlprune_jax.study.store import Store

    with Store(tmp_path, {}), pytest.raises(StudyError, match="another process"):
        Store(tmp_path, {})


def test_the_table_is_tidy_in_parquet_and_csv(tmp_path, whole):
    run_study(job, settings(), SEEDS, directory=tmp_path)
    for table in (
        pyarrow.parquet.read_table(tmp_path / "table.parquet"),
        pyarrow.csv.read_csv(tmp_path / "table.csv"),
    ):
        assert table.num_rows == 66
        assert {"setting", "scale", "rate", "seed", "loss", "largest"} <= set(table.column_names)
        row = table.slice(10, 1).to_pylist()[0]
        assert (row["setting"], row["seed"]) == (3, 1)
        assert {name: row[name] for name in ("scale", "rate")} == settings()[3]
        assert row["loss"] == pytest.approx(whole.metrics["loss"][3, 1], rel=1e-5)


def test_a_metric_that_is_nan_is_kept_and_ranked_last():
    found = run_study(
        lambda h, key: {"m": jnp.where(h["a"] == 2.0, jnp.nan, h["a"] + jax.random.uniform(key))},
        grid({"a": [3.0, 2.0, 1.0]}),
        range(8),
    )
    for maximize, ranks in ((True, [1, 3, 2]), (False, [2, 3, 1])):
        rows = found.summary("m", maximize)
        assert rows["rank"].tolist() == ranks and np.isnan(rows["mean"][1])
    assert found.best("m") == 0
    low, high = rows["low"][0], rows["high"][0]
    assert 3.2 < low < rows["mean"][0] < high < 3.8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": [1, 1]}, r"seeds repeat \[1\]"),
        ({"seeds": []}, "seeds are empty"),
        ({"seeds": [-1]}, "must be in"),
        (
            {"settings": {"scale": [1.0], "rate": [0.1], "depth": [2]}},
            r"no setting \['depth'\]; it",
        ),
        ({"settings": {"scale": [1.0]}}, "asks for 'rate'.*they have: scale"),
        ({"settings": {}}, "settings are empty"),
        ({"settings": {"scale": ["a"], "rate": [0.1]}}, "cannot be traced"),
        ({"static": ["depth"]}, r"static names \['depth'\]"),
        ({"static": ["rate"]}, r"no static setting \['rate'\]"),
        ({"known": ["scale"]}, r"no setting \['rate'\]; it has: scale"),
        ({"seeds": [1.7]}, r"seeds=1.7 must be an integer"),
        ({"settings": {"scale": [1e39], "rate": [0.1]}}, "'scale' holds 1e.39, beyond 32 bits"),
        ({"settings": {"scale": [2**40], "rate": [0.1]}}, "integers beyond 32 bits"),
        ({"strategy": "pmap"}, "strategy='pmap' must be one of"),
        ({"chunk": 0}, "chunk=0 must be at least 1"),
        ({"memory": 0}, "memory=0 must be at least 1"),
        ({"memory": -1}, "memory=-1 must be at least 1"),
        ({"directory": ""}, "directory='' is empty"),
        ({"fn": lambda h, key: h["scale"] * h["rate"]}, "dictionary of scalar metrics"),
        ({"fn": lambda h, key: {"m": jnp.ones(2) * h["scale"] * h["rate"]}}, r"shape \(2,\)"),
        ({"fn": lambda h, key: {"rate": h["scale"] * h["rate"]}}, "name of a setting"),
    ],
)
def test_bad_input_is_refused_with_the_way_out(change, message):
    given = {"fn": job, "settings": {"scale": [1.0], "rate": [0.1]}, "seeds": [0]} | change
    with pytest.raises(ValueError, match=message):
        run_study(given.pop("fn"), given.pop("settings"), given.pop("seeds"), **given)


def raising(hparams, key):
    raise KeyError("mine")


def branching(hparams, key):
    return {"m": key if hparams["scale"] > 0 else hparams["rate"]}


def numerical(hparams, key):
    return {"m": np.sin(hparams["scale"]) * hparams["rate"]}


@pytest.mark.parametrize(
    ("fn", "message"),
    [
        (raising, "the job raising fails while it is traced: KeyError: 'mine'"),
        (branching, r"the job branching needs the value .* name its setting in static="),
        (numerical, "the job numerical needs the value"),
    ],
)
def test_a_job_that_fails_is_named(fn, message):
    with pytest.raises(JobError, match=message):
        run_study(fn, {"scale": [1.0], "rate": [0.1]}, [0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: summarise([1.0, 2.0]), r"values has shape \(2,\) and must be"),
        (lambda: summarise([]), r"values has shape \(0,\)"),
        (lambda: summarise(np.ones((2, 0))), r"values has shape \(2, 0\)"),
        (lambda: summarise([[1.0, 2.0]], confidence=2), "confidence=2 must be between 0 and 1"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], 95), "confidence=95 must be between"),
        (lambda: rank_correlation([1, 2, 3], [1, 2, 3], resamples=0), "resamples=0"),
    ],
)
def test_bad_tables_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_rank_correlation_agrees_with_scipy_and_its_interval_covers():
    from scipy.stats import spearmanr

    rng = np.random.default_rng(0)
    x = np.round(rng.normal(size=40), 1)  # with ties
    y = x + rng.normal(size=40)
    found = rank_correlation(x, y)
    assert found.value == pytest.approx(spearmanr(x, y).statistic, abs=1e-9)
    assert found.low < found.value < found.high
    assert np.isnan(rank_correlation(x, np.ones(40)).value)
    with pytest.raises(ValueError, match="at least 3"):
        rank_correlation([1, np.nan, 2], [1, 2, 3])


def scaled(scale, array=None):
    """A job that closes over a number and an array; its body and both can be replaced."""
    array = np.ones(3, np.float32) if array is None else array

    def work(hparams, key, shared):
        return {"value": hparams["a"] * scale * shared["x"].sum() * array.sum()}

    return work


def otherwise(scale, array=None):
    array = np.ones(3, np.float32) if array is None else array

    def work(hparams, key, shared):
        return {"value": hparams["a"] + scale + shared["x"].sum() + array.sum()}

    work.__qualname__ = scaled(1).__qualname__
    return work


ONES = {"x": np.ones(3, np.float32)}


@pytest.mark.parametrize(
    ("fn", "shared", "message"),
    [
        (otherwise(2.0), ONES, r"job \(\w+ there, \w+ here\)"),
        (scaled(3.0), ONES, "the arrays that it reads"),
        (scaled(2.0, np.zeros(3, np.float32)), ONES, "the arrays that it reads"),
        (scaled(2.0), {"x": np.zeros(3, np.float32)}, "the arrays that it reads"),
    ],
    ids=["body", "number", "closed over", "shared"],
)
def test_chunks_of_another_job_of_the_same_name_are_stale(tmp_path, fn, shared, message):
    few = grid({"a": [1.0, 2.0]})
    first = run_study(scaled(2.0), few, [0], shared=ONES, directory=tmp_path)
    again = run_study(scaled(2.0), few, [0], shared=ONES, directory=tmp_path)
    assert again.cells_run == 0
    with pytest.raises(StudyError, match=message + ".*stale='redo'"):
        run_study(fn, few, [0], shared=shared, directory=tmp_path)
    with pytest.warns(StaleWarning, match="is kept"):
        kept = run_study(fn, few, [0], shared=shared, directory=tmp_path, stale="keep")
    assert kept.cells_run == 0
    np.testing.assert_array_equal(kept.metrics["value"], first.metrics["value"])
    fresh = run_study(fn, few, [0], shared=shared)
    with pytest.warns(StaleWarning, match="computed again") if "job" in message else nullcontext():
        redone = run_study(fn, few, [0], shared=shared, directory=tmp_path, stale="redo")
    if "job" in message:
        np.testing.assert_array_equal(redone.metrics["value"], fresh.metrics["value"])
        assert (tmp_path / "chunks.stale-1").is_dir()


def test_chunks_of_another_study_are_not_taken(tmp_path):
    few = grid({"a": [1.0, 2.0]})
    other = {"x": np.zeros(3, np.float32)}
    for place, fn, shared, seeds in (
        ("own", scaled(2.0), ONES, [0]),
        ("seeds", scaled(2.0), ONES, [1]),
        ("arrays", scaled(2.0), other, [0]),
    ):
        run_study(fn, few, seeds, shared=shared, directory=tmp_path / place)
    for place in ("seeds", "arrays"):
        (chunk,) = (tmp_path / place / "chunks").iterdir()
        (tmp_path / "own" / "chunks" / f"{place}.arrays").write_bytes(chunk.read_bytes())
    with pytest.warns(CorruptChunkWarning):
        again = run_study(scaled(2.0), few, [0], shared=ONES, directory=tmp_path / "own")
    assert again.corrupt == ("arrays.arrays", "seeds.arrays") and again.cells_run == 0


@pytest.mark.parametrize(
    "change",
    [
        {"cell": np.array([0, 7])},
        {"cell": np.array([0, 0])},
        {"cell": np.array([-1, 0])},
        {"cell": np.array([0.0, 1.0])},
        {"cell": np.zeros(0, np.int64)},
        {"metric/value": np.zeros(3)},
        {"metric/value": np.zeros(2, np.float32)},
        {"metric/other": np.zeros(2)},
        {"more": np.zeros(2)},
    ],
)
def test_crafted_chunks_are_refused(change):
    cells = Cells({"settings": {"a": [1, 2]}, "seeds": [0], "metrics": [["value"]]})
    good = {"cell": np.array([0, 1]), "seconds": np.zeros(2), "metric/value": np.zeros(2)}
    cells.check(good)
    with pytest.raises(DamagedFileError):
        cells.check(good | change)
    for name in good:
        with pytest.raises(DamagedFileError):
            cells.check({each: good[each] for each in good if each != name})


def test_a_table_reads_back_whole_or_not_at_all(tmp_path):
    found = run_study(job, grid({"scale": [1.0], "rate": [0.1]}), [0], directory=tmp_path)
    table = read_table(tmp_path / "table.parquet")
    assert table["loss"] == found.metrics["loss"][0].tolist()
    content = bytearray((tmp_path / "table.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "table.parquet").write_bytes(content)
    with pytest.raises(DamagedFileError, match="was changed"):
        read_table(tmp_path / "table.parquet")

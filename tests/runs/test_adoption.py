"""A new run begins with stages of a finished one, or not at all."""

import pytest

from rlprune_jax.runs import StageOptions, adopt_stages, find_similar, open_run, run_stage


def count(run, total):
    def advance(state, start, steps):
        return state + steps, [(start + steps, {"loss": 1.0})]

    options = StageOptions(chunk=1, save_seconds=0)
    return int(run_stage(run, "counting", 0, total, advance, options))


@pytest.fixture
def runs(tmp_path):
    with open_run(tmp_path, "prune", {"steps": 2, "seed": 0}) as run:
        assert count(run, 2) == 2
        run.append_metrics("other", 1, {})
        run.write_result({})
    return tmp_path


def test_similar_runs_are_those_that_differ_in_named_settings(runs):
    def find(config, **options):
        return [c["steps"] for c in find_similar(runs, "prune", config, **options).values()]

    assert find({"steps": 4, "seed": 0}, differing=("steps",)) == [2]
    assert find({"steps": 4, "seed": 1}, differing=("steps",)) == []
    assert find({"steps": 4, "seed": 0}, differing=()) == []
    # The run itself, one that is not finished and a folder of something else do not count.
    assert find({"steps": 2, "seed": 0}, differing=("steps",)) == []
    with open_run(runs, "prune", {"steps": 3, "seed": 0}):
        pass
    (runs / "prune-foreign").mkdir()
    (runs / "prune-foreign" / "result.json").write_text("{}")
    (runs / "prune-foreign" / "config.json").write_text("[")
    assert find({"steps": 4, "seed": 0}, differing=("steps",)) == [2]


def test_adopted_stages_go_on_where_they_were(runs):
    (source,) = find_similar(runs, "prune", {"steps": 5, "seed": 0}, differing=("steps",))
    with open_run(runs, "prune", {"steps": 5, "seed": 0}) as run:
        # What a kill in the middle of an earlier start would leave.
        (run.path / "adopted.tmp").mkdir()
        run.append_metrics("counting", 1, {"loss": 7.0})
        assert adopt_stages(run, source, ["counting", "absent"]) == ["counting"]
        assert count(run, 5) == 5
        records = run.metrics("counting")
        assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
        assert {record["loss"] for record in records} == {1.0}
        assert run.metrics("other") == []
        assert run.metrics("extends")[0]["run"] == source.name
        # A run that has begun is left as it is.
        assert adopt_stages(run, source, ["counting"]) == []
    with open_run(runs, "prune", {"steps": 2, "seed": 0}) as run:
        assert run.is_finished and len(run.metrics("counting")) == 2

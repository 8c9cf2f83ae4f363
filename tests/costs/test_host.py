"""Users' functions: what they may do wrong, and the errors that name them."""

import itertools
import sys
import time

import numpy as np
import pytest
from costs_networks import branching, draw

from rlprune_jax import ones_gates
from rlprune_jax.costs.cost import Measured, without_noise
from rlprune_jax.costs.host import (
    CHECKED_TWICE,
    CostError,
    CostTimeout,
    FunctionCost,
    import_function,
    source_digest,
)
from rlprune_jax.units.gates import widths

GRAPH = branching()[1]


def cost(function, time_limit=30.0):
    return FunctionCost(GRAPH, "mine:energy", function, time_limit)


def test_a_function_sees_widths_and_gates_and_is_asked_twice_at_first():
    calls = []

    def energy(widths, gates):
        calls.append(widths)
        assert all(gate.sum() == widths[name] for name, gate in gates.items())
        return sum(widths.values())

    asked = cost(energy)
    gates = draw(GRAPH, 0)
    assert asked(gates) == asked(gates) == sum(widths(GRAPH, gates).values())
    assert asked(ones_gates(GRAPH)) == GRAPH.units
    assert len(calls) == 4
    for seed in range(1, 30):
        asked(draw(GRAPH, seed))
    different = len(asked._seen)
    # The first few twice, then once each; what is delivered twice in any case.
    assert len(calls) == different + CHECKED_TWICE
    last = draw(GRAPH, 29)
    assert asked.exact(last) == without_noise(sum(widths(GRAPH, last).values()))
    asked.exact(last)
    assert len(calls) == different + CHECKED_TWICE + 1 and not asked.has_noise
    asked.again(last)
    assert len(calls) == different + CHECKED_TWICE + 3


def noisy(values):
    """A function that answers with one value after the other."""
    answers = itertools.cycle(values)
    return lambda widths, gates: next(answers)


def test_a_function_with_noise_is_asked_again_and_its_upper_quartile_counts():
    asked = FunctionCost(GRAPH, "mine", noisy([1.0, 5.0, 2.0, 4.0, 3.0]), 30.0, answers=5)
    gates = ones_gates(GRAPH)
    # Quartiles of 1 to 5.
    assert asked(gates) == 4.0 and asked.has_noise
    assert asked.exact(gates) == Measured(value=3.0, lower=2.0, upper=4.0)
    asked = FunctionCost(GRAPH, "mine", noisy([1.0, 1.0, 9.0]), 30.0, answers=3)
    assert asked(gates) == 1.0 and not asked.has_noise
    # Noise shows only now: old answers are left out, and as many new ones are taken.
    assert asked.again(gates) == Measured(*np.percentile([9.0, 1.0, 1.0], (50, 25, 75)))
    with pytest.raises(ValueError, match="answers=1"):
        FunctionCost(GRAPH, "mine", noisy([1.0]), 30.0, answers=1)


def raising(widths, gates):
    raise KeyError("conv9")


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (raising, "raised KeyError: 'conv9'"),
        (lambda widths, gates: float("nan"), "is nan; a cost must be finite and at least 0"),
        (lambda widths, gates: -1, r"is -1\.0; a cost must be"),
        (lambda widths, gates: np.inf, "is inf; a cost must be"),
        (lambda widths, gates: None, "is None, not a number"),
        (lambda widths, gates: "many", "is 'many', not a number"),
    ],
)
def test_what_is_no_cost_names_the_function_and_the_candidate(function, message):
    with pytest.raises(CostError, match=message) as error:
        cost(function)(ones_gates(GRAPH))
    assert "'mine:energy'" in str(error.value) and "'Conv_0': 8" in str(error.value)


def test_a_function_that_hangs_is_left_at_its_time_limit():
    began = time.monotonic()
    with pytest.raises(CostTimeout, match=r"more than its limit of 0\.2 seconds"):
        cost(lambda widths, gates: time.sleep(20), 0.2)(ones_gates(GRAPH))
    assert time.monotonic() - began < 10


def test_import(tmp_path, monkeypatch):
    (tmp_path / "my_costs_of_test.py").write_text("def energy(w, g):\n    return 1\nnumber = 3\n")
    (tmp_path / "broken_costs_of_test.py").write_text("1 / 0\n")
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    assert import_function("my_costs_of_test:energy")({}, {}) == 1
    for path, message in [
        ("my_costs_of_test", "is not of the form module:function"),
        ("my_costs_of_test:", "is not of the form"),
        ("my_costs_of_test:power", "cannot be imported: AttributeError"),
        ("my_costs_of_test:number", "is a int, not a function"),
        ("no_such_module_of_test:f", "cannot be imported: ModuleNotFoundError"),
        ("broken_costs_of_test:f", "cannot be imported: ZeroDivisionError"),
    ]:
        with pytest.raises(ValueError, match=message):
            import_function(path)
    assert sys.path == before


def test_the_digest_follows_the_source_of_the_function(tmp_path, monkeypatch):
    file = tmp_path / "digested_of_test.py"
    monkeypatch.syspath_prepend(str(tmp_path))
    file.write_text(
        "class Energy:\n    def __call__(self, w, g):\n        return 1\nenergy = Energy()\n"
    )
    energy = import_function("digested_of_test:energy")
    first = source_digest(energy)
    assert first == source_digest(type(energy)) == source_digest(energy)
    file.write_text(file.read_text().replace("1", "2"))
    assert source_digest(energy) != first


def test_a_file_is_loaded_by_its_path(tmp_path, monkeypatch):
    (tmp_path / "json.py").write_text("import beside\ndef energy(w, g):\n    return beside.two\n")
    (tmp_path / "beside.py").write_text("two = 2\n")
    monkeypatch.chdir(tmp_path)
    before = [*sys.path]
    for path in ("json.py:energy", "./json.py:energy", f"{tmp_path}/json.py:energy"):
        energy = import_function(path)
        assert energy({}, {}) == 2 and energy is import_function("json.py:energy")
    assert sys.path == before and import_function("json:dumps")(1) == "1"
    (tmp_path / "other.py").write_text("def energy(w, g):\n    return 3\n")
    assert source_digest(energy) != source_digest(import_function("other.py:energy"))
    with pytest.raises(ValueError, match="cannot be imported: FileNotFoundError"):
        import_function("none.py:energy")

"""The pruning plan on disk: read whole and unchanged, or not at all."""

import hashlib
import json

import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax.export.description import ArraySpec, Description, standardisation
from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.plan import (
    make_plan,
    plan_description,
    plan_gates,
    read_plan,
    write_plan,
)
from rlprune_jax.files import UnwritableError
from rlprune_jax.pytree import tree_hash

VARIABLES = {"params": {"kernel": np.ones((2, 3), np.float32)}}
GATES = {"conv1": jnp.array([1.0, 0.0, 0.0, 1.0]), "dense": jnp.ones(2), "none": jnp.zeros(3)}
DESCRIPTION = Description(
    inputs=(ArraySpec((28, 28, 1), "uint8"),),
    outputs=ArraySpec((2,), "float32"),
    prepare=standardisation([0.5], [0.25]),
    class_names=("cat", "dog"),
)


def described(**details):
    return make_plan(GATES, VARIABLES, description=DESCRIPTION, **details)


def test_round_trip(tmp_path):
    plan = described(model="cnn", budgets=[{"name": "params", "limit": 0.1}])
    assert plan["groups"]["conv1"] == {"size": 4, "width": 2, "kept": [0, 3]}
    assert plan["dense_sha256"] == tree_hash(VARIABLES)
    write_plan(tmp_path / "plan.json", plan)
    restored = read_plan(tmp_path / "plan.json")
    assert restored == plan
    assert plan_description(restored) == DESCRIPTION
    for name, gate in plan_gates(restored).items():
        np.testing.assert_array_equal(gate, GATES[name])
        assert gate.dtype == jnp.float32


def test_what_is_needed_to_use_a_network_stands_in_the_file(tmp_path):
    write_plan(tmp_path / "plan.json", described())
    stored = json.loads((tmp_path / "plan.json").read_text())["description"]
    assert stored["inputs"][0]["shape"] == [28, 28, 1]
    assert stored["prepare"]["mean"] == [0.5]
    assert stored["prepare"]["std"] == [0.25]
    assert stored["class_names"] == ["cat", "dog"]


def test_a_plan_without_groups_and_description(tmp_path):
    write_plan(tmp_path / "plan.json", make_plan({}, VARIABLES))
    plan = read_plan(tmp_path / "plan.json")
    assert plan["groups"] == {}
    assert plan_description(plan) is None


def signed(plan):
    content = {name: value for name, value in plan.items() if name != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {**content, "sha256": digest}


def version_2():
    plan = make_plan(GATES, VARIABLES, model="cnn")
    plan.pop("description")
    return signed({**plan, "version": 2})


def test_a_plan_of_version_2_is_read(tmp_path):
    (tmp_path / "plan.json").write_text(json.dumps(version_2()))
    plan = read_plan(tmp_path / "plan.json")
    assert plan == make_plan(GATES, VARIABLES, model="cnn")
    write_plan(tmp_path / "again.json", plan)


def test_a_changed_plan_of_version_2_is_refused(tmp_path):
    plan = version_2()
    plan["groups"]["conv1"]["kept"] = [0, 2]
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(ExportError, match="was changed"):
        read_plan(tmp_path / "plan.json")


@pytest.mark.parametrize("gate", [[0.5, 1.0], [jnp.nan, 1.0], [[1.0, 0.0]]])
def test_gates_that_are_no_gates_are_refused(gate):
    with pytest.raises(ValueError, match=r"'conv1'.*zeros and ones"):
        make_plan({"conv1": jnp.array(gate)}, VARIABLES)


def test_a_description_that_is_none_is_refused():
    with pytest.raises(ExportError, match="batch=-1"):
        make_plan(GATES, VARIABLES, description=DESCRIPTION._replace(batch=-1))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda p: p.update(format="other"), "no format"),
        (lambda p: p.update(version=4), "version 4, this package reads 2 and 3; deliver"),
        (lambda p: p.update(version=2), "version 2"),
        (lambda p: p.pop("dense_sha256"), "dense_sha256"),
        (lambda p: p.pop("description"), "description"),
        (lambda p: p.update(more=1), "more"),
        (lambda p: p.update(groups=[]), "groups"),
        (lambda p: p["groups"]["conv1"].pop("size"), "'conv1'.*size"),
        (lambda p: p["groups"]["conv1"].update(width=3), "width 3 but keeps 2"),
        (lambda p: p["groups"]["conv1"].update(kept=[3, 0]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 0]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 4]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[-1, 3]), "increasing"),
        (lambda p: p["groups"]["conv1"].update(kept=[0.0, 3.0]), "integers"),
        (lambda p: p["groups"]["conv1"].update(kept=[0, 2]), "was changed"),
        (lambda p: p["description"]["prepare"].update(std=[0.0]), "description: prepare"),
        (lambda p: p["description"]["prepare"].update(std=[0.3]), "was changed"),
        (lambda p: p.update(description=[]), "description must hold"),
        (lambda p: p.update(dense_sha256="0" * 64), "was changed"),
        (lambda p: p["details"].update(model="vgg11"), "was changed"),
    ],
)
def test_a_tampered_plan_is_refused(tmp_path, change, message):
    path = tmp_path / "plan.json"
    write_plan(path, described(model="cnn"))
    plan = json.loads(path.read_text())
    change(plan)
    path.write_text(json.dumps(plan))
    with pytest.raises(ExportError, match=rf"plan\.json.*{message}"):
        read_plan(path)
    with pytest.raises(ExportError, match=message):
        write_plan(tmp_path / "other.json", plan)


def test_a_torn_plan_is_refused(tmp_path):
    path = tmp_path / "plan.json"
    write_plan(path, described())
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ExportError, match="is not JSON"):
        read_plan(path)
    path.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(ExportError, match="is not JSON"):
        read_plan(path)
    path.write_text("[1]")
    with pytest.raises(ExportError, match="no pruning plan"):
        read_plan(path)


def test_a_missing_plan_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"none\.json cannot be read: No such file.*write_plan"):
        read_plan(tmp_path / "none.json")


def test_an_unwritable_place_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnwritableError, match="cannot write"):
        write_plan(tmp_path / "file" / "plan.json", described())

"""What a stored network takes and returns, as JSON and back."""

import copy
import json

import numpy as np
import pytest

from rlprune_jax.export.description import (
    ArraySpec,
    Description,
    description_from_json,
    description_to_json,
    standardisation,
)
from rlprune_jax.export.errors import ExportError

IMAGES = Description(
    inputs=(ArraySpec((28, 28, 1), "uint8"),),
    outputs=ArraySpec((3,), "float32"),
    prepare=standardisation([0.5], [0.25]),
    class_names=("cat", "dog", "bird"),
)
NESTED = Description(
    inputs=(
        {"tokens": ArraySpec((7,), "int32"), "pair": (ArraySpec((), "bool"), [])},
        [ArraySpec((), "float32", batched=False), None],
    ),
    outputs={"dict": (ArraySpec(("2*batch", 3), "bfloat16", batched=False),)},
    batch=4,
    prepare={"kind": "custom", "note": "crop"},
)


@pytest.mark.parametrize("description", [IMAGES, NESTED])
def test_round_trip_through_json(description):
    content = json.loads(json.dumps(description_to_json(description)))
    assert description_from_json("here", content) == description


def test_an_image_network_reads_simply():
    content = description_to_json(IMAGES)
    assert content == {
        "inputs": [{"shape": [28, 28, 1], "dtype": "uint8", "batched": True}],
        "outputs": {"shape": [3], "dtype": "float32", "batched": True},
        "batch": None,
        "prepare": {"kind": "standardise", "scale": 255.0, "mean": [0.5], "std": [0.25]},
        "class_names": ["cat", "dog", "bird"],
    }


def test_standardisation_takes_arrays_and_numbers():
    mean, std = np.array([0.25, 0.5], np.float32), np.array([1, 2])
    assert standardisation(mean, std, scale=1)["mean"] == [0.25, 0.5]
    assert standardisation(0.5, 2)["std"] == [2.0]


@pytest.mark.parametrize(
    "mean, std, scale, message",
    [
        ([0.5], [0.0], 255, "more than 0"),
        ([0.5], [-1.0], 255, "more than 0"),
        ([0.5], [1.0], 0, "more than 0"),
        ([np.nan], [1.0], 255, "finite"),
        ([0.5], [np.inf], 255, "finite"),
        ([0.5, 0.5], [1.0], 255, "one std per mean"),
        ([], [], 255, "one std per mean"),
        ([[0.5]], [[1.0]], 255, "finite"),
    ],
)
def test_a_standardisation_that_is_none_is_refused(mean, std, scale, message):
    with pytest.raises(ExportError, match=message):
        standardisation(mean, std, scale)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda d: d.pop("inputs"), "must hold inputs, outputs, batch, prepare, class_names"),
        (lambda d: d.update(more=1), "must hold inputs"),
        (lambda d: d.update(inputs=[]), "at least one array"),
        (lambda d: d.update(inputs={}), "at least one array"),
        (lambda d: d["inputs"][0].update(shape=[-1]), "at least 0"),
        (lambda d: d["inputs"][0].update(shape=[1.5]), "at least 0"),
        (lambda d: d["inputs"][0].update(shape=3), "shape, dtype and batched"),
        (lambda d: d["inputs"][0].update(dtype="float33"), "'float33' is no element type"),
        (lambda d: d["inputs"][0].update(more=1), "shape, dtype and batched"),
        (lambda d: d["inputs"][0].pop("batched"), "shape, dtype and batched"),
        (lambda d: d.update(outputs="text"), "outputs must have shape"),
        (lambda d: d.update(batch=0), "batch=0"),
        (lambda d: d.update(batch=True), "batch=True"),
        (lambda d: d.update(class_names="abc"), "class_names='abc'"),
        (lambda d: d.update(class_names=[1]), "class_names"),
        (lambda d: d.update(prepare=[]), r"prepare=\[\]"),
        (lambda d: d.update(prepare={"mean": [1.0]}), "have a kind"),
        (lambda d: d["prepare"].pop("scale"), "must hold kind, scale, mean and std"),
        (lambda d: d["prepare"].update(std=["1"]), "finite"),
    ],
)
def test_a_description_that_is_none_is_refused(change, message):
    content = copy.deepcopy(dict(description_to_json(IMAGES)))
    change(content)
    with pytest.raises(ExportError, match=f"^here.*{message}"):
        description_from_json("here", content)


def test_a_description_of_other_things_is_not_written():
    with pytest.raises(ExportError, match="ArraySpec in dicts"):
        description_to_json(IMAGES._replace(outputs="text"))
    with pytest.raises(ExportError, match="at least one array"):
        description_to_json(IMAGES._replace(inputs=()))
    with pytest.raises(TypeError, match="no JSON form"):
        description_to_json(IMAGES._replace(prepare={"kind": "custom", "function": len}))

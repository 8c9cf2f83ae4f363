"""Reference vectors of the PQ Index and of SAP, made with the authors' released modules."""

import functools
import json
from pathlib import Path

import numpy as np


@functools.cache
def reference():
    """The file's content; ``meta`` in it says how each number was made."""
    return json.loads((Path(__file__).parent / "golden" / "pqi_reference.json").read_text())


def bits(text, shape=None):
    """A mask from a string of 0 and 1, row by row."""
    array = np.array([letter == "1" for letter in text])
    return array if shape is None else array.reshape(shape)


def vector(name):
    """Weights f64[d] and mask bool[d] by name."""
    entry = reference()["vectors"][name]
    return np.array(entry["w"]), bits(entry["mask"])


def network():
    """Weights f64 by name, rows are output units; and the names in the order of the reference."""
    entry = reference()["nets"]["mlp_6_5_4"]
    params = {name: np.array(values) for name, values in entry["params"].items()}
    return params, entry["prunable_in_order"], entry


def network_mask(encoded, params):
    """Mask of the network: arrays where weights are prunable, True elsewhere."""
    return {
        name: bits(encoded[name], values.shape) if name in encoded else np.array(True)
        for name, values in params.items()
    }

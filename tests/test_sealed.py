"""Seals: what was written reads back, and nothing else does."""

import json
import os
import subprocess

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from rlprune_jax import sealed
from rlprune_jax.sealed import DamagedFileError

OBJECT = {"accuracy": 0.5, "budgets": [{"name": "params", "limit": 0.1}], "none": None}
ARRAYS = {"x": np.arange(6.0).reshape(2, 3), "empty": np.zeros((0, 3), np.int64), "b": np.bool_(1)}
numbers = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.int64, np.uint8, np.bool_, np.complex64]),
    hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4),
)


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()))
def test_objects_read_back(content):
    stored = json.loads(json.dumps(sealed.seal(content, "result", "me", files={"a": "b"})))
    assert sealed.seal_of(stored)["files"] == {"a": "b"}
    content.pop(sealed.SEAL, None)
    assert sealed.unseal(stored, "here", "result", "me") == content


@given(st.dictionaries(st.text(max_size=3), numbers, max_size=3))
def test_arrays_read_back(arrays):
    content = b"".join(sealed.pack_arrays(arrays, "chunk", "me", rows=3))
    found = sealed.open_arrays(content, "here", "chunk", "me")
    assert list(found) == list(arrays) and sealed.arrays_header(content, "here")["rows"] == 3
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == array.dtype and found[name].flags.writeable


def test_text_and_objects_are_no_arrays():
    for array in (np.array(["a"]), np.array([{}], object), np.zeros(1, "M8[s]")):
        with pytest.raises(TypeError, match=r"array 'x' is .*; only numbers and booleans"):
            sealed.pack_arrays({"x": array}, "chunk")


@pytest.mark.parametrize("dtype", ["|O", "<U3", "|V8", "f8,f8", "(2,)<f8", 3, "|S5"])
def test_crafted_types_are_refused(dtype):
    said = {"kind": "chunk", "of": "", "arrays": {"x": [dtype, [1]]}}
    with pytest.raises(DamagedFileError, match="holds no arrays"):
        sealed.open_arrays(crafted(said, b"\0" * 8), "here", "chunk")


@pytest.mark.parametrize("shape", [[2**62], [2**70], [-1], [1.0], ["1"], 3, None, [True]])
def test_crafted_shapes_are_refused_and_take_no_memory(shape):
    said = {"kind": "chunk", "of": "", "arrays": {"x": ["<f8", shape]}}
    with pytest.raises(DamagedFileError):
        sealed.open_arrays(crafted(said, b"\0" * 8), "here", "chunk")


def crafted(said, content):
    """A file of arrays whose checksum is right."""
    import hashlib

    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode() + content).hexdigest()
    header = json.dumps({**said, "sha256": digest}).encode()
    return b"rlprune_jax.arrays/1 " + header + b"\n" + content


OBJECT_TEXT = json.dumps(sealed.seal(OBJECT, "result", "me"), indent=2).encode()
ARRAYS_TEXT = b"".join(sealed.pack_arrays(ARRAYS, "chunk", "me"))
TRAILED = sealed.add_trailer(bytes(range(256)), "export", "me")
FORMATS = {
    "object": (
        OBJECT_TEXT,
        lambda content: sealed.unseal(sealed.parse_json(content, "here"), "here", "result", "me"),
    ),
    "arrays": (
        ARRAYS_TEXT,
        lambda content: {
            name: (array.shape, array.dtype, array.tobytes())
            for name, array in sealed.open_arrays(content, "here", "chunk", "me").items()
        },
    ),
    "trailer": (TRAILED, lambda content: sealed.open_trailer(content, "here", "export", "me")),
}


@pytest.mark.parametrize("name", FORMATS)
def test_every_flip_of_a_bit_is_noticed_or_changes_nothing(name):
    content, read = FORMATS[name]
    whole, noticed = read(content), 0
    for place in range(len(content)):
        for bit in range(8):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            try:
                assert read(bytes(changed)) == whole
            except DamagedFileError:
                noticed += 1
    # What is harmless are blanks between the words of JSON.
    assert noticed > 0.97 * 8 * len(content)


@pytest.mark.parametrize("name", FORMATS)
def test_every_cut_and_addition_is_noticed(name):
    content, read = FORMATS[name]
    for length in range(len(content) - 1):
        with pytest.raises(DamagedFileError):
            read(content[:length])
    with pytest.raises(DamagedFileError):
        read(content + b"x")


@pytest.mark.parametrize("name", FORMATS)
def test_what_belongs_to_something_else_is_refused(name):
    content, _ = FORMATS[name]
    readers = {
        "object": lambda *a: sealed.unseal(sealed.parse_json(content, "here"), "here", *a),
        "arrays": lambda *a: sealed.open_arrays(content, "here", *a),
        "trailer": lambda *a: sealed.open_trailer(content, "here", *a),
    }
    kind = {"object": "result", "arrays": "chunk", "trailer": "export"}[name]
    readers[name](kind)  # whose ever it is
    with pytest.raises(DamagedFileError, match="belongs to 'me', not to 'you'"):
        readers[name](kind, "you")
    with pytest.raises(DamagedFileError):
        readers[name]("config", "me")


def test_rows_are_chained():
    first, mark = sealed.seal_line({"step": 1}, "")
    second, _ = sealed.seal_line({"step": 2}, mark)
    assert sealed.open_line(first, "") and sealed.open_line(second, mark)
    assert sealed.open_line(second, "") is None  # the first is lost
    assert sealed.open_line(second, None)
    assert sealed.open_line(second.replace("2", "3", 1), mark) is None


def test_deep_nesting_is_damage_and_no_crash(tmp_path):
    (tmp_path / "a").write_text("[" * 100_000)
    with pytest.raises(DamagedFileError, match="is not JSON"):
        sealed.read_sealed(tmp_path / "a", "result")
    assert sealed.open_line("[" * 100_000, "") is None


def test_a_pipe_is_no_file_and_nobody_waits(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DamagedFileError, match="no regular file"):
        sealed.read_sealed(tmp_path / "pipe", "result")
    with pytest.raises(IsADirectoryError):
        sealed.read_sealed(tmp_path, "result")


def test_sums_are_those_that_others_check(tmp_path):
    for name in "ab":
        (tmp_path / name).write_text(name)
        sealed.write_sums(tmp_path, [name])
    check = ["sha256sum", "--strict", "-c", sealed.SUMS]
    subprocess.run(check, cwd=tmp_path, check=True, capture_output=True)
    assert sealed.read_summed(tmp_path / "a") == b"a"
    (tmp_path / "a").write_text("c")
    with pytest.raises(DamagedFileError, match="was changed"):
        sealed.read_summed(tmp_path / "a")
    (tmp_path / sealed.SUMS).unlink()
    with pytest.raises(DamagedFileError, match="was changed"):
        sealed.read_summed(tmp_path / "b")

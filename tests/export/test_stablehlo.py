"""Exported networks: any inputs, raw ones too, any batch, and only jax is needed to run them."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import equinox as eqx
import flax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from small import random_gates, small_cnn

from rlprune_jax import compact, respecialise, trace_graph
from rlprune_jax.export.description import ArraySpec
from rlprune_jax.export.errors import ExportError
from rlprune_jax.export.stablehlo import export_stablehlo, load_stablehlo

ON_CPU = ("cpu",)
WEIGHTS = {"a": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}


def linear(variables, x):
    return jnp.tanh(x @ variables["a"])


def rows(count, size=4):
    return np.random.default_rng(count).normal(size=(count, size)).astype(np.float32)


def export(apply, *examples, **options):
    return export_stablehlo(apply, WEIGHTS, *examples, platforms=ON_CPU, **options)


def assert_same(artifact, apply, *inputs):
    """Compare outputs of the artifact with those of the function, leaf by leaf."""
    found = load_stablehlo(artifact.content)(*inputs)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(apply(WEIGHTS, *inputs)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_any_batch_on_all_platforms():
    artifact = export_stablehlo(linear, WEIGHTS, rows(2))
    for batch in (1, 5):
        assert_same(artifact, linear, rows(batch))
    exported = jax.export.deserialize(bytearray(artifact.content))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    assert len(exported.in_avals) == 1  # the weights are inside
    assert artifact.description.inputs == (ArraySpec((4,), "float32"),)
    assert artifact.description.outputs == ArraySpec((3,), "float32")
    assert artifact.description.batch is None
    assert artifact.description.prepare is None


def test_raw_images_are_prepared_inside():
    images = np.random.default_rng(0).integers(0, 256, (5, 4), np.uint8)

    def prepare(x):
        return (x / 255 - 0.5) / 0.25

    artifact = export(linear, jax.ShapeDtypeStruct((2, 4), jnp.uint8), prepare=prepare)
    # Float64 by hand: the preparation, then the network.
    expected = np.tanh((images / 255 - 0.5) / 0.25 @ WEIGHTS["a"].astype(float))
    np.testing.assert_allclose(load_stablehlo(artifact.content)(images), expected, atol=1e-5)
    assert artifact.description.inputs == (ArraySpec((4,), "uint8"),)
    assert artifact.description.prepare == {"kind": "custom"}
    with pytest.raises(ValueError, match="float32"):
        load_stablehlo(artifact.content)(images.astype(np.float32))


def test_several_inputs_and_outputs_of_any_containers():
    def apply(variables, batch, scale, pair):
        x = batch["x"] * batch["mask"][:, None] + pair[0] * scale
        return {"logits": x @ variables["a"], "more": (x.sum(1), [scale])}

    examples = ({"x": rows(2), "mask": np.ones(2, bool)}, np.float32(2), (rows(2), None))
    artifact = export(apply, *examples)
    inputs = ({"x": rows(3), "mask": np.array([True, False, True])}, np.float32(3), (rows(3), None))
    assert_same(artifact, apply, *inputs)
    assert artifact.description.inputs == (
        {"mask": ArraySpec((), "bool"), "x": ArraySpec((4,), "float32")},
        ArraySpec((), "float32", batched=False),
        (ArraySpec((4,), "float32"), None),
    )
    assert artifact.description.outputs == {
        "logits": ArraySpec((3,), "float32"),
        "more": (ArraySpec((), "float32"), [ArraySpec((), "float32", batched=False)]),
    }


def test_preparation_of_several_inputs():
    def prepare(images, scale):
        return images / 255, scale + 1

    def apply(variables, x, scale):
        return x @ variables["a"] * scale[:, None]

    artifact = export(apply, np.ones((2, 4), np.uint8), np.ones(2, np.float32), prepare=prepare)
    images, scale = np.full((3, 4), 51, np.uint8), np.arange(3, dtype=np.float32)
    found = load_stablehlo(artifact.content)(images, scale)
    np.testing.assert_allclose(found, apply(WEIGHTS, *prepare(images, scale)), atol=1e-6)


class Sides(NamedTuple):
    right: jax.Array
    left: jax.Array


@flax.struct.dataclass
class Outputs:
    logits: jax.Array
    hidden: dict


def test_containers_that_only_we_know_become_dicts():
    """Fields of a NamedTuple are not in the order of the keys of a dict."""

    def apply(variables, sides):
        assert isinstance(sides, Sides)
        x = sides.left - 2 * sides.right
        return Outputs(x @ variables["a"], flax.core.freeze({"x": {1: x}}))

    artifact = export(apply, Sides(right=rows(2), left=rows(2)))
    found = load_stablehlo(artifact.content)({"right": rows(3), "left": 3 * rows(3)})
    np.testing.assert_allclose(found["hidden"]["x"]["1"], rows(3), rtol=1e-5)
    np.testing.assert_allclose(found["logits"], rows(3) @ WEIGHTS["a"], atol=1e-5)


def test_networks_of_other_frameworks():
    class Network(nnx.Module):
        def __init__(self, rngs):
            self.first = nnx.Linear(4, 5, rngs=rngs)
            self.dropout = nnx.Dropout(0.5, rngs=rngs)
            self.head = nnx.Linear(5, 2, rngs=rngs)

        def __call__(self, x):
            return self.head(self.dropout(nnx.relu(self.first(x))))

    definition, state = nnx.split(Network(nnx.Rngs(0)))  # with random keys and counts

    def apply_nnx(variables, x):
        network = nnx.merge(definition, variables)
        network.eval()
        return network(x)

    arrays, static = eqx.partition(
        eqx.nn.MLP(4, 2, 5, 1, key=jax.random.key(0)), eqx.is_inexact_array
    )

    def apply_equinox(variables, x):
        return jax.vmap(eqx.combine(variables, static))(x)

    for apply, variables in ((apply_nnx, state), (apply_equinox, arrays)):
        artifact = export_stablehlo(apply, variables, rows(2), platforms=ON_CPU)
        found = load_stablehlo(artifact.content)(rows(3))
        np.testing.assert_allclose(found, apply(variables, rows(3)), rtol=1e-5, atol=1e-6)


PROGRAM = """
import sys
import numpy as np, jax, jax.export
network = jax.export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
np.save(sys.argv[2], network.call(np.load(sys.argv[3])))
assert not {"flax", "rlprune_jax"} & set(sys.modules)
"""


def test_a_slim_network_of_the_zoo_runs_where_only_jax_is_known(tmp_path):
    """Its convolution is an operation of ours, so the artifact must hold what it is made of."""
    small = small_cnn()
    gates = jax.tree.map(lambda each: each[0], random_gates(small.graph, 1, jax.random.key(0)))
    slim = compact(small.graph, small.variables, gates)
    slim_apply = respecialise(small.network.apply, small.graph, gates)
    artifact = export_stablehlo(
        slim_apply, slim, jax.ShapeDtypeStruct((2, 8, 8, 1), jnp.uint8), prepare=lambda x: x / 255
    )
    (tmp_path / "model.stablehlo").write_bytes(artifact.content)
    x = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 1), np.uint8)
    np.save(tmp_path / "x.npy", x)
    files = [str(tmp_path / name) for name in ("model.stablehlo", "y.npy", "x.npy")]
    # Isolated: neither this folder nor an editable installation of ours is on the path.
    found = importlib.util.find_spec("jax").origin
    program = f"import sys; sys.path.insert(0, {str(Path(found).parents[1])!r})" + PROGRAM
    subprocess.run([sys.executable, "-I", "-c", program, *files], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), slim_apply(slim, x / 255), atol=1e-5)


def test_strided_indexing_that_traces_otherwise_for_an_unknown_batch_is_exported():
    def apply(variables, x):
        return (jax.nn.relu(x @ variables["a"])[:, ::2, ::2] @ variables["b"]).mean((1, 2))

    variables = {"a": jnp.arange(24.0).reshape(4, 6) - 11, "b": jnp.ones((6, 3))}
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 4))
    gates = {"a": jnp.array([1.0, 0, 1, 1, 0, 1])}
    graph = trace_graph(apply, variables, x)
    slim, slim_apply = compact(graph, variables, gates), respecialise(apply, graph, gates)
    artifact = export_stablehlo(slim_apply, slim, x, platforms=ON_CPU)
    assert artifact.description.batch is None
    for batch in (x, x[:1]):
        found = load_stablehlo(artifact.content)(batch)
        np.testing.assert_allclose(found, slim_apply(slim, batch), rtol=1e-5)


def number(x):
    """The batch size as an int, which a batch of unknown size has not."""
    return int(x.shape[0])


def test_row_by_row_with_several_inputs_one_of_them_a_scalar():
    def apply(variables, x, pair):
        return jnp.concatenate([x[i : i + 1] * pair[0] for i in range(number(x))]), pair[1]

    artifact = export(apply, rows(3), (np.float32(2), rows(3)))
    assert artifact.description.batch is None
    assert_same(artifact, apply, rows(7), (np.float32(3), rows(7, 4)))


def test_rows_that_depend_on_each_other_are_not_taken_apart():
    """Row by row, the mean over the batch would be another number: the batch stays fixed."""

    def apply(variables, x):
        return (x - x.sum(0) / number(x)) @ variables["a"]

    artifact = export(apply, rows(3))
    assert artifact.description.batch == 3
    assert artifact.description.inputs == (ArraySpec((4,), "float32"),)
    assert artifact.description.outputs == ArraySpec((3,), "float32")
    assert_same(artifact, apply, rows(3))
    with pytest.raises(ValueError, match="shape"):
        load_stablehlo(artifact.content)(rows(4))


def test_a_mean_over_any_batch_needs_no_fixed_one():
    def apply(variables, x):
        return x - x.mean(0)

    artifact = export(apply, rows(3))
    assert artifact.description.batch is None
    assert_same(artifact, apply, rows(5))


def test_a_network_bound_to_one_batch_size():
    def apply(variables, x):
        return (x + jnp.ones((4, 4))) @ variables["a"]

    artifact = export(apply, rows(4))
    assert artifact.description.batch == 4
    assert_same(artifact, apply, rows(4))
    with pytest.raises(ExportError, match=r"examples float32\[3, 4\].*pass examples that it can"):
        export(apply, rows(3))


def test_outputs_whose_size_follows_the_batch():
    artifact = export(lambda variables, x: jnp.concatenate([x, x]), rows(2))
    assert artifact.description.outputs == ArraySpec(("2*batch", 4), "float32", batched=False)


@pytest.mark.parametrize(
    "examples, message",
    [
        ((), "first axis must be a batch"),
        ((np.float32(1),), "first axis must be a batch"),
        ((np.ones((2, 4)), np.ones((3, 4))), r"\[\(2, 4\), \(3, 4\)\]; the first axis"),
        ((np.ones((0, 4)),), "at least one"),
        (({"x": "text"},), r"examples\[0\]\['x'\] is a str"),
        ((np.ones((2, 4)), len), r"examples\[1\] is a builtin"),
    ],
)
def test_examples_that_are_none_are_refused(examples, message):
    with pytest.raises(ExportError, match=message):
        export(linear, *examples)


@pytest.mark.parametrize("platforms", [("cpu", "gpu"), ("CPU",), (), "cuda12"])
def test_platforms_that_are_unknown_are_refused(platforms):
    with pytest.raises(ExportError, match=r"platforms=.*must name some of cpu, cuda, rocm, tpu"):
        export_stablehlo(linear, WEIGHTS, rows(2), platforms=platforms)


def test_one_platform_by_name():
    artifact = export_stablehlo(linear, WEIGHTS, rows(2), platforms="tpu")
    assert jax.export.deserialize(bytearray(artifact.content)).platforms == ("tpu",)


def test_a_damaged_network_is_refused(tmp_path):
    content = export(linear, rows(2)).content
    path = tmp_path / "model.stablehlo"
    for damaged in (b"", b"rubbish", content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(ExportError, match=r"model\.stablehlo is no exported network"):
            load_stablehlo(path)
    path.write_bytes(content)
    assert load_stablehlo(path)(rows(2)).shape == (2, 3)


def test_a_missing_network_is_named(tmp_path):
    with pytest.raises(ExportError, match=r"none cannot be read: No such file.*export_stablehlo"):
        load_stablehlo(tmp_path / "none")

"""The text beside a slim network: its three lines run in a fresh process."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rlprune_jax import compact, respecialise, trace_graph
from rlprune_jax.export.description import ArraySpec, Description, standardisation
from rlprune_jax.export.readme import loading_text
from rlprune_jax.export.stablehlo import STABLEHLO, export_stablehlo

MEAN, STD = 0.25, 0.5


def prepare(x):
    return (x / 255 - MEAN) / STD


def slim_network(apply, variables, *examples):
    """Cut every second unit of a small network."""
    graph = trace_graph(apply, variables, *examples)
    gates = {
        name: jnp.arange(size) % 2.0 for name, size in zip(graph.names, graph.sizes, strict=True)
    }
    return respecialise(apply, graph, gates), compact(graph, variables, gates)


def three_lines(text):
    """Take the indented lines after the sentence that promises them."""
    return text.split("three lines, in this folder:\n\n")[1].split("\n\n")[0]


def run(folder, program):
    program = "\n".join(line.removeprefix("    ") for line in program.splitlines())
    program += "\nnp.savez('outputs.npz', *jax.tree.leaves(outputs))"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "outputs.npz") as stored:
        return list(stored.values())


def dense(variables, x):
    return jax.nn.relu(x.reshape(len(x), -1) @ variables["a"]) @ variables["b"]


def weights(inputs):
    keys = jax.random.split(jax.random.key(0))
    return {
        "a": jax.random.normal(keys[0], (inputs, 6)),
        "b": jax.random.normal(keys[1], (6, 3)),
    }


def test_the_three_lines_give_the_outputs_of_the_slim_network_on_raw_images(tmp_path):
    apply, slim = slim_network(dense, weights(12), jnp.ones((2, 3, 4, 1)))
    artifact = export_stablehlo(
        apply, slim, jax.ShapeDtypeStruct((2, 3, 4, 1), jnp.uint8), prepare=prepare
    )
    (tmp_path / STABLEHLO).write_bytes(artifact.content)
    text = loading_text(
        artifact.description._replace(
            prepare=standardisation(MEAN, STD), class_names=("cat", "dog", "bird")
        )
    )
    lines = three_lines(text)
    assert len(lines.splitlines()) == 3
    (outputs,) = run(tmp_path, lines)
    zeros = np.zeros((1, 3, 4, 1), np.uint8)
    np.testing.assert_allclose(outputs, apply(slim, prepare(zeros)), atol=1e-5)
    assert "Inputs: uint8[batch, 3, 4, 1], for any batch." in text
    assert "raw ones: the network itself takes (x / 255.0 - mean) / std with mean [0.25]" in text
    assert "Outputs: float32[batch, 3]." in text
    assert "The 3 classes in the order of the outputs: cat, dog, bird." in text


def test_the_three_lines_for_several_prepared_inputs_and_a_fixed_batch(tmp_path):
    def apply(variables, batch, pair):
        scale = jnp.ones((4, 1))  # bound to a batch of four
        return {"logits": dense(variables, batch["x"] * scale + pair[0]), "scale": pair[1][0]}

    examples = ({"x": jnp.ones((4, 5))}, (jnp.ones((4, 5)), [jnp.float32(0)], None))
    slim_apply, slim = slim_network(apply, weights(5), *examples)
    artifact = export_stablehlo(slim_apply, slim, *examples, platforms=("cpu",))
    (tmp_path / STABLEHLO).write_bytes(artifact.content)
    text = loading_text(artifact.description)
    found = run(tmp_path, three_lines(text))
    expected = slim_apply(slim, *jax.tree.map(jnp.zeros_like, examples))
    for a, b in zip(found, jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    assert "for a batch of exactly 4." in text
    assert "They are prepared ones" in text
    assert "{'x': float32[4, 5]}, (float32[4, 5], [float32[]], None,)" in text


@pytest.mark.parametrize(
    "specs, expression",
    [
        (ArraySpec((7,), "int32"), 'np.zeros((1, 7), "int32")'),
        (ArraySpec((), "bool"), 'np.zeros((1,), "bool")'),
        (ArraySpec((), "bfloat16", batched=False), 'np.zeros((), "bfloat16")'),
        (({"a'": ArraySpec((), "bool")},), """({"a'": np.zeros((1,), "bool")},)"""),
        ([None, ()], "[None, ()]"),
    ],
)
def test_inputs_are_written_as_python(specs, expression):
    text = loading_text(Description(inputs=(specs,), outputs=ArraySpec((), "float32")))
    assert f"network({expression})" in text
    compile(three_lines(text).replace("    ", ""), "lines", "exec")


def test_many_classes_are_cut_short():
    names = tuple(f"class{number}" for number in range(1000))
    outputs = ArraySpec((1000,), "float32")
    text = loading_text(Description(inputs=(outputs,), outputs=outputs, class_names=names))
    assert "The 1000 classes" in text
    assert "class19, ... (all in plan.json)" in text


def test_a_preparation_of_another_kind_is_named():
    spec = ArraySpec((3,), "uint8")
    text = loading_text(Description(inputs=(spec,), outputs=spec, prepare={"kind": "custom"}))
    assert "raw ones: the network prepares them itself (custom)." in text

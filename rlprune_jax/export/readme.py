"""The text that lies beside a slim network and says how to load it."""

import textwrap
from collections.abc import Callable, Sequence

from rlprune_jax.export.description import ArraySpec, Description, Json
from rlprune_jax.export.plan import PLAN
from rlprune_jax.export.stablehlo import STABLEHLO
from rlprune_jax.export.weights import WEIGHTS
from rlprune_jax.types import PyTree

README = "README.txt"
"""Name of the text in a folder of a slim network."""

_NAMES_AT_MOST = 20

_TEXT = """\
A network pruned by rlprune_jax.

{stablehlo}
    the network with its weights inside; needs nothing but jax and flatbuffers
{weights}
    its weights alone, each array under its path
{plan}
    the units that were kept, inputs, outputs, preparation and class names

Load the network with three lines, in this folder:

{lines}

{facts}

Load the weights alone (pip install rlprune_jax):

    from rlprune_jax.export import load_weights
    variables = load_weights("{weights}")

Load the weights with their function, checked against the plan, where the code of the dense network
is at hand (apply, and shapes, its variables or their jax.ShapeDtypeStruct):

    from rlprune_jax import trace_graph
    from rlprune_jax.export import restore_slim
    slim = restore_slim(".", apply, trace_graph(apply, shapes, x), shapes)
    outputs = slim.apply(slim.variables, x)
"""


def loading_text(description: Description) -> str:
    """Return the text of ``README.txt`` for one slim network.

    Args:
        description: as `export_stablehlo` returns it, with what the caller added.

    Returns:
        Plain text. It says what lies in the folder, the three lines that load the artifact and
        apply it to inputs of its own shapes and element types, and what these inputs are.

    Example:
        >>> from rlprune_jax.export.description import ArraySpec, standardisation
        >>> text = loading_text(
        ...     Description(
        ...         inputs=(ArraySpec((28, 28, 1), "uint8"),),
        ...         outputs=ArraySpec((10,), "float32"),
        ...         prepare=standardisation([0.5], [0.25]),
        ...     )
        ... )
        >>> [line.strip() for line in text.splitlines() if "np.zeros" in line]
        ['outputs = network(np.zeros((1, 28, 28, 1), "uint8"))']
        >>> [line for line in text.splitlines() if line.startswith("Inputs")]
        ['Inputs: uint8[batch, 28, 28, 1], for any batch.']
    """
    zeros = ", ".join(_zeros(each, description.batch or 1) for each in description.inputs)
    lines = [
        "import jax, jax.export, numpy as np",
        f'network = jax.export.deserialize(bytearray(open("{STABLEHLO}", "rb").read())).call',
        f"outputs = network({zeros})",
    ]
    return _TEXT.format(
        stablehlo=STABLEHLO,
        weights=WEIGHTS,
        plan=PLAN,
        lines=textwrap.indent("\n".join(lines), "    "),
        facts="\n".join(_facts(description)),
    )


def _facts(description: Description) -> list[str]:
    batch = description.batch
    number = "for any batch" if batch is None else f"for a batch of exactly {batch}"
    inputs = ", ".join(_shape(each, batch) for each in description.inputs)
    facts = [
        f"Inputs: {inputs}, {number}.",
        f"They are {_preparation(description.prepare)}",
        f"Outputs: {_shape(description.outputs, batch)}.",
    ]
    if names := description.class_names:
        facts.append(f"The {len(names)} classes in the order of the outputs: {_listed(names)}.")
    return facts


def _preparation(prepare: Json | None) -> str:
    if prepare is None:
        return "prepared ones: what the network was trained on, not raw data."
    if prepare["kind"] == "standardise":
        return (
            f"raw ones: the network itself takes (x / {prepare['scale']} - mean) / std with mean "
            f"{prepare['mean']} and std {prepare['std']}."
        )
    return f"raw ones: the network prepares them itself ({prepare['kind']})."


def _listed(names: Sequence[str]) -> str:
    if len(names) <= _NAMES_AT_MOST:
        return ", ".join(names)
    return ", ".join(names[:_NAMES_AT_MOST]) + f", ... (all in {PLAN})"


def _zeros(specs: PyTree, batch: int) -> str:
    """Return an expression for inputs of these shapes."""
    if isinstance(specs, ArraySpec):
        shape = (batch, *specs.shape) if specs.batched else specs.shape
        return f'np.zeros({shape!r}, "{specs.dtype}")'
    return _written(specs, lambda each: _zeros(each, batch))


def _shape(specs: PyTree, batch: int | None) -> str:
    if isinstance(specs, ArraySpec):
        first = ("batch" if batch is None else batch,) if specs.batched else ()
        return f"{specs.dtype}[{', '.join(map(str, (*first, *specs.shape)))}]"
    return _written(specs, lambda each: _shape(each, batch))


def _written(specs: PyTree, write: Callable[[PyTree], str]) -> str:
    """Return the Python text of a container, its entries written by ``write``."""
    match specs:
        case dict():
            return "{" + ", ".join(f"{name!r}: {write(each)}" for name, each in specs.items()) + "}"
        case tuple():
            return "(" + "".join(f"{write(each)}, " for each in specs).rstrip(" ") + ")"
        case list():
            return "[" + ", ".join(map(write, specs)) + "]"
    return repr(specs)

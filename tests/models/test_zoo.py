"""The larger networks have the published numbers of parameters, and take what they should."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpy_evaluation import evaluate
from published import PUBLISHED

from rlprune_jax.models import create_model, model_functions
from rlprune_jax.workflow.sources import LANGUAGE_MODELS


def shapes_of(name, size=32, num_classes=10, channels=3, **options):
    functions = model_functions(create_model(name, num_classes, **options))
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    if name in LANGUAGE_MODELS:
        images = jax.ShapeDtypeStruct((2, size), jnp.int32)
    return functions, images, jax.eval_shape(functions.init, jax.random.key(0), images)


@pytest.mark.parametrize(
    ("name", "case"), [(name, case) for name, cases in PUBLISHED.items() for case in cases]
)
def test_published_numbers_of_parameters(name, case):
    options, size, num_classes, expected = case
    functions, images, variables = shapes_of(name, size, num_classes, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == expected
    tokens = (size,) if name in LANGUAGE_MODELS else ()
    assert jax.eval_shape(functions.apply, variables, images).shape == (2, *tokens, num_classes)


# Weights of rank above 1: pqi_sap.md section 4.2, counted from the official constructors.
@pytest.mark.parametrize(
    ("name", "options", "size", "channels", "num_classes", "expected"),
    [
        ("preact_resnet18", {}, 28, 1, 10, 11_163_200),
        ("preact_resnet18", {}, 32, 3, 100, 11_210_432),
        ("wide_resnet28x8", {}, 28, 1, 10, 23_340_176),
        ("wide_resnet28x8", {}, 32, 3, 10, 23_340_464),
        ("wide_resnet28x8", {"stages": 4}, 64, 3, 200, 44_708_272),
        ("resnet50", {"stem": "imagenet"}, 32, 3, 10, 23_475_392),
    ],
)
def test_weights_of_the_sparsity_papers_networks(
    name, options, size, channels, num_classes, expected
):
    _, _, variables = shapes_of(name, size, num_classes, channels, **options)
    leaves = jax.tree.leaves(variables["params"])
    assert sum(leaf.size for leaf in leaves if leaf.ndim > 1) == expected


def test_patches_of_a_convnext_follow_the_image():
    for size, patch in [(224, 4), (32, 4), (28, 2), (16, 2), (8, 1)]:
        _, _, variables = shapes_of("convnext_tiny", size, width=1 / 16)
        assert variables["params"]["stem"]["kernel"].shape[:2] == (patch, patch)
    with pytest.raises(ValueError, match="7x7 are too small"):
        shapes_of("convnext_tiny", 7)


def test_wide_resnet_by_depth_and_factor():
    # Zagoruyko and Komodakis, Table 5: WRN-40-2 has 2.2 M parameters, WRN-28-10 36.5 M.
    for depth, factor, expected in [(40, 2, 2.2e6), (28, 10, 36.5e6)]:
        _, _, variables = shapes_of("wide_resnet28x8", depth=depth, widen_factor=factor)
        count = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
        assert count == pytest.approx(expected, rel=0.03)


SMALL = {
    "resnet20": {"width": 1 / 8},
    "resnet18": {"width": 1 / 16, "stem": "imagenet"},
    "preact_resnet18": {"width": 1 / 16},
    "wide_resnet28x8": {"depth": 10, "widen_factor": 2, "width": 1 / 8},
    "mobilenet": {"width": 1 / 16, "blocks": 1},
    "densenet": {"depth": 10, "growth": 4},
    "vit_tiny": {"depth": 1, "width": 1 / 16},
    "convnext_tiny": {"depths": (1, 1), "widths": (4, 6), "layer_scale": 0.5},
}
STATELESS = ("vit_tiny", "convnext_tiny")


@pytest.mark.parametrize("name", SMALL)
def test_forward_and_training_mode(name):
    functions, images, shapes = shapes_of(name, 16, 7, **SMALL[name])
    images = np.random.default_rng(0).standard_normal((8, *images.shape[1:]), np.float32)
    # Evaluated without XLA, which takes some ten seconds to compile each.
    variables = evaluate(functions.init, jax.random.key(1), images)
    chex.assert_trees_all_equal_shapes(variables, shapes)
    variables = jax.tree.map(lambda leaf, shape: leaf.astype(shape.dtype), variables, shapes)
    logits = evaluate(functions.apply, variables, images)
    training_logits, updates = evaluate(functions.apply_train, variables, images)
    for output in (logits, training_logits):
        assert output.shape == (8, 7)
        assert np.isfinite(output).all()
    # However deep, a fresh network neither silences its input nor blows it up.
    assert 0.03 < np.std(training_logits) < 10
    if name in STATELESS:
        assert updates == {}
        np.testing.assert_array_equal(logits, training_logits)
    else:
        assert set(updates) == {"batch_stats"}
        chex.assert_trees_all_equal_shapes(updates["batch_stats"], variables["batch_stats"])
    if name in ("wide_resnet28x8", "vit_tiny"):
        compiled = jax.jit(functions.apply_train)(variables, images)[0]
        np.testing.assert_allclose(compiled, training_logits, atol=1e-4)


def test_the_convolution_can_be_swapped_everywhere():
    for name, options in SMALL.items():
        counts = []

        def counting(lhs, rhs, *positional, counts=counts, **named):
            counts.append(rhs.shape)
            return jax.lax.conv_general_dilated(lhs, rhs, *positional, **named)

        _, _, variables = shapes_of(name, 16, conv_general_dilated=counting, **options)
        kernels = [leaf for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim == 4]
        assert len(counts) == (1 if name == "vit_tiny" else len(kernels))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("resnet20", {"shortcut": "none"}, "shortcut='none' must be one of 'pad'"),
        ("resnet18", {"stem": "mnist"}, "stem='mnist' must be one of 'cifar'"),
        ("resnet18", {"width": 0.0}, "width=0.0 must be a finite number above 0"),
        ("wide_resnet28x8", {"depth": 6}, "depth=6 leaves no block to 3 stages; give at least 10"),
        ("wide_resnet28x8", {"widen_factor": 0}, "widen_factor=0 must be at least 1"),
        ("mobilenet", {"blocks": 0}, "blocks=0 must be at least 1"),
        ("mobilenet", {"stem": "mnist"}, "stem='mnist' must be one of"),
        ("densenet", {"depth": 41}, "depth=41 must be 6 n"),
        ("densenet", {"growth": 0}, "growth=0 must be at least 1"),
        ("convnext_tiny", {"widths": (8, 8)}, r"widths=\(8, 8\) has 2 entries; give 4"),
        ("convnext_tiny", {"depths": (1, 0, 1, 1)}, "depths=.* must hold positive integers"),
        ("convnext_tiny", {"patch": 8}, "32x32 are too small.*64x64; enlarge the images, lower"),
        ("convnext_tiny", {"patch": 0}, "patch=0 must be at least 1"),
        ("vit_tiny", {"patch": 5}, "32x32 are not whole patches of 5x5"),
        ("vit_tiny", {"heads": 0}, "heads=0 must be at least 1"),
        ("vit_tiny", {"width": float("nan")}, "width=nan must be a finite number above 0"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(name, **options)


def test_unknown_depths():
    x = jnp.ones((1, 32, 32, 3))
    for name, depth, message in [
        ("resnet20", 21, "depth=21 must be 6 n"),
        ("resnet18", 19, "depth=19 is unknown; choose from"),
    ]:
        with pytest.raises(ValueError, match=message):
            create_model(name, 10).clone(depth=depth).init(jax.random.key(0), x)

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published import PUBLISHED

from rlprune_jax import models
from rlprune_jax.models import create_model, model_functions, model_names

SMALL = {
    "linear": {},
    "mlp": {"widths": (8, 6)},
    "cnn": {"widths": (4, 6, 8, 10)},
    "vgg11": {"width": 1 / 16},
    "vgg13": {"width": 1 / 32},
    "vgg16": {"width": 1 / 32},
    "vgg19": {"width": 1 / 32},
}


def shapes_of(name, image_shape, num_classes=10, **options):
    functions = model_functions(create_model(name, num_classes, **options))
    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.float32)
    return functions, jax.eval_shape(functions.init, jax.random.key(0), images)


# Weights of rank above 1. mlp and cnn: pqi_sap.md section 4.2, counted from the official
# constructors; vgg: constrained_rl.md section 2, convolutions and the linear layer.
@pytest.mark.parametrize(
    ("name", "image_shape", "num_classes", "expected"),
    [
        ("linear", (28, 28, 1), 10, 7_840),
        ("linear", (32, 32, 3), 100, 307_200),
        ("mlp", (28, 28, 1), 10, 135_680),
        ("mlp", (32, 32, 3), 10, 428_544),
        ("mlp", (32, 32, 3), 100, 451_584),
        ("cnn", (28, 28, 1), 10, 1_553_984),
        ("cnn", (32, 32, 3), 10, 1_555_136),
        ("cnn", (32, 32, 3), 100, 1_601_216),
        ("vgg11", (32, 32, 3), 10, 9_222_848),
        ("vgg13", (32, 32, 3), 10, 9_407_168),
        ("vgg16", (32, 32, 3), 10, 14_715_584),
        ("vgg19", (32, 32, 3), 10, 20_024_000),
    ],
)
def test_numbers_of_weights(name, image_shape, num_classes, expected):
    _, variables = shapes_of(name, image_shape, num_classes)
    weights = [leaf.size for leaf in jax.tree.leaves(variables["params"]) if leaf.ndim > 1]
    assert sum(weights) == expected


def test_every_network_is_tested():
    assert set(model_names()) == set(SMALL) | set(PUBLISHED)


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg11"])
def test_forward_and_training_mode(name):
    functions = model_functions(create_model(name, 7, **SMALL[name]))
    images = jax.random.normal(jax.random.key(0), (8, 32, 32, 3))
    variables = functions.init(jax.random.key(1), images)
    logits = jax.jit(functions.apply)(variables, images)
    training_logits, updates = jax.jit(functions.apply_train)(variables, images)
    for output in (logits, training_logits):
        assert output.shape == (8, 7)
        assert output.dtype == jnp.float32
        chex.assert_tree_all_finite(output)
    # However deep, a fresh network neither silences its input nor blows it up.
    assert 0.03 < float(jnp.std(training_logits)) < 10
    if name == "mlp":
        assert set(variables) == {"params"}
        assert updates == {}
        np.testing.assert_array_equal(logits, training_logits)
    else:
        assert set(variables) == {"params", "batch_stats"}
        assert set(updates) == {"batch_stats"}
        chex.assert_trees_all_equal_shapes_and_dtypes(
            updates["batch_stats"], variables["batch_stats"]
        )
        # Running statistics start at 0 and 1 and move a tenth of the way in a step.
        moved = updates["batch_stats"]["norm1"]["var"]
        assert bool(jnp.all(moved >= 0.9)) and bool(jnp.any(moved != 1))


@pytest.mark.parametrize("name", list(SMALL))
@pytest.mark.parametrize("batch", [1, 5])
def test_every_network_takes_every_batch_size(name, batch):
    functions, variables = shapes_of(name, (32, 32, 1), num_classes=3, **SMALL[name])
    images = jax.ShapeDtypeStruct((batch, 32, 32, 1), jnp.float32)
    assert jax.eval_shape(functions.apply, variables, images).shape == (batch, 3)


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("cnn", {"widths": (32, 64, 128, 256)}, 8),
        ("cnn", {"widths": (4,)}, 1),
        ("vgg16", {"pools": 3}, 8),
        ("vgg16", {"pools": 4}, 28),
        ("vgg11", {"pools": 0}, 1),
        ("vgg19", {}, 64),
    ],
)
def test_sizes_that_fit(name, options, size):
    functions, variables = shapes_of(name, (size, size, 1), **options)
    images = jax.ShapeDtypeStruct((2, size, size, 1), jnp.float32)
    assert jax.eval_shape(functions.apply, variables, images).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "options", "shape", "message"),
    [
        ("vgg16", {}, (8, 8), "8x8 are too small.*32x32 with pools=5; enlarge the images or lower"),
        ("vgg11", {}, (32, 31), "32x31 are too small.*32x32"),
        ("vgg13", {"pools": 4}, (15, 28), "15x28 are too small.*16x16"),
        ("cnn", {}, (7, 7), "7x7 are too small.*8x8"),
        ("cnn", {}, (0, 8), "an empty axis"),
    ],
)
def test_sizes_that_do_not_fit(name, options, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(name, (*shape, 3), **options)


def test_widths_by_multiplier_and_one_by_one():
    def widths(**options):
        _, variables = shapes_of("vgg11", (32, 32, 3), **options)
        return [variables["params"][f"conv{i}"]["kernel"].shape[-1] for i in range(1, 9)]

    assert widths() == [64, 128, 256, 256, 512, 512, 512, 512]
    assert widths(width=0.25) == [16, 32, 64, 64, 128, 128, 128, 128]
    assert widths(width=0.001) == [1] * 8
    assert widths(widths=[3, 5, 7, 9, 11, 13, 15, 17]) == [3, 5, 7, 9, 11, 13, 15, 17]


def test_the_convolution_can_be_swapped():
    calls = []

    def counting(lhs, rhs, *positional, **named):
        calls.append(rhs.shape)
        return jax.lax.conv_general_dilated(lhs, rhs, *positional, **named)

    shapes_of("vgg16", (32, 32, 3), conv_general_dilated=counting)
    assert len(calls) == 13
    calls.clear()
    shapes_of("cnn", (28, 28, 1), conv_general_dilated=counting)
    assert calls == [(3, 3, 1, 64), (3, 3, 64, 128), (3, 3, 128, 256), (3, 3, 256, 512)]


def test_functions_map_over_seeds():
    functions = model_functions(create_model("mlp", 3, widths=(4,)))
    images = jnp.ones((2, 4, 4, 1))
    stacked = jax.vmap(functions.init, in_axes=(0, None))(
        jax.random.split(jax.random.key(0), 5), images
    )
    assert jax.vmap(functions.apply, in_axes=(0, None))(stacked, images).shape == (5, 2, 3)


def test_unknown_name_lists_the_known_ones():
    message = r"'resnet' is unknown; choose from mlp, cnn, vgg11.*resnet56.*vit_tiny"
    with pytest.raises(ValueError, match=message):
        create_model("resnet", 10)


@pytest.mark.parametrize("num_classes", [0, -1, 2.5, True, "10"])
def test_number_of_classes_must_be_positive(num_classes):
    with pytest.raises(ValueError, match="num_classes="):
        create_model("mlp", num_classes)


def test_unknown_option_lists_the_known_ones():
    with pytest.raises(TypeError, match="'mlp' has no option 'width'; it has widths"):
        create_model("mlp", 10, width=0.5)
    with pytest.raises(TypeError, match="'vgg11' has no option 'depth'"):
        create_model("vgg11", 10, depth=16)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("mlp", {"widths": (8, 0)}, "must hold positive integers"),
        ("cnn", {"widths": ()}, "leaves nothing of cnn"),
        ("cnn", {"widths": (8, 2.5)}, "must hold positive integers"),
        ("vgg11", {"widths": (8,) * 7}, "has 7 entries; give 8"),
        ("vgg11", {"width": 0.0}, "width=0.0 must be a finite number above 0"),
        ("vgg11", {"width": float("nan")}, "width=nan must be a finite number above 0"),
        ("vgg11", {"width": 0.5, "widths": (8,) * 8}, "not both"),
        ("vgg11", {"pools": 6}, "pools=6 must be from 0 to 5"),
    ],
)
def test_bad_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(name, (32, 32, 3), **options)


def test_unknown_depth():
    with pytest.raises(ValueError, match="depth=12 is unknown"):
        models.VGG(10, depth=12).init(jax.random.key(0), jnp.ones((1, 32, 32, 3)))


@pytest.mark.parametrize("name", ["mlp", "cnn", "vgg16"])
def test_raw_images_and_wrong_ranks_are_refused(name):
    functions = model_functions(create_model(name, 10))
    with pytest.raises(TypeError, match=r"uint8.*normalise them first"):
        functions.init(jax.random.key(0), jnp.ones((1, 32, 32, 3), jnp.uint8))
    bad = jnp.ones((32,)) if name == "mlp" else jnp.ones((32, 32, 3))
    with pytest.raises(ValueError, match=r"the network takes \[B"):
        functions.init(jax.random.key(0), bad)


def test_model_functions_take_modules_only():
    with pytest.raises(TypeError, match="not a Linen module"):
        model_functions(lambda x: x)

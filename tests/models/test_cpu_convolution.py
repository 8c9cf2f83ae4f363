import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from rlprune_jax.models.convolution import _cpu_convolution
from rlprune_jax.models.convolution._cpu_convolution import form_of
from rlprune_jax.models.convolution._geometry import Geometry


def geometry(size, kernel, strides=(1, 1), padding=((1, 1), (1, 1)), dilation=(1, 1), groups=1):
    return Geometry(size, kernel, strides, padding, dilation, groups)


CASES = [
    ("winograd", geometry((6, 6), (3, 3)), (5, 7)),
    ("winograd", geometry((7, 4), (3, 3), padding=((0, 2), (-1, 3))), (5, 7)),
    ("taps", geometry((2, 2), (3, 3)), (5, 7)),
    ("taps", geometry((6, 5), (3, 2), (2, 3), ((1, 0), (2, 3)), (2, 1)), (5, 7)),
    ("taps", geometry((5, 6), (1, 1), (2, 2), ((0, 0), (0, 0))), (5, 7)),
    ("taps", geometry((5, 5), (3, 3), (2, 2), groups=2), (4, 6)),
    ("taps", geometry((5, 5), (3, 3), (2, 1), groups=4), (4, 8)),
    ("taps", geometry((1, 3), (5, 5), padding=((2, 2), (9, 2))), (3, 4)),
    ("patches", geometry((6, 5), (3, 2), (2, 3), ((1, 0), (2, 3)), (2, 1)), (5, 7)),
    ("patches", geometry((7, 6), (2, 3), (2, 3), ((0, 0), (0, 0))), (3, 7)),
    ("xla", geometry((6, 5), (3, 2), (2, 1), ((1, 0), (2, 3))), (5, 7)),
]


@pytest.mark.parametrize(
    "form, geometry, channels, heavy",
    [
        (*case, heavy)
        for case in CASES
        # Only the input gradient of strided convolutions depends on the amount of work.
        for heavy in ((True,) if case[1].strides == (1, 1) else (True, False))
    ],
)
def test_every_form_equals_lax(form, geometry, channels, heavy, monkeypatch):
    monkeypatch.setattr(_cpu_convolution, "form_of", lambda *_, **__: form)
    monkeypatch.setattr(_cpu_convolution, "_is_heavy", lambda *_: heavy)
    inside, outside = channels
    lhs = jax.random.normal(jax.random.key(0), (3, *geometry.input_size, inside))
    rhs_shape = (*geometry.kernel_size, inside // geometry.groups, outside)
    rhs = jax.random.normal(jax.random.key(1), rhs_shape)

    def reference(x, k):
        return lax.conv_general_dilated(
            x,
            k,
            geometry.strides,
            geometry.padding,
            rhs_dilation=geometry.dilation,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
            feature_group_count=geometry.groups,
        )

    @jax.jit
    def both(x, k):
        output, pull_back = jax.vjp(reference, x, k)
        cotangent = jnp.cos(output)
        actual = (
            _cpu_convolution.convolution(x, k, geometry),
            _cpu_convolution.input_gradient(cotangent, k, geometry),
            _cpu_convolution.kernel_gradient(x, cotangent, geometry),
        )
        return actual, (output, *pull_back(cotangent))

    for a, b in zip(*both(lhs, rhs), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)


@pytest.mark.parametrize(
    "form, size, channels, batch, options",
    [
        ("patches", 32, (3, 64), 128, {}),
        ("winograd", 32, (64, 64), 128, {}),
        ("winograd", 4, (512, 512), 128, {}),
        ("taps", 2, (512, 512), 128, {}),
        ("patches", 2, (512, 512), 1, {}),
        ("xla", 32, (32, 32), 128, {}),
        ("xla", 16, (128, 128), 128, dict(strides=(2, 2))),
        ("xla", 16, (128, 128), "symbolic", {}),
        ("taps", 16, (1, 128), 128, dict(groups=128)),
    ],
)
def test_form_is_chosen_by_shape(form, size, channels, batch, options):
    assert form_of(geometry((size, size), (3, 3), **options), batch, channels) == form


def test_kernel_gradient_never_uses_the_convolution_of_xla():
    for size in (1, 2, 4, 8, 32):
        for channels in ((3, 64), (32, 32), (64, 64), (512, 512)):
            for options in ({}, dict(strides=(2, 2)), dict(groups=2)):
                chosen = form_of(geometry((size, size), (3, 3), **options), 64, channels, True)
                assert chosen != "xla"

"""Names of JAX primitives by how they move the indices of their operands."""

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e
    bitcast_convert_type cbrt ceil clamp clz complex conj convert_element_type copy copy_p cos
    cosh digamma div eq eq_to erf erf_inv erfc exp exp2 expm1 floor ge gt igamma igamma_grad_a
    igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt lt_to max min mul
    mulhi ne neg nextafter not or polygamma population_count pow pvary real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sharding_constraint sign sin sinh sqrt square sub tan tanh xor zeta
    stop_gradient""".split()  # noqa: SIM905
)
"""Position i of the output is made of position i of each operand (sizes 1 are stretched)."""

REDUCTIONS = frozenset(
    """reduce_sum reduce_max reduce_min reduce_prod reduce_and reduce_or reduce_xor argmax
    argmin""".split()  # noqa: SIM905
)
"""Read every index of ``axes`` and drop these axes."""

READERS = (REDUCTIONS - {"argmax", "argmin"}) | {"top_k"}
"""What leaves pruned units out; the place of the one extreme depends on all of them."""

SCATTERS = frozenset(
    """scatter scatter-add scatter_add scatter-sub scatter_sub scatter-mul scatter_mul scatter-min
    scatter_min scatter-max scatter_max""".split()  # noqa: SIM905
)
"""Write windows of their last operand into the first, at the places in the second."""

COLLECTIVES = frozenset(["psum", "pmax", "pmin"])
"""Reduce each operand over ``axes``, which a ``vmap`` over a named axis has made axes of arrays."""

CUMULATIVE = frozenset(["cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"])
"""Mix the indices of ``axis`` and keep every axis."""

WINDOWED = frozenset(
    ["reduce_window", "reduce_window_sum", "reduce_window_max", "reduce_window_min"]
)
"""Read windows of positions: axes with windows of one are passed through."""

CONVOLUTIONS = frozenset(["conv_general_dilated", "rlprune_convolution"])
"""Contract input channels with a kernel; ours is always NHWC, HWIO to NHWC."""


RAGGED = frozenset(["ragged_dot", "ragged_dot_general"])
"""Contract with the weights of the group that a row belongs to."""


def convolution_axes(
    name: str, params: dict
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Return the axes of a convolution's input, kernel and output.

    Returns:
        Three tuples: input ``(batch, channel, *space)``, kernel ``(out, in, *space)`` and output
        ``(batch, channel, *space)``.
    """
    if name == "rlprune_convolution":
        return (0, 3, 1, 2), (3, 2, 0, 1), (0, 3, 1, 2)
    numbers = params["dimension_numbers"]
    return tuple(numbers.lhs_spec), tuple(numbers.rhs_spec), tuple(numbers.out_spec)

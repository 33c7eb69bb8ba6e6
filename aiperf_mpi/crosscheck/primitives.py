# SPDX-License-Identifier: Apache-2.0
"""Rules for the cost of each JAX primitive, with the weights of section 4.4 of the paper.

A rule takes an equation of a jaxpr and returns its weighted operations. A primitive without a rule raises an
error, as a count that skips unknown operations would be wrong. (Primitives with inner jaxprs are in
:mod:`jaxpr`.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from types import MappingProxyType
from typing import Any

from jax.extend.source_info_util import summarize

from aiperf_mpi.opcount.analytical import WEIGHTS

#: A function from an equation to its weighted operations.
Rule = Callable[[Any], int]

MAC, ADD, DIV, SQRT, EXP = (WEIGHTS[name] for name in ("mac", "add", "div", "sqrt", "exp"))


class CountError(ValueError):
    """The operations of a program cannot be counted; the message names the primitive and its source line."""


def where(eqn: Any) -> str:
    """Return the source line that made an equation."""
    return summarize(eqn.source_info)


def elements(variable: Any) -> int:
    """Return the number of elements of an equation's operand or result."""
    return prod(variable.aval.shape)


# -- per element of the result ---------------------------------------------------------------------

#: Weights of elementwise primitives. Transcendental functions (log, tanh, erf, ...) weigh as much as exp. A
#: reciprocal square root is a square root and a division.
ELEMENTWISE: tuple[tuple[int, tuple[str, ...]], ...] = (
    (
        ADD,
        (
            "add",
            "add_any",
            "sub",
            "mul",
            "square",
            "neg",
            "abs",
            "sign",
            "max",
            "min",
            "clamp",
            "select_n",
            "eq",
            "ne",
            "lt",
            "le",
            "gt",
            "ge",
            "is_finite",
            "and",
            "or",
            "xor",
            "not",
            "floor",
            "ceil",
            "round",
            "shift_left",
            "shift_right_logical",
            "shift_right_arithmetic",
            "population_count",
            "clz",
            "nextafter",
            "mulhi",
            "eq_to",
            "le_to",
            "lt_to",
        ),
    ),
    (MAC, ("one_minus_square",)),
    (DIV, ("div", "rem")),
    (SQRT, ("sqrt",)),
    (SQRT + DIV, ("rsqrt",)),
    (
        EXP,
        (
            "exp",
            "exp2",
            "log",
            "log2",
            "log1p",
            "expm1",
            "pow",
            "cbrt",
            "logistic",
            "sin",
            "cos",
            "tan",
            "tanh",
            "asin",
            "acos",
            "atan",
            "atan2",
            "sinh",
            "cosh",
            "asinh",
            "acosh",
            "atanh",
            "erf",
            "erfc",
            "erf_inv",
            "lgamma",
            "digamma",
        ),
    ),
)

#: Primitives that move, copy, name or reinterpret values without computing anything.
FREE = frozenset(
    (
        "broadcast_in_dim",
        "reshape",
        "transpose",
        "squeeze",
        "expand_dims",
        "rev",
        "slice",
        "dynamic_slice",
        "dynamic_update_slice",
        "pad",
        "concatenate",
        "gather",
        "scatter",
        "split",
        "unstack",
        "stack",
        "tile",
        "iota",
        "convert_element_type",
        "bitcast_convert_type",
        "reduce_precision",
        "copy",
        "copy_p",
        "stop_gradient",
        "optimization_barrier",
        "device_put",
        "sharding_constraint",
        "layout_constraint",
        "reshard",
        "mesh_cast",
        "pvary",
        "pcast",
        "pbroadcast",
        "axis_index",
        "axis_size",
        "all_gather",
        "all_gather_invariant",
        "all_to_all",
        "ppermute",
        "tie",
        "random_wrap",
        "random_unwrap",
        "random_clone",
        "create_token",
        "after_all",
        "name",
        "empty",
        "empty2",
        "real",
        "imag",
        "full",
        "dce_sink",
    )
)

#: n terms take n - 1 operations.
REDUCTIONS = (
    "reduce_sum",
    "reduce_max",
    "reduce_min",
    "reduce_prod",
    "reduce_and",
    "reduce_or",
    "reduce_xor",
    "argmax",
    "argmin",
)

#: One operation per element: running sums, additions at indices, and this device's share of an all-reduce.
CUMULATIVE = ("cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp")
SCATTERS = ("scatter-add", "scatter_add", "scatter-mul", "scatter_mul", "scatter-min", "scatter-max")
COLLECTIVES = frozenset(("psum", "psum2", "psum_invariant", "pmax", "pmin", "reduce_scatter", "psum_scatter"))

#: Threefry-2x32 on one pair of words: 20 rounds of an addition, a rotation (2 shifts, or) and xor; 2
#: additions before and 3 in each of the 5 injections of the key; 2 xor for the third word of the key (Salmon
#: et al., SC 2011).
THREEFRY = 20 * 5 + 2 + 5 * 3 + 2


def _per_element(weight: int) -> Rule:
    """Return a rule with `weight` operations per element of the result."""
    return lambda eqn: weight * elements(eqn.outvars[0])


def _nothing(_: Any) -> int:
    return 0


def _reduction(eqn: Any) -> int:
    return ADD * (elements(eqn.invars[0]) - elements(eqn.outvars[0]))


def _general_reduction(eqn: Any) -> int:
    """Count the body of a reduction, of one or several arrays, for each term but the first."""
    each = sum(RULES[inner.primitive.name](inner) for inner in eqn.params["jaxpr"].eqns)
    return each * (elements(eqn.invars[0]) - elements(eqn.outvars[0]))


def _collective(eqn: Any) -> int:
    return ADD * sum(elements(variable) for variable in eqn.invars)


def _integer_pow(eqn: Any) -> int:
    """Count multiplications of repeated squaring, and a division for a negative exponent.

    There is one multiplication for each bit of the exponent after the first, and one for each further 1.
    """
    exponent = abs(eqn.params["y"])
    products = max(exponent.bit_length() + exponent.bit_count() - 2, 0)
    return (products + (DIV if eqn.params["y"] < 0 else 0)) * elements(eqn.outvars[0])


def _window(eqn: Any) -> int:
    """Count K x K comparisons (or additions) per result, as in Table 1 of the paper."""
    return ADD * prod(eqn.params["window_dimensions"]) * elements(eqn.outvars[0])


def _select_and_scatter_add(eqn: Any) -> int:
    """Count, for each scattered value, the search for the largest of its window, and one addition."""
    return ADD * (prod(eqn.params["window_dimensions"]) + 1) * elements(eqn.invars[0])


def _random_bits(eqn: Any) -> int:
    words = elements(eqn.outvars[0]) * max(eqn.params["bit_width"] // 32, 1)
    return THREEFRY * -(-words // 2)


def _keys(eqn: Any) -> int:
    """Count one block of the generator for each new key."""
    return THREEFRY * elements(eqn.outvars[0])


def _sort(eqn: Any) -> int:
    """Count n log2 n comparisons along the sorted dimension."""
    length = eqn.invars[0].aval.shape[eqn.params["dimension"]]
    return elements(eqn.invars[0]) * max(length - 1, 0).bit_length()


# -- matrix products and convolutions --------------------------------------------------------------


def dot_macs(eqn: Any) -> int:
    """Return the multiply-accumulates of a `dot_general`: one per result and contracted element."""
    (contracted, _), _ = eqn.params["dimension_numbers"]
    return elements(eqn.outvars[0]) * prod(eqn.invars[0].aval.shape[d] for d in contracted)


def conv_macs(eqn: Any) -> int:
    """Return the multiply-accumulates of a `conv_general_dilated`, with padding, without inserted zeros.

    Without dilation of the left operand, each result takes every tap of the kernel and every input feature of
    its group. (The kernel's shape has these features; with batch groups there are fewer results.)

    With dilation, as in the input gradient of a strided convolution, most taps of a result meet inserted
    zeros. If the strides divide the size, the rest is 1 / prod(lhs_dilation) of the taps. In general, each
    *element of the left operand* meets every tap once for each output feature of its group. This is the
    forward count for any size. Raises CountError for a dilated operand with strides if the quotient is not an
    integer.
    """
    numbers, parameters = eqn.params["dimension_numbers"], eqn.params
    left, kernel = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape
    taps = prod(kernel[d] for d in numbers.rhs_spec[2:])
    dilation, strides = prod(parameters["lhs_dilation"]), prod(parameters["window_strides"])

    if dilation > 1 and strides == 1:
        groups = parameters["feature_group_count"] * parameters["batch_group_count"]
        return prod(left) * taps * kernel[numbers.rhs_spec[0]] // groups
    macs = elements(eqn.outvars[0]) * taps * kernel[numbers.rhs_spec[1]]
    if macs % dilation:
        raise CountError(
            f"convolution with strides {parameters['window_strides']} of an operand dilated by "
            f"{parameters['lhs_dilation']}: {macs} products are not a multiple of {dilation} ({where(eqn)})"
        )
    return macs // dilation


#: Primitive -> rule.
RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **{name: _per_element(weight) for weight, names in ELEMENTWISE for name in names},
        **dict.fromkeys(FREE, _nothing),
        **dict.fromkeys(REDUCTIONS, _reduction),
        "reduce": _general_reduction,
        **dict.fromkeys(COLLECTIVES, _collective),
        **dict.fromkeys(CUMULATIVE, _per_element(ADD)),
        **dict.fromkeys(SCATTERS, lambda eqn: ADD * elements(eqn.invars[2])),
        "integer_pow": _integer_pow,
        "reduce_window_max": _window,
        "reduce_window_min": _window,
        "reduce_window_sum": _window,
        "select_and_scatter_add": _select_and_scatter_add,
        "sort": _sort,
        "random_bits": _random_bits,
        "random_fold_in": _keys,
        "random_split": _keys,
        "random_seed": _keys,
        "threefry2x32": _keys,
        "dot_general": lambda eqn: MAC * dot_macs(eqn),
        "conv_general_dilated": lambda eqn: MAC * conv_macs(eqn),
    }
)


def unknown(eqn: Any) -> CountError:
    """Return the error for a primitive that has no rule."""
    return CountError(
        f"operation count: primitive {eqn.primitive.name!r} has no rule ({where(eqn)}); add one to "
        "aiperf_mpi/crosscheck/primitives.py"
    )

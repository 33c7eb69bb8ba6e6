# SPDX-License-Identifier: Apache-2.0
"""Compare XLA's own estimate of a step with a model of XLA's counting rules: the third counting method.

XLA's `cost_analysis()` of a lowered step is one number. It differs from the tables in known ways. A
convolution's taps in the padding do not count. An elementwise operation weighs 1, a division too, and so does
a conversion of types. A function such as exp or rsqrt weighs nothing (XLA counts these separately). The body
of a loop counts once. The model is the traversal of :mod:`jaxpr` with XLA's rules instead of the paper's, so
it also divides the number by kind of layer. Model and estimate must agree within `opcount.XLA_BAND`. Then the
differences between XLA's number and the tables are explained to that accuracy.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from types import MappingProxyType
from typing import Any

import jax

from aiperf_mpi.crosscheck.primitives import (
    COLLECTIVES,
    ELEMENTWISE,
    MAC,
    REDUCTIONS,
    RULES,
    SQRT,
    Rule,
    dot_macs,
    elements,
)
from aiperf_mpi.crosscheck.trace import Trace, scopes, train_arguments
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount import XLA_BAND
from aiperf_mpi.opcount.tally import Tally
from aiperf_mpi.opcount.taps import valid_taps
from aiperf_mpi.training.steps.dispatch import over_devices
from aiperf_mpi.training.steps.step import StepSettings, train_step

#: Elementwise primitives that XLA counts as transcendental functions, not as operations.
_TRANSCENDENTAL = frozenset(name for weight, names in ELEMENTWISE if weight >= SQRT for name in names) - {
    "div",
    "rem",
}

#: Number of comparisons and selections to which JAX lowers one step of an argmax.
_ARGMAX_STEP = 9


@dataclass(frozen=True)
class Agreement:
    """Two counts of a step: XLA's estimate, and the model of its rules.

    Attributes:
        estimate: operations of the lowered step; None if the backend has no estimate.
        model: operations by the model of XLA's rules.
    """

    estimate: int | None
    model: int

    @property
    def deviation(self) -> float | None:
        """(model - estimate) / estimate."""
        return None if self.estimate is None else (self.model - self.estimate) / self.estimate

    @property
    def agrees(self) -> bool | None:
        """Whether the deviation is within XLA_BAND; None if there is no estimate."""
        return None if self.deviation is None else abs(self.deviation) <= XLA_BAND


def estimate(lowered: Any) -> int | None:
    """Return XLA's estimate of the operations of a `jax.stages.Lowered`, for one device.

    Return None if the backend has no estimate: it then raises UNIMPLEMENTED, or gives no `flops` above 0.
    """
    try:
        costs = lowered.cost_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "UNIMPLEMENTED" not in str(error).upper():
            raise
        return None
    if isinstance(costs, list | tuple):
        costs = costs[0] if costs else None
    operations = (costs or {}).get("flops", -1)
    return round(operations) if operations > 0 else None


def conv_taps(eqn: Any) -> int:
    """Return the multiply-accumulates of a `conv_general_dilated` by XLA's rule: only taps with an input."""
    parameters, numbers = eqn.params, eqn.params["dimension_numbers"]
    left, kernel, out = (v.aval.shape for v in (*eqn.invars, *eqn.outvars))
    taps = [
        valid_taps(
            left[a], kernel[b], stride=stride, before=low, after=high, size_dilation=ld, kernel_dilation=kd
        )
        for a, b, stride, (low, high), ld, kd in zip(
            numbers.lhs_spec[2:],
            numbers.rhs_spec[2:],
            parameters["window_strides"],
            parameters["padding"],
            parameters["lhs_dilation"],
            parameters["rhs_dilation"],
            strict=True,
        )
    ]
    batch, features = out[numbers.out_spec[0]], out[numbers.out_spec[1]]
    return prod(taps) * batch * features * kernel[numbers.rhs_spec[1]]


def _scattered(eqn: Any) -> int:
    return prod(eqn.params["window_dimensions"]) * elements(eqn.invars[0])


def _window(eqn: Any) -> int:
    return (prod(eqn.params["window_dimensions"]) - 1) * elements(eqn.outvars[0])


def _result(eqn: Any) -> int:
    return elements(eqn.outvars[0])


def _reduced(eqn: Any) -> int:
    return elements(eqn.invars[0]) - elements(eqn.outvars[0])


def _converted(eqn: Any) -> int:
    """Count a conversion, except to the same type, which is not in the lowered program."""
    return 0 if eqn.invars[0].aval.dtype == eqn.outvars[0].aval.dtype else elements(eqn.outvars[0])


#: Primitive -> XLA's rule.
XLA_RULES: Mapping[str, Rule] = MappingProxyType(
    {
        **RULES,
        **{name: _result for _, names in ELEMENTWISE for name in names},
        **dict.fromkeys(_TRANSCENDENTAL, lambda _: 0),
        "one_minus_square": RULES["one_minus_square"],
        **dict.fromkeys(COLLECTIVES, lambda eqn: sum(elements(v) for v in eqn.invars)),
        **dict.fromkeys(REDUCTIONS, _reduced),
        **dict.fromkeys(("argmax", "argmin"), lambda eqn: _ARGMAX_STEP * _reduced(eqn)),
        "convert_element_type": _converted,
        "reduce_window_max": _window,
        "reduce_window_min": _window,
        "reduce_window_sum": _window,
        "select_and_scatter_add": _scattered,
        "dot_general": lambda eqn: MAC * dot_macs(eqn),
        "conv_general_dilated": lambda eqn: MAC * conv_taps(eqn),
    }
)


@dataclass(frozen=True)
class Analysis:
    """Three counts of the training step of one device.

    Attributes:
        executed: count of the traversal with the paper's weights.
        modelled: count of the traversal with XLA's rules.
        agreement: XLA's estimate, and the sum of `modelled`.
    """

    executed: Tally
    modelled: Tally
    agreement: Agreement


def analyse(architecture: Architecture, settings: StepSettings) -> Analysis:
    """Trace and lower the training step for one local device, without compiling it, and count its operations.

    Raises CountError for a primitive without a rule, and passes on errors of Flax for a network that cannot
    be built.
    """
    arguments = train_arguments(architecture, settings)
    *mapped, rate = arguments.shapes
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct((1, *x.shape), x.dtype), mapped)
    step = over_devices(
        train_step(architecture, settings),
        jax.local_devices()[:1],
        in_axes=(0, 0, 0, None),
        out_axes=(0, None),
    )

    # Lowering uses the cached trace of `make_jaxpr`.
    trace = Trace(jax.make_jaxpr(step)(*shapes, rate), arguments.marks, scopes(architecture))
    lowered = step.lower(*shapes, rate)
    modelled = trace.count(rules=XLA_RULES, loops_once=True)
    return Analysis(trace.count(), modelled, Agreement(estimate(lowered), modelled.total))

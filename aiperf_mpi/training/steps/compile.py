# SPDX-License-Identifier: Apache-2.0
"""Steps compiled ahead for a replica's devices, and what the compiled program says of its precision.

`compile_steps` keeps no state, so that a thread may run it while the main thread speaks MPI.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.training.model.resnet import expected_shapes
from aiperf_mpi.training.steps.devices import device_sharding, first, replicate
from aiperf_mpi.training.steps.digest import Agreement, agreement
from aiperf_mpi.training.steps.dispatch import AUTO, form_of, lower
from aiperf_mpi.training.steps.step import (
    Metrics,
    StepSettings,
    TrainState,
    average_statistics,
    eval_step,
    initial_state,
    train_step,
)


@dataclass(frozen=True)
class Compiled:
    """The steps of one architecture for one set of devices; all arrays have the devices as their first axis.

    Attributes:
        devices: all of the replica, also those of its other processes.
        form: how they are driven, see :mod:`dispatch`.
        train: (state, images, labels, learning rate) -> (state, metrics); the state given is used up. The
            images are uint8 [D, B, H, W, C], the labels int32 [D, B], the rate comes from `scalar`, the
            metrics have no axis.
        evaluate: (params, batch_stats, images, labels, valid) -> metrics, `valid` bool [D, B].
        average: batch_stats -> batch_stats, averaged over the devices; what is given is used up.
        agree: (params, batch_stats) -> `digest.Agreement`, computed on the devices; None for a single device.
        precision: of the convolutions' operands in the compiled training step, see `convolution_precision`.
        lowered: the training step as it was compiled, for XLA's estimate of its operations.
        trace_seconds: of tracing and lowering to StableHLO, which hold Python's interpreter lock.
        compile_seconds: of XLA's compilation (short if the cache had the program).
    """

    architecture: Architecture
    settings: StepSettings
    devices: tuple[jax.Device, ...]
    form: str
    sharding: NamedSharding
    train: Callable[..., tuple[TrainState, Metrics]]
    evaluate: Callable[..., Metrics]
    average: Callable[[Any], Any]
    agree: Callable[[Any, Any], Agreement] | None
    precision: str
    lowered: jax.stages.Lowered
    trace_seconds: float
    compile_seconds: float

    @property
    def batch_global(self) -> int:
        """Images of one step on all devices."""
        return len(self.devices) * self.settings.batch_per_device

    def start(self, variables: Any, rng: np.random.Generator) -> TrainState:
        """The state before the first step on all devices; arguments as those of `step.initial_state`."""
        return replicate(initial_state(variables, self.settings, rng), self.sharding)

    def scalar(self, value: float) -> jax.Array:
        """A float32 on all devices, such as the learning rate of an epoch."""
        everywhere = NamedSharding(self.sharding.mesh, PartitionSpec())
        return jax.make_array_from_callback((), everywhere, lambda _: np.float32(value))

    def variables(self, state: TrainState) -> dict[str, Any]:
        """The collections `params` and `batch_stats` of this process's first device, as numpy arrays."""
        return {"params": first(state.params), "batch_stats": first(state.batch_stats)}


def compile_steps(
    architecture: Architecture, settings: StepSettings, devices: Sequence[jax.Device], dispatch: str = AUTO
) -> Compiled:
    """Traces, lowers and compiles the training and the evaluation step of an architecture.

    Where the devices are those of several processes, all of these compile the same steps in the same order.

    Arguments:
        dispatch: how the steps run on the devices, one of `dispatch.DISPATCHES`.

    Raises ValueError for a precision or a dispatch that is unknown, and whatever Flax and XLA raise for a
    network that cannot be.
    """
    state, (images, labels, valid) = _argument_shapes(architecture, settings, len(devices))
    rate = jax.ShapeDtypeStruct((), np.float32)

    # Tracing and lowering first, as they hold the interpreter lock, then XLA, which does not.
    begin, form = time.perf_counter(), form_of(dispatch, devices)
    train = lower(
        train_step(architecture, settings),
        devices,
        (state, images, labels, rate),
        in_axes=(0, 0, 0, None),
        out_axes=(0, None),
        donate=(0,),
        form=form,
    )
    held = (state.params, state.batch_stats)
    evaluate = lower(
        eval_step(architecture, settings),
        devices,
        (*held, images, labels, valid),
        in_axes=(0,) * 5,
        out_axes=None,
        form=form,
    )
    average = lower(average_statistics, devices, (state.batch_stats,), in_axes=(0,), donate=(0,), form=form)
    agree = None
    if len(devices) > 1:
        agree = lower(agreement, devices, held, in_axes=(0, 0), out_axes=None, form=form)
    traced = time.perf_counter()
    compiled_train, compiled_evaluate, compiled_average = (
        train.compile(),
        evaluate.compile(),
        average.compile(),
    )
    compiled_agree = None if agree is None else agree.compile()
    end = time.perf_counter()

    return Compiled(
        architecture,
        settings,
        tuple(devices),
        form,
        device_sharding(devices),
        compiled_train,
        compiled_evaluate,
        compiled_average,
        compiled_agree,
        precision=convolution_precision(compiled_train.as_text() or ""),
        lowered=train,
        trace_seconds=traced - begin,
        compile_seconds=end - traced,
    )


def use_compilation_cache(folder: str | Path) -> None:
    """Keeps compiled programs in `folder`, for this process and later ones; call it before the first
    compilation.

    Every program is kept, however small: a candidate's programs return with its next hyperparameters or run.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


def convolution_precision(program: str) -> str:
    """The element type in which convolutions really multiply, from a compiled program's HLO text.

    Returns float32, bfloat16, float16 or float64; several of them joined by a comma (sorted, at most 16
    characters); or "unknown" where the text has no convolution. A backend without bfloat16 arithmetic, such
    as many CPUs, widens the operands, and so shows here. (That float32 may be multiplied as TF32 on NVIDIA
    devices is not in the text.)
    """
    element: dict[str, str] = {}
    found: set[str] = set()
    for line in program.splitlines():
        # Operands stand as names, which the same computation defined in an earlier line.
        if not (defined := _DEFINITION.match(line)):
            continue
        element[defined[1]] = defined[2]
        if operands := _CONVOLUTION.search(line):
            names = _OPERAND.findall(operands[1] or operands[2])[:2]
            found.update(_ELEMENT_TYPES.get(element[name], element[name]) for name in names)
    return ",".join(sorted(found))[:16] or "unknown"


#: `%name = bf16[...]`, or a tuple whose first element counts; a convolution, as an instruction or as a call
#: of a library (`__cudnn$convForward` and its kin); the name of an operand.
_DEFINITION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = \(?(\w+)\[")
_CONVOLUTION = re.compile(r" convolution\(([^)]*)\)| custom-call\(([^)]*)\).*custom_call_target=\"[^\"]*conv")
_OPERAND = re.compile(r"%([\w.-]+)")
_ELEMENT_TYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _argument_shapes(
    architecture: Architecture, settings: StepSettings, count: int
) -> tuple[TrainState, Any]:
    """Shapes and dtypes of the state, and of images, labels and valid mask, on `count` devices."""
    base, batch = architecture.base, settings.batch_per_device
    variables = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        expected_shapes(architecture),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = initial_state(variables, settings, np.random.default_rng(0))

    def on_devices(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *np.shape(x)), x.dtype)

    images = jax.ShapeDtypeStruct((count, batch, base.image_size, base.image_size, base.channels), np.uint8)
    labels = jax.ShapeDtypeStruct((count, batch), np.int32)
    valid = jax.ShapeDtypeStruct((count, batch), np.bool_)
    return jax.tree.map(on_devices, state), (images, labels, valid)

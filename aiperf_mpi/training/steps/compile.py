# SPDX-License-Identifier: Apache-2.0
"""Compile the steps of a candidate for a replica's devices, before the first step.

`compile_steps` keeps no state, so a thread may run it while the main thread calls MPI.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from aiperf_mpi.ending import lines, process, write_error
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.forms import FOLDED, KEPT, ROUNDED
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

#: How JAX's warnings about its cache begin.
_CACHE_WARNINGS = ("Error reading persistent compilation cache", "Error writing persistent compilation cache")


@dataclass(frozen=True)
class Compiled:
    """The compiled steps of one architecture; the first axis of all arrays is that of the devices.

    Attributes:
        devices: all devices of the replica, also those of its other processes.
        form: how the steps are dispatched to the devices, see :mod:`dispatch`.
        train: (state, images, labels, learning rate) -> (state, metrics). The call consumes the given state.
            The images are [D, B, ...], see `StepSettings.arriving`, the labels int32 [D, B]. The rate comes
            from `scalar`. The metrics have no device axis.
        evaluate: (params, batch_stats, images, labels, valid) -> metrics, `valid` bool [D, B].
        average: batch_stats -> batch_stats averaged over the devices. The call consumes its argument.
        agree: (params, batch_stats) -> `digest.Agreement`, computed on the devices; None for a single device.
        precision: operand type of the convolutions in the training step, see `convolution_precision`.
        lowered: the lowered training step, for XLA's estimate of its operations.
        trace_seconds: time for tracing and lowering to StableHLO, which hold Python's interpreter lock.
        compile_seconds: time for XLA's compilation (short if the cache had the program).
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
        """Number of images of one step on all devices."""
        return len(self.devices) * self.settings.batch_per_device

    def start(self, variables: Any, rng: np.random.Generator) -> TrainState:
        """Return the state before the first step on all devices; see `step.initial_state`."""
        return replicate(initial_state(variables, self.settings, rng), self.sharding)

    def resume(self, state: TrainState) -> TrainState:
        """Return a state of `held` on all devices."""
        return replicate(state, self.sharding)

    def held(self, state: TrainState) -> TrainState:
        """Return the state of this process's first device, as numpy arrays: after `average` that of all."""
        held: TrainState = first(state)
        return held

    def scalar(self, value: float) -> jax.Array:
        """Return `value` as a float32 on all devices, such as the learning rate of an epoch."""
        everywhere = NamedSharding(self.sharding.mesh, PartitionSpec())
        return jax.make_array_from_callback((), everywhere, lambda _: np.float32(value))

    def variables(self, state: TrainState) -> dict[str, Any]:
        """Return `params` and `batch_stats` of this process's first device, as numpy arrays."""
        return {"params": first(state.params), "batch_stats": first(state.batch_stats)}


def compile_steps(
    architecture: Architecture, settings: StepSettings, devices: Sequence[jax.Device], dispatch: str = AUTO
) -> Compiled:
    """Trace, lower and compile all steps of an architecture.

    If the devices belong to several processes, each of them must compile the same steps in the same order.

    Arguments:
        dispatch: how the steps run on the devices, one of `dispatch.DISPATCHES`.

    Raises ValueError for an unknown precision or dispatch, and passes on the errors of Flax and XLA for a
    network that cannot be built.
    """
    # First trace and lower, which holds the interpreter lock, then run XLA, which does not.
    begin, form = time.perf_counter(), form_of(dispatch, devices)
    lowered = _lower_steps(architecture, settings, devices, form)
    traced = time.perf_counter()
    options = options_of(settings)
    train, evaluate = lowered.train.compile(options), lowered.evaluate.compile(options)
    average = lowered.average.compile()
    agree = None if lowered.agree is None else lowered.agree.compile()
    end = time.perf_counter()

    return Compiled(
        architecture,
        settings,
        tuple(devices),
        form,
        device_sharding(devices),
        train,
        evaluate,
        average,
        agree,
        precision=convolution_precision(train.as_text() or ""),
        lowered=lowered.train,
        trace_seconds=traced - begin,
        compile_seconds=end - traced,
    )


class _Lowered(NamedTuple):
    """The lowered steps; see the attributes of `Compiled`."""

    train: jax.stages.Lowered
    evaluate: jax.stages.Lowered
    average: jax.stages.Lowered
    agree: jax.stages.Lowered | None


def _lower_steps(
    architecture: Architecture, settings: StepSettings, devices: Sequence[jax.Device], form: str
) -> _Lowered:
    """Trace and lower all steps of an architecture."""
    train = lower_train(architecture, settings, devices, form)
    evaluate = lower_evaluate(architecture, settings, devices, form)
    state, _ = _argument_shapes(architecture, settings, len(devices))
    average = lower(average_statistics, devices, (state.batch_stats,), in_axes=(0,), donate=(0,), form=form)
    agree = None
    if len(devices) > 1:
        held = (state.params, state.batch_stats)
        agree = lower(agreement, devices, held, in_axes=(0, 0), out_axes=None, form=form)
    return _Lowered(train, evaluate, average, agree)


def lower_train(
    architecture: Architecture, settings: StepSettings, devices: Sequence[jax.Device], form: str
) -> jax.stages.Lowered:
    """Trace and lower the training step; `form` is PMAP or SHARD_MAP of :mod:`dispatch`.

    The devices may be described ones, for which a program can be compiled but not run.
    """
    state, (images, labels, _) = _argument_shapes(architecture, settings, len(devices))
    return lower(
        train_step(architecture, settings),
        devices,
        (state, images, labels, jax.ShapeDtypeStruct((), np.float32)),
        in_axes=(0, 0, 0, None),
        out_axes=(0, None),
        donate=() if KEPT in settings.forms else (0,),
        form=form,
    )


def lower_evaluate(
    architecture: Architecture, settings: StepSettings, devices: Sequence[jax.Device], form: str
) -> jax.stages.Lowered:
    """Trace and lower the evaluation step, like `lower_train`."""
    state, batch = _argument_shapes(architecture, settings, len(devices))
    return lower(
        eval_step(architecture, settings),
        devices,
        (state.params, state.batch_stats, *batch),
        in_axes=(0,) * 5,
        out_axes=None,
        form=form,
    )


#: Options of XLA with which the steps of a form are compiled. By default XLA may keep an activation in
#: float32 where the network rounds it, and writes twice the bytes. Libraries add to a product while they
#: write it, as XLA's own products (Triton) do not.
OPTIONS: Mapping[str, Mapping[str, str | bool]] = {
    ROUNDED: {"xla_allow_excess_precision": False},
    FOLDED: {"xla_gpu_enable_triton_gemm": False},
}


def options_of(settings: StepSettings) -> dict[str, str | bool] | None:
    """Return the options with which XLA compiles steps of these settings; None for the usual ones."""
    options: dict[str, str | bool] = {}
    for form in settings.forms:
        options.update(OPTIONS.get(form, {}))
    return options or None


def use_compilation_cache(folder: str | Path) -> None:
    """Keep compiled programs in `folder`, for this process and later ones.

    Call it before the first compilation. Even small programs are kept: the same programs are needed again
    with a candidate's next hyperparameters, or in the next run.
    """
    Path(folder).mkdir(parents=True, exist_ok=True)
    warnings.showwarning = CacheWarnings(warnings.showwarning)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


class CacheWarnings:
    """Shows warnings; of those about the cache, the first as one line, and none after the cache is closed.

    JAX warns of each program that it cannot keep, which would bury the log of a run with a full disk.
    """

    def __init__(self, show: Callable[..., object]) -> None:
        self._show, self._silent = show, False

    def __call__(self, message: Warning | str, *details: Any, **named: Any) -> None:
        """Show a warning, as `warnings.showwarning` does."""
        text = str(message)
        if not text.startswith(_CACHE_WARNINGS):
            self._show(message, *details, **named)
        elif not self._silent:
            self._silent = True
            problem = f"compiled programs are not kept, and compile again when they are needed: {text}"
            write_error(lines(problem, process.where))

    def close(self) -> None:
        """Show nothing of the cache any more: its folder is being removed."""
        self._silent = True


def release_compilation_cache() -> None:
    """Say nothing any more of programs that cannot be kept, as the folder is being removed."""
    if isinstance(warnings.showwarning, CacheWarnings):
        warnings.showwarning.close()


def convolution_precision(program: str) -> str:
    """Return the element type in which convolutions multiply, read from a compiled program's HLO text.

    The result is float32, bfloat16, float16 or float64; several types are sorted and joined by a comma (at
    most 16 characters). It is "unknown" if the text has no convolution. A backend without bfloat16
    arithmetic, such as many CPUs, widens the operands, and then the result is float32. (The text does not
    show whether an NVIDIA device multiplies float32 as TF32.)
    """
    element: dict[str, str] = {}
    types: set[str] = set()
    for line in program.splitlines():
        # An operand is a name that an earlier line of the same computation defined.
        if not (defined := _DEFINITION.match(line)):
            continue
        element[defined[1]] = defined[2]
        if operands := _CONVOLUTION.search(line):
            names = _OPERAND.findall(operands[1] or operands[2])[:2]
            types.update(_ELEMENT_TYPES.get(element[name], element[name]) for name in names)
    return ",".join(sorted(types))[:16] or "unknown"


#: Patterns of HLO text: a definition (`%name = bf16[...]`; of a tuple the first element counts), a
#: convolution (an instruction, or a library call such as `__cudnn$convForward`), and an operand's name.
_DEFINITION = re.compile(r"\s*(?:ROOT )?%([\w.-]+) = \(?(\w+)\[")
_CONVOLUTION = re.compile(r" convolution\(([^)]*)\)| custom-call\(([^)]*)\).*custom_call_target=\"[^\"]*conv")
_OPERAND = re.compile(r"%([\w.-]+)")
_ELEMENT_TYPES = {"f64": "float64", "f32": "float32", "f16": "float16", "bf16": "bfloat16"}


def _argument_shapes(
    architecture: Architecture, settings: StepSettings, count: int
) -> tuple[TrainState, Any]:
    """Return shapes and dtypes of the state and of (images, labels, valid mask) on `count` devices."""
    base, batch = architecture.base, settings.batch_per_device
    variables = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        expected_shapes(architecture),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = initial_state(variables, settings, np.random.default_rng(0))

    def on_devices(x: Any) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((count, *np.shape(x)), x.dtype)

    image = settings.arriving(base)
    images = jax.ShapeDtypeStruct((count, batch, *image.shape), image.dtype)
    labels = jax.ShapeDtypeStruct((count, batch), np.int32)
    valid = jax.ShapeDtypeStruct((count, batch), np.bool_)
    return jax.tree.map(on_devices, state), (images, labels, valid)

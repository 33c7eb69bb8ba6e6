# SPDX-License-Identifier: Apache-2.0
"""Trace the functions of training and evaluation for one of a replica's devices, to count their operations.

Nothing is computed, and no device is needed. The collectives run over an abstract axis with the trainer's
number of devices. A rank on CPUs therefore counts the operations that an accelerator will execute.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.extend.core import ClosedJaxpr

from aiperf_mpi.crosscheck import jaxpr
from aiperf_mpi.network.architecture import Architecture
from aiperf_mpi.opcount.tally import AUGMENTATION, MADE_IMAGES, Tally
from aiperf_mpi.training.model.resnet import expected_shapes, module_name
from aiperf_mpi.training.steps import step as steps
from aiperf_mpi.training.steps.devices import AXIS
from aiperf_mpi.training.steps.step import StepSettings

#: Marks of fields of the training state; all other fields have no mark.
STATE_MARKS = {"params": jaxpr.PARAMETERS, "momenta": jaxpr.MOMENTA}


@dataclass(frozen=True)
class Arguments:
    """Shapes of a step's arguments on one device, and the mark of each array, see :mod:`jaxpr`."""

    shapes: tuple[Any, ...]
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A traced step.

    Attributes:
        program: jaxpr of one device.
        marks: marks of its inputs, see :mod:`jaxpr`.
        scopes: Flax module or scope -> kind of layer.
    """

    program: ClosedJaxpr
    marks: tuple[int, ...]
    scopes: Mapping[str, str]

    def count(self, **options: Any) -> Tally:
        """Count the operations of one device in one step, by class; `options` go to `jaxpr.count`."""
        return jaxpr.count(self.program, self.marks, self.scopes, **options)


def trace_train(architecture: Architecture, settings: StepSettings, devices: int = 1) -> Trace:
    """Trace the training step of one of `devices` devices.

    Errors of Flax for a network that cannot be built are passed on.
    """
    arguments = train_arguments(architecture, settings)
    return _trace(architecture, steps.train_step(architecture, settings), arguments, devices)


def trace_eval(architecture: Architecture, settings: StepSettings, devices: int = 1) -> Trace:
    """Trace the evaluation step, like `trace_train`."""
    arguments = eval_arguments(architecture, settings)
    return _trace(architecture, steps.eval_step(architecture, settings), arguments, devices)


def train_arguments(architecture: Architecture, settings: StepSettings) -> Arguments:
    """Return the arguments of `step.train_step`: state, images, labels and learning rate."""
    state, images, labels, _ = _shapes(architecture, settings)
    marks = type(state)(
        **{name: _marked(part, STATE_MARKS.get(name, 0)) for name, part in state._asdict().items()}
    )
    rate = jax.ShapeDtypeStruct((), np.float32)
    flat = jax.tree.leaves((marks, jaxpr.IMAGES, jaxpr.LABELS, jaxpr.RATE))
    return Arguments((state, images, labels, rate), tuple(flat))


def eval_arguments(architecture: Architecture, settings: StepSettings) -> Arguments:
    """Return the arguments of `step.eval_step`: parameters, statistics, images, labels and valid mask."""
    state, images, labels, valid = _shapes(architecture, settings)
    marks = (_marked(state.params, jaxpr.PARAMETERS), _marked(state.batch_stats, 0))
    flat = jax.tree.leaves((marks, jaxpr.IMAGES, jaxpr.LABELS, 0))
    return Arguments((state.params, state.batch_stats, images, labels, valid), tuple(flat))


def scopes(architecture: Architecture) -> dict[str, str]:
    """Return the kind of each layer by the layer's scope in the Flax network, and of what makes them."""
    return {module_name(layer.name): layer.kind for layer in architecture.layers()} | {
        AUGMENTATION: AUGMENTATION,
        MADE_IMAGES: MADE_IMAGES,
    }


def _marked(tree: Any, mark: int) -> Any:
    return jax.tree.map(lambda _: mark, tree)


def _shapes(architecture: Architecture, settings: StepSettings) -> tuple[steps.TrainState, Any, Any, Any]:
    base, batch = architecture.base, settings.batch_per_device
    variables = jax.tree.map(
        lambda shape: jax.ShapeDtypeStruct(shape, np.float32),
        expected_shapes(architecture),
        is_leaf=lambda node: isinstance(node, tuple),
    )
    state = steps.initial_state(variables, settings, np.random.default_rng(0))
    state = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), state)
    image = settings.arriving(base)
    images = jax.ShapeDtypeStruct((batch, *image.shape), image.dtype)
    labels, valid = jax.ShapeDtypeStruct((batch,), np.int32), jax.ShapeDtypeStruct((batch,), np.bool_)
    return state, images, labels, valid


def _trace(
    architecture: Architecture, function: Callable[..., Any], arguments: Arguments, devices: int
) -> Trace:
    program = jax.make_jaxpr(function, axis_env=[(AXIS, devices)])(*arguments.shapes)
    return Trace(program, arguments.marks, scopes(architecture))

# SPDX-License-Identifier: Apache-2.0
"""The steps that are trained and validated, traced for counting: the very functions, for one of a replica's
devices.

Nothing is computed, and no device is needed: the collectives run along an abstract axis of as many devices as
the trainer has, so that a rank on CPUs counts what an accelerator will execute.
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
from aiperf_mpi.opcount.tally import Tally
from aiperf_mpi.training.model.resnet import expected_shapes, module_name
from aiperf_mpi.training.steps import step as steps
from aiperf_mpi.training.steps.devices import AXIS
from aiperf_mpi.training.steps.step import StepSettings

#: Fields of the training state that the traversal must know; all others carry no mark.
STATE_MARKS = {"params": jaxpr.PARAMETERS, "momenta": jaxpr.MOMENTA}


@dataclass(frozen=True)
class Arguments:
    """Shapes of a step's arguments on one device, and beside each array the mark by which its uses are
    known."""

    shapes: tuple[Any, ...]
    marks: tuple[int, ...]


@dataclass(frozen=True)
class Trace:
    """A traced step.

    Attributes:
        program: the jaxpr, of one device.
        marks: of its inputs, see :mod:`jaxpr`.
        scopes: Flax module or scope -> kind of layer.
    """

    program: ClosedJaxpr
    marks: tuple[int, ...]
    scopes: Mapping[str, str]

    def count(self, **options: Any) -> Tally:
        """Operations of one device in one step, by class; `options` go to `jaxpr.count`."""
        return jaxpr.count(self.program, self.marks, self.scopes, **options)


def trace_train(architecture: Architecture, settings: StepSettings, devices: int = 1) -> Trace:
    """The training step of one of `devices` devices; raises whatever Flax raises for a network that cannot
    be."""
    arguments = train_arguments(architecture, settings)
    return _trace(architecture, steps.train_step(architecture, settings), arguments, devices)


def trace_eval(architecture: Architecture, settings: StepSettings, devices: int = 1) -> Trace:
    """The evaluation step, as `trace_train`."""
    arguments = eval_arguments(architecture, settings)
    return _trace(architecture, steps.eval_step(architecture, settings), arguments, devices)


def train_arguments(architecture: Architecture, settings: StepSettings) -> Arguments:
    """State, images, labels and learning rate of `step.train_step`."""
    state, images, labels, _ = _shapes(architecture, settings)
    marks = type(state)(
        **{name: _marked(part, STATE_MARKS.get(name, 0)) for name, part in state._asdict().items()}
    )
    rate = jax.ShapeDtypeStruct((), np.float32)
    flat = jax.tree.leaves((marks, jaxpr.IMAGES, jaxpr.LABELS, jaxpr.RATE))
    return Arguments((state, images, labels, rate), tuple(flat))


def eval_arguments(architecture: Architecture, settings: StepSettings) -> Arguments:
    """Parameters, statistics, images, labels and valid mask of `step.eval_step`."""
    state, images, labels, valid = _shapes(architecture, settings)
    marks = (_marked(state.params, jaxpr.PARAMETERS), _marked(state.batch_stats, 0))
    flat = jax.tree.leaves((marks, jaxpr.IMAGES, jaxpr.LABELS, 0))
    return Arguments((state.params, state.batch_stats, images, labels, valid), tuple(flat))


def scopes(architecture: Architecture) -> dict[str, str]:
    """The scope that the Flax network gives each layer -> the kind of that layer."""
    return {module_name(layer.name): layer.kind for layer in architecture.layers()}


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
    images = jax.ShapeDtypeStruct((batch, base.image_size, base.image_size, base.channels), np.uint8)
    labels, valid = jax.ShapeDtypeStruct((batch,), np.int32), jax.ShapeDtypeStruct((batch,), np.bool_)
    return state, images, labels, valid


def _trace(
    architecture: Architecture, function: Callable[..., Any], arguments: Arguments, devices: int
) -> Trace:
    program = jax.make_jaxpr(function, axis_env=[(AXIS, devices)])(*arguments.shapes)
    return Trace(program, arguments.marks, scopes(architecture))

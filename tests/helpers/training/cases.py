# SPDX-License-Identifier: Apache-2.0
"""Networks and batches that the tests of this folder share."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import numpy as np

from aiperf_mpi.network.architecture import OPS, Architecture, Base, Morph, resnet50, tied_units
from aiperf_mpi.network.morphism import Limits, random_chain
from aiperf_mpi.training.model.initial import initial_variables
from aiperf_mpi.training.steps.compile import Compiled, compile_steps
from aiperf_mpi.training.steps.step import StepSettings, TrainState

#: One block per stage, so that every kind of block is there and compiling stays quick.
SHALLOW = Base(image_size=32, channels=1, classes=10, width=4, blocks=(1, 1, 1, 1))

#: As small as a network with a projection, an identity shortcut and a change of stage can be.
TINY = Base(image_size=8, channels=1, classes=3, width=2, blocks=(2, 1))

#: A child of the tiny network by two morphs.
MORPHED = resnet50(TINY).apply(Morph("deeper", 3, 0, 5), Morph("skip", 1, 8))

#: Wider doublings are what makes a chain large; this leaves eight of them on the shallow base.
CHAIN_LIMITS = Limits(parameters=1 << 20)


def random_chains(count: int, base: Base = SHALLOW, seed: int = 7) -> list[Architecture]:
    """Chains of eight morphs, each operation twice, in random order; chain i is the same for every `count`.

    In most of them the first skip joins equal shapes and a later `wider` doubles units that an addition ties.
    """
    return [_random_chain(np.random.default_rng((seed, i)), base) for i in range(count)]


def ties_units(architecture: Architecture, unit_id: int) -> bool:
    """Whether an addition ties the filters of this unit to those of others."""
    return len(tied_units({unit.id: unit for unit in architecture.units}, unit_id)) > 1


def _random_chain(rng: np.random.Generator, base: Base) -> Architecture:
    architecture, joined = resnet50(base), False
    for op in rng.permutation(OPS * 2):
        for _ in range(32):
            child, chain = random_chain(architecture, rng, 1, (str(op),), CHAIN_LIMITS)
            if not chain:
                break
            morph = chain[0]

            # Uniform picks nearly always change the shape, or widen what nothing is added to: look for the
            # others.
            if (
                op == "skip"
                and not joined
                and next(u for u in child.units if u.id == morph.b).edges[-1].kind != "norm"
            ):
                continue
            if op == "wider" and joined and not ties_units(architecture, morph.a):
                continue
            architecture, joined = child, joined or op == "skip"
            break
    return architecture


def random_batch(base: Base, devices: int, batch: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Random images uint8 [D, B, H, W, C] and labels int32 [D, B]."""
    rng = np.random.default_rng(seed)
    images = rng.integers(
        0, 256, (devices, batch, base.image_size, base.image_size, base.channels), dtype=np.uint8
    )
    return images, rng.integers(0, base.classes, (devices, batch), dtype=np.int32)


def compiled_tiny(devices: int = 1, **settings: object) -> Compiled:
    """Compile steps of the tiny base network, with 4 images a device by default."""
    chosen = StepSettings(**{"batch_per_device": 4, **settings})  # type: ignore[arg-type]
    return compile_steps(resnet50(TINY), chosen, jax.devices()[:devices])


def started(compiled: Compiled, seed: int = 0, zero_gamma: bool = False) -> TrainState:
    """The state before the first step, from a seed."""
    variables = initial_variables(compiled.architecture, np.random.default_rng((seed, 1)), zero_gamma)
    return compiled.start(variables, np.random.default_rng((seed, 2)))


def batches(
    images: np.ndarray, labels: np.ndarray, devices: int, batch: int
) -> Iterator[tuple[np.ndarray, ...]]:
    """All images in order, the last batch filled up with copies of the first image that are not valid."""
    size = devices * batch
    for begin in range(0, len(labels), size):
        rows = np.arange(begin, begin + size)
        valid = rows < len(labels)
        rows = np.where(valid, rows, 0)
        yield (
            images[rows].reshape(devices, batch, *images.shape[1:]),
            labels[rows].reshape(devices, batch),
            valid.reshape(devices, batch),
        )

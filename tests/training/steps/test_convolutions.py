# SPDX-License-Identifier: Apache-2.0
"""The convolutions that morphs can reach, compared with every single morph, and their compilation."""

from __future__ import annotations

import jax
import pytest

from aiperf_mpi.network.architecture import OPS, Base, resnet50
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.training.steps.convolutions import (
    Convolution,
    compile_convolution,
    convolutions,
    reachable,
    to_compile,
)


def test_every_convolution_of_every_child_is_reached() -> None:
    network = resnet50()
    own = convolutions(network)
    # The bottlenecks of He et al.: the stem on 224 pixels, and the last stage's expansion.
    assert {Convolution(224, 3, 64, 7, 2), Convolution(7, 512, 2048, 1, 1)} <= own

    every = set().union(*(convolutions(network.apply(morph)) for morph in eligible_morphs(network)))
    listed = reachable(network, OPS, ())
    assert set(listed) == every - own and listed == sorted(listed)


def test_new_kernels_have_all_sizes_of_the_search() -> None:
    network = resnet50(Base(image_size=32, channels=1, classes=10, width=4, blocks=(1,)))
    listed = reachable(network, ("deeper",), (2, 5))
    # A deeper morph adds a 3 x 3 after the stem's 4 filters, which have 16 x 16 pixels.
    assert {Convolution(16, 4, 4, kernel, 1) for kernel in (2, 5)} <= set(listed)
    assert not any(c.kernel in (2, 5) for c in reachable(network, ("deeper",), ()))


def test_prewarm_covers_hpo_batches_and_the_default_first() -> None:
    network = resnet50(Base(image_size=32, channels=1, classes=10, width=4, blocks=(1,)))
    own, new = convolutions(network), reachable(network, OPS, (2,))
    listed = to_compile(network, OPS, (2,), (32, 16, 32, 64))
    assert listed[: len(new)] == [(c, 32) for c in new]
    rest = listed[len(new) :]
    assert {(c, b) for c, b in rest[: 2 * len(own)]} == {(c, b) for c in own for b in (16, 64)}
    assert {(c, b) for c, b in rest[2 * len(own) :]} == {(c, b) for c in new for b in (16, 64)}
    assert len(rest) == 2 * (len(own) + len(new))
    assert to_compile(network, OPS, (), (32,)) == [(c, 32) for c in reachable(network, OPS, ())]


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_convolution_compiles_with_both_gradients(precision: str) -> None:
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "backend_compile" in event else None
    )
    compile_convolution(Convolution(8, 2, 4, 3, 2), 2, precision, jax.devices()[0])
    assert compiled

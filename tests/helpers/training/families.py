# SPDX-License-Identifier: Apache-2.0
"""Parents with random variables, their children, and the difference between the two functions.

All variables of the parents are random, also running statistics and the scales of norms. So no term is 0 by
chance, and a forgotten term shows.
"""

from __future__ import annotations

import numpy as np

from aiperf_mpi.network.architecture import OPS, Architecture, Base, Morph, resnet50
from aiperf_mpi.network.morphism import eligible_morphs
from aiperf_mpi.training.model.inheritance import function_difference, inherited_variables
from aiperf_mpi.training.model.initial import Variables, initial_variables
from tests.helpers.training.cases import ties_units
from tests.helpers.training.plain_network import plain_logits

#: The stated tolerance, relative to the largest logit, in float32.
TOLERANCE = 1e-4

#: The same sums in float64: the remaining difference is the rounding of float32 weights (2^-24 of each) over
#: some dozen layers.
ROUNDING = 2e-6

#: Blocks (1, 2): the identity shortcut of unit 9 ties it, the last one, to unit 6; sizes that strides do not
#: divide.
BASES = (Base(9, 1, 3, 2, (2, 1)), Base(16, 2, 4, 3, (1, 2)), Base(13, 3, 5, 2, (1, 1, 1)))

#: Two stages: 1-3 and 4-6, the second with stride 2 in unit 4; identity shortcuts only where a stage has two
#: blocks.
ONE, TWO = resnet50(Base(16, 1, 4, 3, (1, 1))), resnet50(Base(16, 1, 4, 3, (2, 2)))


def random_variables(architecture: Architecture, rng: np.random.Generator) -> Variables:
    """Return He weights with random scales (some negative), biases, running means and variances."""
    variables = initial_variables(architecture, rng)
    for module, statistics in variables["batch_stats"].items():
        shape, params = statistics["mean"].shape, variables["params"][module]
        params["scale"] = rng.normal(1, 0.7, shape).astype(np.float32)
        params["bias"] = rng.normal(0, 0.7, shape).astype(np.float32)
        statistics["mean"] = rng.normal(0, 0.7, shape).astype(np.float32)
        statistics["var"] = rng.uniform(0.2, 3, shape).astype(np.float32)
    dense = variables["params"]["dense"]
    dense["bias"] = rng.normal(size=dense["bias"].shape).astype(np.float32)
    return variables


def random_images(base: Base, seed: int = 0, count: int = 3) -> np.ndarray:
    shape = (count, base.image_size, base.image_size, base.channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def edge_kind(architecture: Architecture, morph: Morph) -> str:
    return next(unit for unit in architecture.units if unit.id == morph.b).edges[-1].kind


def random_morph(architecture: Architecture, rng: np.random.Generator) -> Morph:
    """Return a morph of a random operation: kernels of 1 to 9, even ones too; half of the skips without a
    projection, and half of the `wider` on units that additions tie, which uniform picks rarely meet."""
    while True:
        op = OPS[rng.integers(len(OPS))]
        unit = architecture.units[rng.integers(architecture.unit_count)]
        if op == "deeper":
            return Morph("deeper", unit.id, 0, int(rng.integers(1, 8)))
        if op == "kernel":
            return Morph("kernel", unit.id, 0, unit.kernel + int(rng.integers(1, 4)))
        morphs = list(eligible_morphs(architecture, (op,)))
        if op == "skip" and rng.random() < 0.5:
            morphs = [m for m in morphs if edge_kind(architecture.apply(m), m) == "norm"]
        if op == "wider" and rng.random() < 0.5:
            morphs = [m for m in morphs if ties_units(architecture, m.a)]
        if op == "wider" and architecture.parameters > 1 << 18:
            morphs = []
        if morphs:
            return morphs[rng.integers(len(morphs))]


def random_family(number: int) -> tuple[Architecture, tuple[Morph, ...], np.random.Generator]:
    """Return a parent (after 0 to 3 morphs), 1 to 8 morphs for its child, and the random stream.

    Family i is the same in every test.
    """
    rng = np.random.default_rng((11, number))
    architecture = resnet50(BASES[number % len(BASES)])
    for _ in range(number % 4):
        architecture = architecture.apply(random_morph(architecture, rng))
    parent = architecture
    for _ in range(1 + number % 8):
        architecture = architecture.apply(random_morph(architecture, rng))
    own = architecture.morphs[len(parent.morphs) :]

    # Hyperparameter optimisation may have set the kernel of the chain's own new convolutions.
    if number % 3 == 0:
        tuned = architecture.with_own_kernel(len(own), (3, 5, 7, 4)[number % 4])
        own = tuned.morphs[len(parent.morphs) :]
    return parent, own, rng


def plain_difference(
    parent: Architecture, variables: Variables, child: Architecture, inherited: Variables
) -> float:
    """Return the measure of `function_difference`, computed in float64 without Flax and layers()."""
    images = random_images(parent.base) / 255
    one, other = plain_logits(parent, variables, images), plain_logits(child, inherited, images)
    return float(np.abs(other - one).max() / np.abs(one).max())


def difference(
    parent: Architecture, variables: Variables, child: Architecture, inherited: Variables
) -> float:
    images = random_images(parent.base)
    return function_difference(parent, variables, child, inherited, images, (0.5,), (0.25,))


def inherit(parent: Architecture, *morphs: Morph, seed: int = 0) -> tuple[Variables, Architecture, Variables]:
    """Return random variables of the parent, the child, and the child's inherited variables."""
    rng = np.random.default_rng((3, seed))
    variables = random_variables(parent, rng)
    return variables, parent.apply(*morphs), inherited_variables(parent, variables, morphs, rng)

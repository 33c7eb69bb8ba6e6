# SPDX-License-Identifier: Apache-2.0
"""Check random morph chains, numbered from FIRST: print morphs by kind and differences as JSON.

python tests/programs/crosscheck/chains.py shallow|resnet50 FIRST COUNT
"""

from __future__ import annotations

import gc
import json
import sys
from collections import Counter

import numpy as np

from aiperf_mpi.crosscheck.check import differences
from aiperf_mpi.network.architecture import OPS, Architecture, Base, Morph
from aiperf_mpi.network.morphism import random_chain
from aiperf_mpi.opcount.forms import LEAN
from aiperf_mpi.training.steps.step import StepSettings

#: Most random morphs of a chain; every third gets two more.
SHALLOW_MORPHS, DEEP_MORPHS = 6, 10

#: Sizes that all strides divide, and one of odd sizes. Tracing takes 16 ms for each convolution, whatever its
#: size.
SHALLOW = (Base(32, 3, 10, 4, (1, 1, 1, 1)), Base(224, 3, 10, 16, (1, 1)), Base(33, 1, 7, 8, (1, 1)))
DEEP = (Base(224), Base(32, classes=10))

#: Kernels of the even sizes that no search makes, for a unit chosen by chance.
EVEN = (2, 4, 6, 8)


def chain(kind: str, number: int) -> Architecture:
    """Return chain `number` of its kind; every third ends with even kernels, in a new and an old unit."""
    rng = np.random.default_rng(np.random.SeedSequence((number, kind == "shallow")))
    bases, longest = (SHALLOW, SHALLOW_MORPHS) if kind == "shallow" else (DEEP, DEEP_MORPHS)
    child, _ = random_chain(Architecture(bases[number % len(bases)]), rng, int(rng.integers(1, longest + 1)))
    if number % 3 == 0:
        kernel = int(rng.choice(EVEN))
        child = child.apply(Morph("deeper", int(rng.integers(child.unit_count)), 0, kernel))
        small = [unit.id for unit in child.units if unit.kernel < kernel]
        child = child.apply(Morph("kernel", int(rng.choice(small)), 0, kernel))
    return child


def check(kind: str, first: int, count: int) -> dict[str, object]:
    """Return the report on `count` chains."""
    differing: dict[int, str] = {}
    seen: Counter[str] = Counter()
    # Garbage collection would take a quarter of the tracing time, although there is little garbage.
    gc.disable()
    for number in range(first, first + count):
        if number % 25 == 0:
            gc.collect()
        architecture = chain(kind, number)
        seen.update(morph.op for morph in architecture.morphs)
        seen["projection"] += sum(edge.kind == "conv" for unit in architecture.units for edge in unit.edges)
        seen["even"] += sum(unit.kernel % 2 == 0 for unit in architecture.units)

        # Batch, precision, forms, parts and devices change too; none may change the result.
        batch = 1 + number % 3
        settings = StepSettings(
            batch,
            "bfloat16" if number % 3 == 2 else "float32",
            forms=LEAN if number % 2 else (),
            synchronised=number % 5 == 0,
            accumulate=batch if number % 4 == 3 else 1,
        )
        if items := differences(architecture, settings, 1 + number % 8):
            differing[number] = f"{architecture.to_json()}: {'; '.join(map(str, items))}"
    return {
        "chains": count,
        "seen": {op: seen[op] for op in (*OPS, "projection", "even")},
        "differing": differing,
    }


if __name__ == "__main__":
    print(json.dumps(check(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))))

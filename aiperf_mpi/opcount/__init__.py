# SPDX-License-Identifier: Apache-2.0
"""The operation counts of the paper's tables, and the versions of all three counting methods."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Versions of the counting methods. A version changes whenever a rule of its method does. They are stored
#: with each run, so that results of different rules can be distinguished. They are defined here because
#: modules without JAX read them.
METHOD_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"analytical": "analytical/1", "jaxpr": "jaxpr/1", "xla": "xla/1"}
)

#: The methods that count every trial: the tables, whose count is credited, and the two that check its step.
TRIAL_METHODS = " ".join(METHOD_VERSIONS.values())

#: Largest difference between XLA's estimate of a step and the model of XLA's rules, relative to the estimate.
#: It comes from scalars and from operations that lowering splits or merges. It was measured on ResNet-50 and
#: on random morphs (docs/operation-count.md).
XLA_BAND = 0.001

#: Additional difference for a step with augmentation, in operations per image and per step. It comes from
#: random numbers alone, whose rounds a backend unrolls, loops over or hides in a call; pixels and positions
#: count exactly. A block of the generator has 119 operations. An image takes one block for its key and five
#: for its numbers, of which the model counts 1 + 3: 476 operations. XLA counts between none (a call) and six
#: blocks with their counters (some 750): the difference is 476 at most. The key of a step adds a block.
#: Measured on CPUs, for all forms, sizes and batches: 254 and 110. (Version 0.1 drew for a batch at once:
#: 145 and 300 on CPUs, some 725 if unrolled.)
XLA_RANDOM_IMAGE, XLA_RANDOM_STEP = 1024, 4096

#: Bounds of XLA's numbers that follow from the network alone. They are at least XLA_LEAST of the products
#: without taps in the padding; a faster form of the first convolution has other products. What comes on top
#: is at most so many times the other operations of the paper's tables, which leave out most of the backward
#: pass and conversions of types; and so many operations for each value of an image as it arrives (crops,
#: normalisation, made-up pixels), for each image (random numbers), and for each parameter (the update, and
#: the scale of the loss in float16). Measured on 90 steps: docs/operation-count.md.
XLA_LEAST = 0.98
XLA_OTHERS, XLA_OF_PIXEL, XLA_OF_IMAGE, XLA_OF_PARAMETER = 4, 64, 4096, 32

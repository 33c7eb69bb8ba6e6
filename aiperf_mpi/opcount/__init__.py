# SPDX-License-Identifier: Apache-2.0
"""Operation counts by three methods: the paper's tables, the jaxpr of the trained step, and XLA's estimate of
it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Versions of the methods. One changes whenever a rule of its method does; they are stored with a run, so
#: that a result can be told from one that was counted otherwise. (Here, where a room without JAX can read
#: them.)
METHOD_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"analytical": "analytical/1", "jaxpr": "jaxpr/1", "xla": "xla/1"}
)

#: What every trial is counted by: the tables, whose count is credited, and the two that its step is checked
#: by.
TRIAL_METHODS = " ".join(METHOD_VERSIONS.values())

#: How far XLA's estimate of a step and the model of XLA's rules may be apart, relative to the estimate. What
#: is left are scalars and operations that lowering splits up or merges; measured on ResNet-50 and on random
#: morphs (docs/operation-count.md).
XLA_BAND = 0.001

#: What an augmented step may be apart beside that, in operations per image and per step: random numbers,
#: whose rounds a backend's lowering unrolls or loops over. Measured on CPUs: 145 and 300; unrolled they are
#: about five times as many.
XLA_RANDOM_IMAGE, XLA_RANDOM_STEP = 1024, 4096

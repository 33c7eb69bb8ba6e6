# SPDX-License-Identifier: Apache-2.0
"""Operation counts by three methods: the paper's tables, the jaxpr of the trained step, and XLA's estimate of it."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

#: Versions of the methods. One changes whenever a rule of its method does; they are stored with a run, so that a
#: result can be told from one that was counted otherwise. (Here, where a room without JAX can read them.)
METHOD_VERSIONS: Mapping[str, str] = MappingProxyType(
    {"analytical": "analytical/1", "jaxpr": "jaxpr/1", "xla": "xla/1"}
)

#: What every candidate is counted by, and what its training step is checked against before anybody trains it.
TRIAL_METHODS = f"{METHOD_VERSIONS['analytical']} {METHOD_VERSIONS['jaxpr']}"

# SPDX-License-Identifier: Apache-2.0
"""Flags of XLA for tests, which compile far more than they compute."""

from __future__ import annotations

#: With these flags XLA compiles a network in half of the time.
FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

#: With one flag more it takes half of that again: all tests compile so, and the ranks that they start.
QUICK = f"{FLAGS} --xla_cpu_use_fusion_emitters=false"

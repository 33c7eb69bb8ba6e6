# SPDX-License-Identifier: Apache-2.0
"""Counts of a trained step by its jaxpr and by XLA, held against the paper's tables (needs JAX)."""

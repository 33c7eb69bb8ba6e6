# SPDX-License-Identifier: Apache-2.0
"""Count a trained step by its jaxpr and by XLA, and compare with the paper's tables (needs JAX)."""

# SPDX-License-Identifier: Apache-2.0
"""Data sets and their batches on the host; no JAX."""

# SPDX-License-Identifier: Apache-2.0
"""From the pictures that a site has, in one of several forms, to shards and a manifest; no JAX, no MPI."""

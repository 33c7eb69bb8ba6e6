# SPDX-License-Identifier: Apache-2.0
"""Ranks that make candidates: morph a parent, build and count the network, publish it."""

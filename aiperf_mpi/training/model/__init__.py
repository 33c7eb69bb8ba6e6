# SPDX-License-Identifier: Apache-2.0
"""The Flax network of an architecture, its layers and their faster forms, and its initial weights."""

# SPDX-License-Identifier: Apache-2.0
"""Architectures of the search space and their morphs."""

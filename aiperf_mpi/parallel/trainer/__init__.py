# SPDX-License-Identifier: Apache-2.0
"""Ranks that train candidates: take one, prepare it, train it, record it."""

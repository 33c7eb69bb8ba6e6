# SPDX-License-Identifier: Apache-2.0
"""A verdict and its rows in words, tables and pictures."""

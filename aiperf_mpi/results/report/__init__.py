# SPDX-License-Identifier: Apache-2.0
"""Show a verdict and the rows of its result as text, tables and pictures."""

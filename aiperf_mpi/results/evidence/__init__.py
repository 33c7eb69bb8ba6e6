# SPDX-License-Identifier: Apache-2.0
"""Evidence recomputed from the rows of a result file, and its text made safe to print."""

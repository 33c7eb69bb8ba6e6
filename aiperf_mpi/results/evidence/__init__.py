# SPDX-License-Identifier: Apache-2.0
"""What a result file proves: evidence recomputed from its rows, and its text made safe to print."""

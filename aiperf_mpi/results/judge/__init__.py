# SPDX-License-Identifier: Apache-2.0
"""From a result file to its verdict: the evidence that is recomputed, the rules, and the checks."""

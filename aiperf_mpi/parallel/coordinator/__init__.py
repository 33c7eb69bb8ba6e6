# SPDX-License-Identifier: Apache-2.0
"""Rank 0: keeps time, feeds the writer, shows progress, trains nothing."""

# SPDX-License-Identifier: Apache-2.0
"""Checks of what a run finds on a machine, each bounded in time, and how `doctor` shows them."""

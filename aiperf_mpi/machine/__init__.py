# SPDX-License-Identifier: Apache-2.0
"""Describe the hardware of a node, measure its use and power, and list its peak rates."""

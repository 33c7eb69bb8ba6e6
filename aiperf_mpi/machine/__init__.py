# SPDX-License-Identifier: Apache-2.0
"""What the hardware of a node is, what it does, and what it can do at most."""

# SPDX-License-Identifier: Apache-2.0
"""The compiled training and validation steps: their program, memory, dispatch, and checks of their state."""

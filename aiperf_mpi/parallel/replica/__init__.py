# SPDX-License-Identifier: Apache-2.0
"""What the trainers of one replica have in common: devices, agreements, weights, compiled programs."""
